// What host and module share.
#pragma once

#include <molt/hook_point.hpp>

struct greeting_point : molt::hook_point<int(int hour)> {
  static constexpr const char* name = "greeter.greeting";
  static constexpr int default_result = 0;
};
