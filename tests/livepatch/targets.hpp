// The functions of the test program that patches replace. All answer their version: 1 for the
// program's own.
#pragma once

#include <atomic>
#include <cstdint>

#define LP_TARGET extern "C" __attribute__((noipa, used, visibility("default")))

// Set by the test, read by old and new versions alike.
struct Shared {
  std::atomic<std::uint32_t> hold{0};      // lp_sleeper sleeps while this is 1
  std::atomic<std::uint32_t> inside{0};    // threads in lp_sleeper
  std::atomic<void*> returns_to{nullptr};  // of the new lp_keeps
  std::atomic<int (*)()> calls{nullptr};   // once, from inside lp_sleeper when it wakes
  std::atomic<int> called{0};              // what that answered
};
extern "C" __attribute__((visibility("default"))) Shared lp_shared;

LP_TARGET int lp_answer(int argument);
LP_TARGET int lp_answer_too(int argument) noexcept;  // the same function
// Patched by one test alone: an entry is compared with the file's when it is patched first.
LP_TARGET int lp_untouched(int argument);
// Built with room for a jump: -fpatchable-function-entry=8,6.
LP_TARGET int lp_prepared();
// Calls lp_inner twice with time in between: all three must be of one version.
LP_TARGET int lp_outer(int depth);
LP_TARGET int lp_inner();
// Sleeps in the program's own wait until the test lets it go.
LP_TARGET int lp_sleeper();
LP_TARGET void lp_wait_while_held();
// As lp_sleeper, and whether the word that it returns by is what it was: 1 if so, else -1.
LP_TARGET int lp_keeps();
