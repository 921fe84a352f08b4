// visitor.hpp - what quarantine_host.cpp asks of modules/visited.cpp.
#pragma once

#include <molt/hook_point.hpp>

enum class Wish { block, function, leak };
struct visitor_point : molt::hook_point<void*(Wish wish)> {
  static constexpr const char* name = "test.visitor";
  static constexpr void* default_result = nullptr;
};
