// Functions of all shapes that compilers make, each redirected at run time by samples_test. All are
// pure, so that a wrong result shows.
#include "functions.h"

#define FN __attribute__((noinline))

static volatile long zero;
static long table[8] = {3, 1, 4, 1, 5, 9, 2, 6};

// Helpers, which are not redirected themselves.
FN static long twice(long a) { return a * 2 + zero; }
FN static long mix(long a, long b, long c, long d, long e, long f, long g, long h) {
  return a + 2 * b + 3 * c + 4 * d + 5 * e + 6 * f + 7 * g + 8 * h + zero;
}
static long (*volatile through)(long) = twice;

FN long first(long a, long b) { return (void)b, a; }
FN long constant(long a, long b) { return (void)a, (void)b, 7; }
FN long nothing(long a, long b) { return (void)a, (void)b, 0; }
FN long sum(long a, long b) { return a + b; }
FN long product(long a, long b) { return a * b; }
FN long from_memory(long a, long b) { return table[0] + a - b + zero; }
FN long from_table(long a, long b) { return table[a & 7] + table[b & 7]; }
FN long address_of(long a, long b) { return (long)(&table[a & 7] - table) + b; }
FN long branches_at_once(long a, long b) { return a > b ? a - b : twice(b) - a; }
FN long tests_and_returns(long a, long b) {
  if (a == 0) return b;
  return twice(a) + 1;
}
FN long calls_at_once(long a, long b) { return (void)b, twice(a) + 1; }
FN long tail_calls(long a, long b) { return (void)b, twice(a); }
FN long tail_calls_through(long a, long b) { return (void)b, through(a); }
FN long calls_through(long a, long b) { return through(a) + b; }
FN long many_arguments(long a, long b) { return mix(a, b, a, b, a, b, a, b) + 1; }
FN long saves_registers(long a, long b) {
  long x = twice(a), y = twice(b), z = twice(a + b), w = twice(a - b);
  return twice(x + y) + twice(z + w) + x * y + z * w;
}
FN long big_frame(long a, long b) {
  volatile long local[600];
  for (int i = 0; i < 600; ++i) local[i] = a + i;
  return local[(unsigned long)b % 600];
}
FN long counts(long a, long b) {
  long n = 0;
  for (unsigned long i = (unsigned long)a & 63; i != 0; --i) n += b ^ (long)i;
  return n;
}
FN long loops_from_the_start(long a, long b) {
  do {
    b += a & 3;
    a = (long)((unsigned long)a >> 1);
  } while (a != 0);
  return b;
}
FN long switches(long a, long b) {
  switch (a & 15) {
    case 0:
      return b + 3;
    case 1:
      return b * 5;
    case 2:
      return twice(b);
    case 3:
      return b - 7;
    case 4:
      return b ^ 0x55;
    case 5:
      return b | 0x10;
    case 6:
      return b & 0xff;
    case 9:
      return twice(b) + 9;
    case 11:
      return ~b;
    default:
      return a - b;
  }
}
FN long floats(long a, long b) { return (long)((double)(a & 0xffff) * 1.5 + (double)(b & 0xffff)); }
FN long vectors(long a, long b) {
  float x[16], y[16], n = 0;
  for (int i = 0; i < 16; ++i) x[i] = (float)((a >> i) & 7), y[i] = (float)((b >> i) & 7);
  for (int i = 0; i < 16; ++i) n += x[i] * y[i];
  return (long)n;
}
FN long allocates(long a, long b) {
  unsigned n = ((unsigned long)a & 31) + 1;
  volatile char* p = __builtin_alloca(n);
  for (unsigned i = 0; i < n; ++i) p[i] = (char)(b + i);
  return p[n - 1];
}
FN long narrow(long a, long b) { return (signed char)a + (unsigned short)b; }
FN long divides(long a, long b) { return a / ((b & 1023) + 1); }
FN long compares(long a, long b) { return (a < b) + 2 * (a == b) + 4 * ((unsigned long)a > 100); }
FN long shifts(long a, long b) { return (long)((unsigned long)a << (b & 63)); }
FN long logical(long a, long b) { return a && b; }
FN long returns_bool(long a, long b) { return !(a | b); }
FN long stores(long a, long b) {
  volatile long local = a;
  local += b;
  return local;
}
FN long unlikely_part(long a, long b) {
  if (__builtin_expect(a == 0x123456789, 0)) {
    through(b);
    return twice(b) + through(a);
  }
  return b + 1;
}
FN long nested(long a, long b) {
  for (int i = 0; i < 3; ++i)
    for (int j = 0; j < 3; ++j) a += i * j + b;
  return a;
}
FN long early_zero(long a, long b) { return zero + a + b; }
FN long negates(long a, long b) { return (void)b, -a; }
FN long recursive(long a, long b) { return (a & 7) == 0 ? b : recursive((a & 7) - 1, b + 1) + 2; }

