// arch-stress prepared|unprepared SECONDS [crowd]: one entry, redirected and restored as often as possible, while
// more threads than cores execute it. Ends with 0 if every call was right; a process that is killed by a
// signal, or prints VIOLATION, is what the mutated builds must come to.

#include <sched.h>

#include <cstdio>
#include <cstdlib>

#include "arch/x86_64/gate.hpp"
#include "base/futex.hpp"
#include "callers.hpp"

// Threads stand in the middle of this prologue most of the time: pause takes a hundred cycles.
asm(R"(
        .text
        .p2align 6
        .skip 123, 0xcc
        .globl stress_unprepared
        .type stress_unprepared, @function
stress_unprepared:
        push %rbx
        pause
        mov %rdi, %rbx
        lea (%rbx,%rsi), %rax
        pop %rbx
        ret
        .size stress_unprepared, . - stress_unprepared
        .p2align 6
        .skip 128 - 5, 0xcc
        .byte 0x90, 0x90, 0x90, 0x90, 0x90
        .globl stress_prepared
        .type stress_prepared, @function
stress_prepared:
        nop
        nop
        lea (%rdi,%rsi), %rax
        ret
        .size stress_prepared, . - stress_prepared
        .p2align 6
)");
extern "C" long stress_unprepared(long, long);
extern "C" long stress_prepared(long, long);

using namespace molt::arch;
using namespace arch_test;

int main(int argc, char** argv) {
  if (argc < 3) return 2;
  bool crowd = argc > 3;  // threads are preempted wherever they are
  bool prepared = std::string(argv[1]) == "prepared";
  Function function;
  function.name = argv[1];
  function.call = prepared ? stress_prepared : stress_unprepared;
  function.recursive = false;
  EntryQuery& query = function.query;
  query.address = reinterpret_cast<CodeAddress>(function.call);
  query.size = prepared ? 7 : 12;
  query.before = prepared ? 5 : 0;
  query.patchable = prepared;
  query.live = {reinterpret_cast<const std::byte*>(query.address - query.before),
                query.before + query.size};
  auto entry = analyse(query);
  if (!entry) {
    std::printf("%s\n", entry.error().detail);
    return 2;
  }

  CodePool pool;
  TextWriter writer = TextWriter::open();
  Redirect redirect;
  if (auto made = prepare(pool, writer, *entry, redirect); !made) return 2;
  auto slot = pool.allocate(entry->referenced, jump_size);
  std::byte code[jump_size];
  std::size_t size = write_jump(slot->address, reinterpret_cast<CodeAddress>(version_a), code);
  if (!slot || !pool.publish(writer, *slot, std::span(code).first(size))) return 2;

  auto cases = cases_of(function);
  Callers callers({&function}, 4, !crowd);
  auto deadline = molt::Deadline::in_ms(atol(argv[2]) * 1000);
  long toggles = 0;
  while ((!deadline.passed() || !callers.saw_both()) &&
         callers.wrong.load(std::memory_order_relaxed) == 0) {
    for (Change change : {Change::install, Change::remove}) {
      Edit edit{&redirect, change, slot->address};
      if (auto done = commit(writer, {&edit, 1}, callers); !done) {
        std::printf("%s\n", done.error().detail);
        return 2;
      }
      ++toggles;
      for (auto [a, b, old_result] : cases) {
        long expected = change == Change::install ? version_a(a, b) : old_result;
        if (function.call(a, b) != expected) callers.wrong.fetch_add(1, std::memory_order_relaxed);
      }
    }
  }
  callers.stop();
  std::printf("%s: %ld toggles, %lu calls (%lu old, %lu new), %lu wrong\n", argv[1], toggles,
              callers.calls(), callers.old_results.load(), callers.new_results.load(),
              callers.wrong.load());
  if (callers.wrong.load() != 0) {
    std::printf("VIOLATION\n");
    return 1;
  }
  return 0;
}
