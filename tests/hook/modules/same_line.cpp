// 40 callbacks on one hook that stand on one line, as a module's own macro writes them.
#include <molt/module.hpp>

#include "../board.hpp"
#include "../points.hpp"

template <int N>
static void nth(int) {
  if (board().call) board().call({"same_line", 1, many_point::name, N, 0});
}

#define FOUR(n)                     \
  MOLT_HOOK(many_point, nth<n>)     \
  MOLT_HOOK(many_point, nth<n + 1>) \
  MOLT_HOOK(many_point, nth<n + 2>) MOLT_HOOK(many_point, nth<n + 3>)

MOLT_MODULE("same_line", "1", "Apache-2.0", "callbacks without an order of their own")
FOUR(0) FOUR(4) FOUR(8) FOUR(12) FOUR(16) FOUR(20) FOUR(24) FOUR(28) FOUR(32) FOUR(36)
