// With symbols_too.c: names that occur more than once, and one of each kind of symbol.
#define KEPT __attribute__((noinline, used))

#ifdef MOVED
KEPT int before(int x) { return x - 1; }
#endif
static KEPT int twice(int x) { return x * 3 + 1; }
static KEPT int once(int x) { return twice(x) + 2; }
static int counter = 7;
static __thread int per_thread = 5;
int shared = 11;

int twice_too(int x);
void* twice_too_address(void);

// What the loader and the compiler say, for comparison.
void* address_of(int which) {
  switch (which) {
    case 0:
      return (void*)&once;
    case 1:
      return (void*)&twice;
    case 2:
      return twice_too_address();
    case 3:
      return &counter;
    default:
      return &shared;
  }
}

int use(int x) {
  per_thread += x;
  return once(x) + twice_too(x) + counter + per_thread;
}

static int chosen_one(int x) { return x + 1; }
static int (*choose(void))(int) { return chosen_one; }
int chosen(int x) __attribute__((ifunc("choose")));

KEPT int versioned_old(int x) { return x + 1; }
KEPT int versioned_new(int x) { return x + 2; }
__asm__(".symver versioned_old, versioned@MOLT_1");
__asm__(".symver versioned_new, versioned@@MOLT_2");

// As hand-written code often is: without type and size.
__asm__(
    ".text\n"
    "unsized:\n"
    "  nop\n  nop\n  nop\n  nop\n  ret\n"
    ".globl alias_of_shared\n"
    ".set alias_of_shared, shared\n");
