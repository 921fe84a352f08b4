// svg.hpp - the picture of a transition: how many threads were where, over time.
#pragma once

#include "cli/failure.hpp"

#include <string>

namespace molt::cli {

// `history` as in the reply to molt.Patches.
std::string transition_svg(const Json& history);

}  // namespace molt::cli
