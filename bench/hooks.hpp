// hooks.hpp - the hooks of molt-bench, defined in hooks.cpp: declared in a header and called from
// several files, as in any host.
#pragma once

#include <molt/host.hpp>

#include "points.hpp"

namespace bench {

extern molt::hook<chain1_point> chain1;
extern molt::hook<chain1_rare_point> chain1_rare;
extern molt::hook<chain4_point> chain4;
extern molt::hook<chain8_point> chain8;
extern molt::hook<chain16_point> chain16;
extern molt::hook<empty_point> empty;
extern molt::hook<empty_filled_point> empty_filled;
extern molt::hook<sleep_point> sleep_here;
extern molt::hook<busy_point> busy;

}  // namespace bench
