// A livepatch for redis-server as Debian ships it: PING answers what the operator wrote, so that clients
// that watch it turn to another server. Nothing of redis is needed to build it: the program exports both
// functions.
//
//     molt apply -p PID redis_ping.so answer=maintenance
//     redis-cli ping                                        # maintenance
//     molt revert -p PID redis_ping
#include <molt/livepatch.hpp>

struct client;  // redis's
extern "C" void addReplyStatus(client* c, const char* status);

MOLT_PARAM(std::string, answer, "patched", "what PING answers", 0)

extern "C" {
static void new_ping(client* c) { addReplyStatus(c, answer.get().c_str()); }
}

MOLT_MODULE("redis_ping", "1.0", "Apache-2.0", "PING answers a given text")
MOLT_PATCH(MOLT_PROGRAM(MOLT_REPLACE("pingCommand", new_ping)))