#ifdef MORE_SHAPES
// What compilers seldom make.
#define ASM(name, body)                                                           \
  __asm__(".text\n.p2align 4\n.globl " #name "\n.hidden " #name "\n.type " #name  \
          ", @function\n" #name ":\n" body "\n.size " #name ", . - " #name "\n"); \
  long name(long, long);
ASM(jrcxz_first, "mov %rdi, %rcx\n jrcxz 1f\n lea 3(%rdi), %rax\n ret\n1: lea 5(%rsi), %rax\n ret")
ASM(loop_early, "push $3\n pop %rcx\n mov %rdi, %rax\n1: add %rsi, %rax\n loop 1b\n ret")
ASM(short_jumps, "test %edi, %edi\n je 1f\n lea 1(%rsi), %rax\n ret\n1: lea 9(%rsi), %rax\n ret")
ASM(jumps_at_once, "jmp 1f\n .skip 40, 0x90\n1: lea 77(%rdi), %rax\n ret")
ASM(long_nop, ".byte 0x0f,0x1f,0x44,0x00,0x00\n lea 78(%rdi,%rsi), %rax\n ret")
ASM(immediate_to_memory, "movq $5, -8(%rsp)\n mov -8(%rsp), %rax\n add %rdi, %rax\n ret")
ASM(compares_memory,
    "cmpl $0, zero_word(%rip)\n jne 1f\n lea 79(%rdi), %rax\n ret\n1: xor %eax, %eax\n ret")
__asm__(".bss\n.p2align 3\nzero_word: .quad 0\n.text\n");
ASM(crosses_line, "lea 80(%rdi), %rax\n ret")
// An entry two bytes before the end of a cache line, and of a page.
__asm__(
    ".text\n.p2align 12\n.skip 4096 - 2, 0xcc\n.globl crosses_page\n.hidden crosses_page\n"
    ".type crosses_page, @function\ncrosses_page: push %rbx\n mov %rdi, %rbx\n"
    " lea 81(%rbx,%rsi), %rax\n pop %rbx\n ret\n.size crosses_page, . - crosses_page\n"
    ".p2align 6\n.skip 62, 0xcc\n.globl crosses_cache_line\n.hidden crosses_cache_line\n"
    ".type crosses_cache_line, @function\ncrosses_cache_line: push %rbx\n mov %rdi, %rbx\n"
    " lea 82(%rbx,%rsi), %rax\n pop %rbx\n ret\n"
    ".size crosses_cache_line, . - crosses_cache_line\n"
    // Prepared, the two bytes on two lines, on two pages.
    ".p2align 6\n.skip 58, 0xcc\n.byte 0x90,0x90,0x90,0x90,0x90\n"
    ".globl prepared_crosses_line\n.hidden prepared_crosses_line\n"
    ".type prepared_crosses_line, @function\nprepared_crosses_line: nop\n nop\n"
    " lea 83(%rdi,%rsi), %rax\n ret\n.size prepared_crosses_line, . - prepared_crosses_line\n"
    ".p2align 12\n.skip 4096 - 6, 0xcc\n.byte 0x90,0x90,0x90,0x90,0x90\n"
    ".globl prepared_crosses_page\n.hidden prepared_crosses_page\n"
    ".type prepared_crosses_page, @function\nprepared_crosses_page: nop\n nop\n"
    " lea 84(%rdi,%rsi), %rax\n ret\n.size prepared_crosses_page, . - prepared_crosses_page\n"
    // Three bytes with no room behind and room in front.
    ".p2align 4\n.byte 0x90,0x90,0x90,0x90,0x90,0x90\n.globl short_with_front\n"
    ".hidden short_with_front\n.type short_with_front, @function\n"
    "short_with_front: mov %edi, %eax\n ret\n.size short_with_front, . - short_with_front\n"
    ".globl right_behind\n.hidden right_behind\n.type right_behind, @function\n"
    "right_behind: lea 85(%rdi,%rsi), %rax\n ret\n.size right_behind, . - right_behind\n");
long crosses_page(long, long), crosses_cache_line(long, long), prepared_crosses_line(long, long),
    prepared_crosses_page(long, long), short_with_front(long, long), right_behind(long, long);
#endif

#define S(name) \
  { #name, name, 0 }
const struct sample samples[] = {
    S(first),
    S(constant),
    S(nothing),
    S(sum),
    S(product),
    S(from_memory),
    S(from_table),
    S(address_of),
    S(branches_at_once),
    S(tests_and_returns),
    S(calls_at_once),
    S(tail_calls),
    S(tail_calls_through),
    S(calls_through),
    S(many_arguments),
    S(saves_registers),
    S(big_frame),
    S(counts),
    S(loops_from_the_start),
    S(switches),
    S(floats),
    S(vectors),
    S(allocates),
    S(narrow),
    S(divides),
    S(compares),
    S(shifts),
    S(logical),
    S(returns_bool),
    S(stores),
    S(unlikely_part),
    S(nested),
    S(early_zero),
    S(negates),
    {"recursive", recursive, 1},
#ifdef MORE_SHAPES
    S(jrcxz_first),
    S(loop_early),
    S(short_jumps),
    S(jumps_at_once),
    S(long_nop),
    S(immediate_to_memory),
    S(compares_memory),
    S(crosses_line),
    S(crosses_page),
    S(crosses_cache_line),
    S(prepared_crosses_line),
    S(prepared_crosses_page),
    S(short_with_front),
    S(right_behind),
#endif
    {0, 0, 0},
};
