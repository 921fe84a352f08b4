#pragma once

#include "points.hpp"

using Callback = int (*)(Context*);
int direct_0(Context*);
int direct_1(Context*);
int direct_2(Context*);
int direct_3(Context*);
int direct_4(Context*);
int direct_5(Context*);
int direct_6(Context*);
int direct_7(Context*);
int direct_8(Context*);
int direct_9(Context*);
int direct_10(Context*);
int direct_11(Context*);
int direct_12(Context*);
int direct_13(Context*);
int direct_14(Context*);
int direct_15(Context*);

inline constexpr Callback direct_callbacks[16] = {
    direct_0, direct_1, direct_2,  direct_3,  direct_4,  direct_5,  direct_6,  direct_7,
    direct_8, direct_9, direct_10, direct_11, direct_12, direct_13, direct_14, direct_15};

// The first n of them by direct calls, stopping at the first refusal: the floor.
template <int k, int n>
[[gnu::always_inline]] inline int call_direct(Context* context) {
  if constexpr (k == n) {
    return 0;
  } else {
    if (int result = direct_callbacks[k](context)) return result;
    return call_direct<k + 1, n>(context);
  }
}
