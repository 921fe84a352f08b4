// What the conformance host and its probe modules share.
#pragma once

#include <molt/hook_point.hpp>

#include <cerrno>

// Asks one probe module, by its name, to do something beside its life: "thread" starts a thread of
// the module, "stop" lets that thread end.
struct control_point : molt::hook_point<int(const char* verb)> {
  static constexpr const char* name = "conformance.control";
  static constexpr int default_result = -EOPNOTSUPP;
  static constexpr auto rule = molt::combine::by_name;
};
