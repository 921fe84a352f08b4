// torture.hpp - what the torture's host and its modules share.
#pragma once

#include <molt/hook_point.hpp>

#include <atomic>
#include <cstdint>

namespace torture {

inline constexpr int lineages = 4;                // modules that come and go
inline constexpr int first_anchor = lineages;     // always there, always called first
inline constexpr int last_anchor = lineages + 1;  // always there, always called last
inline constexpr int members = lineages + 2;

// Threads that a module starts, as bits of its parameter.
inline constexpr unsigned counted_thread = 1;    // by molt_thread_start()
inline constexpr unsigned forgotten_thread = 2;  // by itself, and detached

// One loaded version of one module. In the host's memory, for ever: what a callback reports is
// believed even if its module should not be there any more.
struct Instance {
  enum State : int { coming, live, exited, unloaded };
  std::atomic<int> state{coming};
  std::atomic<int> inside{0};
  int lineage = 0;
  std::uint64_t id = 0;  // grows with every load of this lineage
};

// One invocation of a hook.
struct Call {
  struct Step {
    int lineage;
    std::uint64_t id;
  };
  Step steps[2 * members] = {};  // no hole for stale words
  int count = 0;
  int stop_at = -1;      // the lineage whose callback ends the walk
  std::uint64_t random;  // for delays
  int depth = 0;
  void (*nested)(Call& outer) = nullptr;
  const char* violation = nullptr;
  // The newest version of each lineage that this thread has seen so far, in any invocation.
  std::uint64_t* seen = nullptr;

  std::uint64_t next_random() {
    random ^= random << 13;
    random ^= random >> 7;
    random ^= random << 17;
    return random;
  }
};

template <int n>
struct Point;
template <>
struct Point<0> : molt::hook_point<int(Call&)> {
  static constexpr const char* name = "torture.0";
  static constexpr int default_result = 0;
};
template <>
struct Point<1> : molt::hook_point<int(Call&)> {
  static constexpr const char* name = "torture.1";
  static constexpr int default_result = 0;
};

}  // namespace torture
