// empty_sites.hpp - 512 different hooks, all empty, one after the other.
#pragma once

#include "points.hpp"

namespace bench {

inline constexpr unsigned empty_sites = 512;
// Each file of sites holds so many, in functions of so many.
inline constexpr unsigned sites_a_file = 128;
inline constexpr unsigned sites_a_function = 32;

// Run all sites of one file, with their hooks or without.
using SiteRun = int(Request*);
extern SiteRun with_hooks_0, with_hooks_128, with_hooks_256, with_hooks_384;
extern SiteRun without_hooks_0, without_hooks_128, without_hooks_256, without_hooks_384;

}  // namespace bench
