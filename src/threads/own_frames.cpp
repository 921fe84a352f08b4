#include "threads/own_frames.hpp"

#include <fcntl.h>
#include <pthread.h>
#include <unistd.h>
#include <unwind.h>

#include <atomic>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "base/own_fd.hpp"
#include "threads/own_thread.hpp"

namespace molt::threads {
namespace {

struct Walk {
  const RangeSet& ranges;
  bool is_out = true;
  std::uintptr_t outermost = 0;  // canonical frame address of the last frame
};

_Unwind_Reason_Code step(_Unwind_Context* context, void* argument) {
  Walk& walk = *static_cast<Walk*>(argument);
  int is_signal_frame = 0;
  const std::uintptr_t pc = _Unwind_GetIPInfo(context, &is_signal_frame);
  walk.outermost = _Unwind_GetCFA(context);
  // A call may be the last instruction of its function: where it returns to is then beyond.
  if (walk.ranges.contains(pc) || (!is_signal_frame && walk.ranges.contains(pc - 1))) {
    walk.is_out = false;
    return _URC_NORMAL_STOP;
  }
  return _URC_NO_REASON;
}

// The stack pointer that the kernel gave to the program: field 28 of /proc/self/stat.
std::uintptr_t first_stack_pointer() {
  const OwnFd fd = own_open("/proc/self/stat", O_RDONLY);
  char text[1024];
  const ssize_t n = fd ? read(fd.get(), text, sizeof text - 1) : -1;
  if (n <= 0) return 0;
  text[n] = '\0';
  char* at = std::strrchr(text, ')');
  for (int field = 2; at != nullptr && field < 28; ++field) at = std::strchr(at + 1, ' ');
  return at != nullptr ? std::strtoull(at, nullptr, 10) : 0;
}

}  // namespace

namespace {

// How far below its thread pointer the first frame of a thread of pthread_create() begins: the same in
// all threads, but not told by anybody. So one is asked.
void* measure(void* result) {
  const RangeSet none;
  Walk walk{none};
  if (_Unwind_Backtrace(step, &walk) == _URC_END_OF_STACK) {
    const auto descriptor = reinterpret_cast<std::uintptr_t>(__builtin_thread_pointer());
    *static_cast<std::uintptr_t*>(result) = descriptor - walk.outermost;
  }
  return nullptr;
}

std::uintptr_t first_frame_distance() {
  static std::atomic<std::uintptr_t> known{0};
  std::uintptr_t distance = known.load(std::memory_order_relaxed);
  if (distance != 0) return distance;
  const auto thread = start_thread("molt-frames", default_stack, measure, &distance);
  if (!thread) return 0;
  pthread_join(*thread, nullptr);
  known.store(distance, std::memory_order_relaxed);
  return distance;
}

}  // namespace

bool own_frames_are_out(const RangeSet& ranges) {
  // First, and whatever is found: who asks later may hold the loader's lock, and is to start no thread.
  const std::uintptr_t distance = first_frame_distance();
  Walk walk{ranges};
  if (_Unwind_Backtrace(step, &walk) != _URC_END_OF_STACK || !walk.is_out) return false;
  // It may have ended because nothing is known of a frame: only at the stack's very top is it over.
  const auto descriptor = reinterpret_cast<std::uintptr_t>(__builtin_thread_pointer());
  if (distance != 0 && descriptor - walk.outermost == distance) return true;
  constexpr std::uintptr_t slack = 512;
  const std::uintptr_t first = first_stack_pointer();
  return first != 0 && walk.outermost + slack > first && walk.outermost < first + slack;
}

}  // namespace molt::threads
