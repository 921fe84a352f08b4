// points.hpp - what the host of these tests offers.
#pragma once

#include <molt/hook_point.hpp>

struct ask_point : molt::hook_point<int(int)> {
  static constexpr const char* name = "app/ask";
};
