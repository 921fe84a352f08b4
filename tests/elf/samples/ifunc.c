static int chosen(void) { return 1; }
static int (*choose(void))(void) { return chosen; }
int pick(void) __attribute__((ifunc("choose")));

void touch(void) { pick(); }
