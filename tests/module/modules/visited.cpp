// A module that leaves behind what sanitizers report when it is long unloaded.
#include <molt/module.hpp>

#include "../visitor.hpp"

static long* volatile only_one;
static int visits;

static void greet_visitor() { ++visits; }

static void* remember_visitor(Wish wish) {
  switch (wish) {
    case Wish::function:
      return reinterpret_cast<void*>(&greet_visitor);
    case Wish::leak:
      only_one = new long[12];
      return nullptr;
    case Wish::block:
      break;
  }
  return new long(visits);
}

MOLT_MODULE("visited", "1", "Apache-2.0", "leaves things behind")
MOLT_HOOK(visitor_point, remember_visitor)
