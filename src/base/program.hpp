// program.hpp - what this process's program is called.
#pragma once

#include <string>

namespace molt {

// As the C library has it, from the first argument, unless the program has written something else there since
// (setproctitle(): "postgres: checkpointer"): then as the kernel has it, at most 15 characters. Reads /proc.
[[nodiscard]] std::string program_name();

}  // namespace molt
