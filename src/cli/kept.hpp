// kept.hpp - says of a module that was unloaded that its memory stays, why, and what frees it.
#pragma once

#include "cli/targets.hpp"

#include <string>
#include <string_view>

namespace molt::cli {

// reply[field] is what became of it, `done` what the user had asked for ("unloaded"). Nothing is said
// where nothing stays.
void note_kept(Session& session, const std::string& name, const Json& reply, const char* field,
               std::string_view done = "unloaded");

}  // namespace molt::cli
