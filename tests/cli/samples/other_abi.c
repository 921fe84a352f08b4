/* As a module of a later Molt would look. */
#include <molt/module.h>

MOLT_NOTE_("name=other_abi")
MOLT_NOTE_("magic=molt-9 x86_64 ")
struct molt_module molt_this_module = {.size = sizeof(struct molt_module), .abi = 9};
