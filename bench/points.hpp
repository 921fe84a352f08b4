// points.hpp - the hook points of molt-bench: what it shares with the modules in bench/modules.
#pragma once

#include <molt/hook_point.hpp>

#include <atomic>
#include <cstdint>

namespace bench {

// What every callback gets. Each caller has one of its own: nothing in it is shared by threads.
struct alignas(64) Request {
  // Bit K set: callback K objects.
  std::uint64_t objections = 0;
  // For sleep_point: how long to stay inside, and whether the callback is there now.
  unsigned sleep_ms = 0;
  std::atomic<int> inside{0};
  // For sleep_point: where `leaver` shall write the time at which its exit() begins.
  std::int64_t* exit_began = nullptr;
};

// The callbacks whose calls are timed: as cheap as a callback can be, so that what is measured is
// the way to it. Both the modules and the direct calls are made of this one.
template <unsigned K>
inline int object(const Request* request) {
  return static_cast<int>(request->objections & (1u << K));
}
inline constexpr unsigned longest_chain = 16;

// Chains of 1, 4, 8 and 16 callbacks, each of a module of its own. They combine as security hooks
// do: the first callback that objects ends the walk.
struct ChainPoint : molt::hook_point<int(const Request*)> {
  static constexpr int default_result = 0;
};
// Those that are said to be nearly always filled; `chain1_rare` and `empty` are said to be empty.
struct FilledPoint : ChainPoint {
  static constexpr bool mostly_empty = false;
};
struct chain1_point : FilledPoint {
  static constexpr const char* name = "bench.chain1";
};
struct chain4_point : FilledPoint {
  static constexpr const char* name = "bench.chain4";
};
struct chain8_point : FilledPoint {
  static constexpr const char* name = "bench.chain8";
};
struct chain16_point : FilledPoint {
  static constexpr const char* name = "bench.chain16";
};
struct chain1_rare_point : ChainPoint {
  static constexpr const char* name = "bench.chain1_rare";
};
// Nothing is ever attached to these.
struct empty_point : ChainPoint {
  static constexpr const char* name = "bench.empty";
};
struct empty_filled_point : FilledPoint {
  static constexpr const char* name = "bench.empty_filled";
};
// `leaver` and the other modules that come and go are attached here.
struct sleep_point : molt::hook_point<void(Request*)> {
  static constexpr const char* name = "bench.sleep";
};
struct busy_point : ChainPoint {
  static constexpr const char* name = "bench.busy";
};

}  // namespace bench
