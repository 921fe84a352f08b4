// points.hpp - the hook points of the test programs: one for each rule, and what goes with it.
#pragma once

#include <molt/hook_point.hpp>

#include <cerrno>

#include "task.hpp"

// The rule of a void hook: all.
struct all_point : molt::hook_point<void(int)> {
  static constexpr const char* name = "hook.all";
};
// The rule of a hook with a result: first; the default: a value-initialised one.
struct first_point : molt::hook_point<int(int)> {
  static constexpr const char* name = "hook.first";
};
struct first_7_point : molt::hook_point<int(int)> {
  static constexpr const char* name = "hook.first_7";
  static constexpr int default_result = 7;
};
struct unanimous_point : molt::hook_point<int(int)> {
  static constexpr const char* name = "hook.unanimous";
  static constexpr int default_result = 5;
  static constexpr auto rule = molt::combine::unanimous;
};
struct last_point : molt::hook_point<int(int)> {
  static constexpr const char* name = "hook.last";
  static constexpr int default_result = -EOPNOTSUPP;
  static constexpr auto rule = molt::combine::last;
};
struct only_first_point : molt::hook_point<int(int)> {
  static constexpr const char* name = "hook.only_first";
  static constexpr int default_result = 9;
  static constexpr auto rule = molt::combine::only_first;
};
struct by_name_point : molt::hook_point<int(int)> {
  static constexpr const char* name = "hook.by_name";
  static constexpr int default_result = 9;
  static constexpr auto rule = molt::combine::by_name;
};

struct open_point : molt::hook_point<int(int)> {
  static constexpr const char* name = "hook.open";
  static constexpr int default_result = 3;
};
struct closed_point : molt::hook_point<int(int)> {
  static constexpr const char* name = "hook.closed";
  static constexpr int default_result = 3;
  static constexpr auto on_exception = molt::fail_closed(-EACCES);
};
struct void_closed_point : molt::hook_point<void(int)> {
  static constexpr const char* name = "hook.void_closed";
  static constexpr auto on_exception = molt::fail_closed(0);
};

// Many callbacks of one module.
struct many_point : molt::hook_point<void(int)> {
  static constexpr const char* name = "hook.many";
};
// Callbacks that are coroutines.
struct task_point : molt::hook_point<Task(int)> {
  static constexpr const char* name = "hook.task";
};
