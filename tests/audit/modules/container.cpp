// Has a static list, too long for it to be told who refers to its nodes; the destructor frees them.
#include <molt/module.hpp>

#include <list>

static std::list<int> numbers;

static int start() {
  for (int i = 0; i < 500; ++i) numbers.push_back(i);
  return 0;
}

MOLT_MODULE("container", "1", "Apache-2.0", "a module under test")
MOLT_INIT(start)
MOLT_EXIT([] {})
