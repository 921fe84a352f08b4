/* A library with one function, NAME, of version 1. Built twice, into two libraries. */
__attribute__((noipa, visibility("default"))) long NAME(void) {
  __asm__ volatile("");
  return 1;
}
