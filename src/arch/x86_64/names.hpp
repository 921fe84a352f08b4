// names.hpp - names for generated code, so that gdb and perf can say where a thread is.
//
// gdb: the JIT interface. Each range becomes a symbol file in memory (symbol and unwind information).
// perf: a line in /tmp/perf-PID.map, only where asked for by name_code_for_perf(): a file left in /tmp is
// the host's business. Callers hold the patch lock.
#pragma once

#include "arch/x86_64/code.hpp"
#include "base/result.hpp"

namespace molt::arch {

// Opaque; null where memory was short, which harms nobody.
struct NamedCode;

// `name` is copied: what gdb shows for PCs in the range. A debugger that is attached stops the process
// here for a moment.
NamedCode* name_code(CodeRange range, const char* name);
void forget_code(NamedCode* code);

// From now on, and for what has a name already, perf's map is written (appended). It is not removed:
// perf reads it later.
Status name_code_for_perf();

}  // namespace molt::arch
