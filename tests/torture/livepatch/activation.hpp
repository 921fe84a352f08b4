// activation.hpp - what the program and its patches share: functions that call each other, and what a
// thread notes of them.
//
// An activation is what lies between the call of a patched function that no other one is under, and its
// return. All versions that are met in it must be one: the thread changes over between activations.
#pragma once

#include <atomic>
#include <cstdint>

#define LPT_TARGET extern "C" __attribute__((noipa, used, visibility("default")))

namespace livepatch_torture {

// Of one thread, in the program's memory; a signal handler on it saves and restores what it changes.
struct Note {
  int depth = 0;    // patched functions under way
  int version = 0;  // of the activation
  std::uint32_t epoch = 0;
  bool is_mixed = false;
  std::uint64_t random = 1;
  // Stays in the function for a while; which way, and how long, is random.
  void (*linger)(Note& note) = nullptr;
  // Forced transitions mix by intention: what began in another epoch is not looked at.
  const std::atomic<std::uint32_t>* epochs = nullptr;

  std::uint64_t next_random() {
    random ^= random << 13;
    random ^= random >> 7;
    random ^= random << 17;
    return random;
  }
  bool chance(unsigned one_in) { return next_random() % one_in == 0; }

  void enter(int met) {
    if (depth++ == 0) {
      version = met;
      return;
    }
    if (met != version && (epoch & 1) == 0 && epochs->load(std::memory_order_seq_cst) == epoch) {
      is_mixed = true;
    }
  }
  void leave() { --depth; }
};

}  // namespace livepatch_torture

// Each is patched by each patch.
LPT_TARGET void lpt_outer(livepatch_torture::Note* note);
LPT_TARGET void lpt_middle(livepatch_torture::Note* note);
LPT_TARGET void lpt_inner(livepatch_torture::Note* note);

namespace livepatch_torture {

// The bodies, the same for all versions. The empty assembly keeps the frames: no call is the last thing.
template <int version>
[[gnu::always_inline]] inline void inner(Note* note) {
  note->enter(version);
  if (note->chance(8)) note->linger(*note);
  note->leave();
  asm volatile("" ::: "memory");
}
template <int version>
[[gnu::always_inline]] inline void middle(Note* note) {
  note->enter(version);
  lpt_inner(note);
  note->linger(*note);
  lpt_inner(note);
  note->leave();
  asm volatile("" ::: "memory");
}
template <int version>
[[gnu::always_inline]] inline void outer(Note* note) {
  note->enter(version);
  lpt_inner(note);
  if (note->depth < 4 && note->chance(3)) lpt_outer(note);
  lpt_middle(note);
  note->linger(*note);
  lpt_inner(note);
  note->leave();
  asm volatile("" ::: "memory");
}

}  // namespace livepatch_torture
