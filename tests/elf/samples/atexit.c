#include <stdlib.h>

static void bye(void) {}

void touch(void) { atexit(bye); }
