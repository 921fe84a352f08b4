// A library whose only name for one function is in .gnu_debugdata, as distributions strip them.
extern "C" {
static __attribute__((noipa, used)) int lp_hidden(int argument) {
  asm volatile("" : "+r"(argument));
  return argument * 3 + 1;
}
__attribute__((visibility("default"))) int lp_plugin_answer();
}
int lp_plugin_answer() {
  const int answer = lp_hidden(0);
  asm volatile("");
  return answer;
}
