// direct.hpp - the sixteen callbacks as plain functions, linked into the program itself.
//
// They lie in a file of their own and nothing is optimised across files, so that the compiler sees
// as little of them at a call as it sees of a module's callback: one call each, no inlining. Called
// by name they are the floor: no program that calls these functions in order can be faster.
#pragma once

#include "points.hpp"

namespace bench {

using Callback = int(const Request*);
extern Callback direct_0, direct_1, direct_2, direct_3, direct_4, direct_5, direct_6, direct_7,
    direct_8, direct_9, direct_10, direct_11, direct_12, direct_13, direct_14, direct_15;

inline constexpr Callback* direct[longest_chain] = {
    direct_0, direct_1, direct_2,  direct_3,  direct_4,  direct_5,  direct_6,  direct_7,
    direct_8, direct_9, direct_10, direct_11, direct_12, direct_13, direct_14, direct_15};

// The array loop's data: found anew in memory in every round, as in a program that changes it.
struct CallbackArray {
  Callback* const* callbacks;
  unsigned count;
};
extern CallbackArray callback_array[longest_chain + 1];
// The callbacks of the modules, once they are loaded.
extern Callback* module_callbacks[longest_chain];

}  // namespace bench
