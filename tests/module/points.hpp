// points.hpp - the hook points of the test programs.
#pragma once

#include <molt/hook_point.hpp>

// Answers which module was called; 0: none.
struct probe_point : molt::hook_point<int(int argument)> {
  static constexpr const char* name = "test.probe";
  static constexpr int default_result = 0;
};
