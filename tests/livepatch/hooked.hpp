// A hook of the test program.
#pragma once

#include <molt/hook_point.hpp>

struct lp_point : molt::hook_point<int(int)> {
  static constexpr const char* name = "lp/point";
};
