// A module with a callback on every rule's hook; each asks the board. NAME, VERSION and ORDER come
// from the build.
#include <molt/module.hpp>

#include "../board.hpp"
#include "../points.hpp"

MOLT_PARAM(int, epoch, 0, "told to the board", 0)

template <class Point>
static int on(int argument) {
  const auto& call = board().call;
  return call ? call({NAME, VERSION, Point::name, argument, epoch.get()}) : argument;
}
template <class Point>
static void on_void(int argument) {
  on<Point>(argument);
}

MOLT_MODULE(NAME, "1", "Apache-2.0", "a module under test")
MOLT_HOOK(all_point, on_void<all_point>, ORDER)
MOLT_HOOK(first_point, on<first_point>, ORDER)
MOLT_HOOK(first_7_point, on<first_7_point>, ORDER)
MOLT_HOOK(unanimous_point, on<unanimous_point>, ORDER)
MOLT_HOOK(last_point, on<last_point>, ORDER)
MOLT_HOOK(only_first_point, on<only_first_point>, ORDER)
MOLT_HOOK(by_name_point, on<by_name_point>, ORDER)
MOLT_HOOK(open_point, on<open_point>, ORDER)
MOLT_HOOK(closed_point, on<closed_point>, ORDER)
MOLT_HOOK(void_closed_point, on_void<void_closed_point>, ORDER)
