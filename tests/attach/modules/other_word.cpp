// A livepatch for the program sleeper.
#include <molt/livepatch.hpp>

extern "C" {
static const char* new_word() { return "patched"; }
}

MOLT_MODULE("other_word", "1", "Apache-2.0", "says another word")
MOLT_PATCH(MOLT_PROGRAM(MOLT_REPLACE("word", new_word)))
