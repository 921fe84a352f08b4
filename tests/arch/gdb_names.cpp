// A trampoline with a name, for the debugger of gdb_names.sh.
#include <cstdio>

#include "arch/x86_64/gate.hpp"
#include "arch/x86_64/names.hpp"
#include "arch/x86_64/pool.hpp"

using namespace molt::arch;

extern "C" [[gnu::noinline]] void named_code_is_there() { asm volatile(""); }
extern "C" [[gnu::noinline]] long version(long a) { return a + 1; }
extern "C" [[gnu::noinline]] long calls_the_trampoline(CodeAddress at) {
  volatile long result = reinterpret_cast<long (*)(long)>(at)(41);
  return result;
}

int main() {
  CodePool pool;
  TextWriter writer = TextWriter::open();
  auto target = reinterpret_cast<CodeAddress>(version);
  auto slot = pool.allocate({target, target + 16}, jump_size);
  if (!slot) return 1;
  std::byte code[jump_size];
  std::size_t size = write_jump(slot->address, target, code);
  if (!pool.publish(writer, *slot, std::span(code).first(size))) return 2;
  NamedCode* name = name_code(slot->range(), "molt_test_trampoline");
  NamedCode* other = name_code({slot->address + 1000, slot->address + 1016}, "molt_test_other");
  named_code_is_there();
  long result = calls_the_trampoline(slot->address);
  forget_code(other);
  forget_code(name);
  return result == 42 ? 0 : 3;
}
