// A livepatch for redis-server as Debian ships it: ECHO answers what the operator wrote instead of what
// the client sent. Nothing of redis is needed to build it: the program exports both functions.
//
//     molt apply -p PID redis_echo.so answer=maintenance
//     redis-cli echo hello                                  # maintenance
//     molt revert -p PID redis_echo
#include <molt/livepatch.hpp>

struct client;  // redis's
extern "C" void addReplyStatus(client* c, const char* status);

MOLT_PARAM(std::string, answer, "patched", "what ECHO answers", 0)

extern "C" {
static void new_echo(client* c) { addReplyStatus(c, answer.get().c_str()); }
}

MOLT_MODULE("redis_echo", "1.0", "Apache-2.0", "ECHO answers a given text")
MOLT_PATCH(MOLT_PROGRAM(MOLT_REPLACE("echoCommand", new_echo)))
