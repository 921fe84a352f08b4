// One static of an inline function for the whole process: such a symbol keeps its library.
#include <molt/module.hpp>

inline int* counter() {
  static int value = 0;
  return &value;
}
int* use_counter() { return counter(); }

MOLT_MODULE("unique", "1", "MIT", "")
