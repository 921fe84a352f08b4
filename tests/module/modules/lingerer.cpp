// Code that stays: a function that does not return until the test lets it, called by whoever.
#include <molt/module.hpp>

#include "../board.hpp"
#include "../lingering.hpp"

// Not a tail call: its frame has to stay.
extern "C" __attribute__((noinline)) void* linger(void* argument) {
  auto& stay = *static_cast<Lingering*>(argument);
  stay.arrive();
  stay.wait();
  stay.leave();
  return nullptr;
}

static int start() {
  ++board().inits;
  lingering().run.store(linger, std::memory_order_release);
  return 0;
}
static void finish() {
  ++board().exits;
  // The forgotten pointer is not this test's subject.
  lingering().run.store(nullptr, std::memory_order_release);
}

MOLT_MODULE("lingerer", "1", "Apache-2.0", "has a function that stays")
MOLT_INIT(start)
MOLT_EXIT(finish)
