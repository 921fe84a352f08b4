// A livepatch for nginx as Debian ships it: answers tell no entity tag any more, whose parts are a file's
// time and length. Nothing of nginx is needed to build it: the program exports the function.
//
//     molt apply --tree MASTER nginx_etag.so
//     curl -sI http://127.0.0.1/page | grep -i etag          # nothing
//     molt revert --tree MASTER nginx_etag
#include <molt/livepatch.hpp>

struct ngx_http_request_t;  // nginx's

extern "C" {
static long new_set_etag(ngx_http_request_t*) { return 0; }  // NGX_OK
}

MOLT_MODULE("nginx_etag", "1.0", "Apache-2.0", "answers have no entity tag")
MOLT_PATCH(MOLT_PROGRAM(MOLT_REPLACE("ngx_http_set_etag", new_set_etag)))
