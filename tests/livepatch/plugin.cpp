// A library that the test program loads and unloads itself. What its constructor and destructor see of
// its own function goes into the program's transcript.
#include "plugin.hpp"

#define LP_PLUGIN extern "C" __attribute__((noipa, used, visibility("default")))

LP_PLUGIN int lp_plugin_answer() {
  asm volatile("");
  return 1;
}
#ifdef LP_PLUGIN_BROKEN
extern "C" int lp_nowhere_defined();
LP_PLUGIN int lp_plugin_broken() { return lp_nowhere_defined(); }
#endif

#ifndef LP_PLUGIN_BARE
namespace {
struct Witness {
  Witness() {
    lp_note("constructor", lp_plugin_answer());
    lp_plugin_wait();
  }
  ~Witness() { lp_note("destructor", lp_plugin_answer()); }
} witness;
}  // namespace
#endif
