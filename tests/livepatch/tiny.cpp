// A function that is shorter than a jump, with nothing but NOPs behind it.
asm(R"(
        .text
        .p2align 4
        .globl lp_plugin_answer
        .type lp_plugin_answer, @function
lp_plugin_answer:
        push $1
        pop %rax
        ret
        .size lp_plugin_answer, . - lp_plugin_answer
        .p2align 4
        .type lp_without_a_name, @function
lp_without_a_name:
        ret
        .size lp_without_a_name, . - lp_without_a_name
)");
