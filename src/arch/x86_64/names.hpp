// names.hpp - names for generated code, so that gdb and perf can say where a thread is.
//
// gdb: the JIT interface. Each range becomes a symbol file in memory (symbol and unwind information).
// perf: a line in /tmp/perf-PID.map, only where asked for by name_code_for_perf(): a file left in /tmp is
// the host's business. Callers hold the patch lock.
#pragma once

#include <span>
#include <string>

#include "arch/x86_64/code.hpp"
#include "base/result.hpp"

namespace molt::arch {

// Opaque; null where memory was short, which harms nobody.
struct NamedCode;

// `name` is copied: what gdb shows for PCs in the range. A debugger that is attached stops the process
// here for a moment.
NamedCode* name_code(CodeRange range, const char* name);
// The same for the functions of one piece of linked code, with the unwind information (.eh_frame, as it
// lies in memory) that belongs to them. `whole` holds all of them.
struct CodeName {
  CodeRange range;
  std::string name;
};
NamedCode* name_functions(CodeRange whole, std::span<const CodeName> functions, CodeRange frames);
void forget_code(NamedCode* code);
// The memory that says where the code is, for a search that shall leave it out.
CodeRange memory_of(const NamedCode* code);

// From now on, and for what has a name already, perf's map is written (appended). It is not removed:
// perf reads it later.
Status name_code_for_perf();

}  // namespace molt::arch
