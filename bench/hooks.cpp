#include "hooks.hpp"

namespace bench {

molt::hook<chain1_point> chain1;
molt::hook<chain1_rare_point> chain1_rare;
molt::hook<chain4_point> chain4;
molt::hook<chain8_point> chain8;
molt::hook<chain16_point> chain16;
molt::hook<empty_point> empty;
molt::hook<empty_filled_point> empty_filled;
molt::hook<sleep_point> sleep_here;
molt::hook<busy_point> busy;

}  // namespace bench
