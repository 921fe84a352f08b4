// opens.hpp - the functions by which any program opens files. What a program has no hook points for can
// be hooked all the same: these modules load into nginx or redis as they come from Debian.
#pragma once

#include <molt/function.hpp>

#include <cerrno>

namespace opens {

// A policy that fails must not let through what it was put there to stop.
struct open_file : molt::function<int(const char* path, int flags, unsigned mode)> {
  static constexpr const char* name = "libc.so.6:open64";
  static constexpr const char* after = "libc.so.6:open64:after";
  static constexpr auto on_exception = molt::refuse(-1, EACCES);
};

struct open_below : molt::function<int(int directory, const char* path, int flags, unsigned mode)> {
  static constexpr const char* name = "libc.so.6:openat64";
  static constexpr const char* after = "libc.so.6:openat64:after";
  static constexpr auto on_exception = molt::refuse(-1, EACCES);
};

}  // namespace opens
