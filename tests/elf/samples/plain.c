int answer = 42;
static int uses;

__attribute__((weak)) int optional(void);
int weakly_defined(void) __attribute__((weak));
int weakly_defined(void) { return answer; }
__attribute__((visibility("hidden"))) int hidden_function(void) { return ++uses; }

void touch(void) {
  hidden_function();
  if (optional) optional();
}
