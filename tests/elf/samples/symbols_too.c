#define KEPT __attribute__((noinline, used))

static KEPT int twice(int x) { return x * 5 + 2; }
int twice_too(int x) { return twice(x); }
void* twice_too_address(void) { return (void*)&twice; }
