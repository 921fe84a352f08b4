// A library with functions that are hard to name or to redirect: a static one, whose name is in .gnu_debugdata
// alone in one build, as distributions strip (lp_hidden), and is another function's too in the other (lp_twins,
// of two such files); and one with a loop to behind its first instruction.
#ifndef LP_TWIN
#define LP_TWIN lp_plugin_answer
#endif

extern "C" {
static __attribute__((noipa, used)) int lp_hidden(int argument) {
  asm volatile("" : "+r"(argument));
  return argument * 3 + 1;
}
__attribute__((visibility("default"))) int LP_TWIN();
}
int LP_TWIN() {
  const int answer = lp_hidden(0);
  asm volatile("");
  return answer;
}

#ifndef LP_SECOND
asm(R"(
        .text
        .p2align 4
        .globl lp_branches_back
        .type lp_branches_back, @function
lp_branches_back:
        xor %eax, %eax
1:      inc %eax
        cmp $1, %eax
        jl 1b
        ret
        .size lp_branches_back, . - lp_branches_back
)");
#endif
