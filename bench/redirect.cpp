// redirect.*: what a call of a patched function costs beside a call of one that is not.
//
// The functions are small, written in assembly so that both sides are the same bytes at the same
// alignment, and so are the loops that call them: what is measured is the way to the new version and
// nothing else. It lies near, as the builder's patches do.
//
//     prepared, unprepared   e9 at the entry, as both kinds end up; the smallest function there is, one
//                            lea: the loop around it takes three cycles
//     work                   the same with a function of twelve cycles, four multiplications
//     dense                  eight calls of the smallest in a row: taken branches is all there is
//     short                  eb to the padding, e9 to the landing, jmp *cell: prepared, before anybody
//                            could prove that no thread is in its first bytes
//     gate                   while a transition runs: e9 to the stub, compare, je
//     floor                  an e9 to the same place, written by the benchmark; floor.gate: to a compare and
//                            a je. By where they lie they take 0.85 to 1.3 of the unpatched loop's time in
//                            one process or another, and nothing that jumps can take less
//     over_floor             the redirect beside that, and the gate's two ways: in the same process, the
//                            same bytes at the same places in their lines

#include "arch/x86_64/redirect.hpp"

#include "arch/x86_64/emit.hpp"
#include "arch/x86_64/gate.hpp"
#include "benches.hpp"
#include "harness.hpp"

asm(R"(
        .pushsection .text.molt_bench_redirect, "ax", @progbits
        .macro bench_end name
        .size \name, . - \name
        .p2align 6
        .endm
        .macro bench_prepared_leaf name
        .p2align 6
        .skip 59, 0x90
        .byte 0x90, 0x90, 0x90, 0x90, 0x90
        .type \name, @function
\name:  nop
        nop
        lea 1(%rdi), %rax
        ret
        bench_end \name
        .endm
        .macro bench_work name
        .p2align 6
        .type \name, @function
\name:  lea 1(%rdi), %rax
        .rept 4
        imul %rax, %rax
        .endr
        ret
        bench_end \name
        .endm
        .macro bench_leaf name
        .p2align 6
        .type \name, @function
\name:  lea 1(%rdi), %rax
        ret
        bench_end \name
        .endm
        bench_prepared_leaf bench_prepared_plain
        bench_prepared_leaf bench_prepared
        bench_work bench_work_plain
        bench_work bench_work_patched
        bench_leaf bench_leaf_plain
        bench_leaf bench_leaf_patched
        bench_prepared_leaf bench_prepared_by_hand
        bench_leaf bench_by_hand
        bench_leaf bench_by_hand_gated
        .macro bench_room name
        .type \name, @function
\name:  .skip 64, 0xcc
        bench_end \name
        .endm
        bench_room bench_hand_gate
        // On a page of their own, as a patch is.
        .p2align 12
        .skip 4096 + 320
        bench_prepared_leaf bench_prepared_new
        bench_work bench_work_new
        bench_leaf bench_leaf_new
        // Not at the functions' places in their page, where branches would be taken for one another.
        .p2align 12
        .skip 1536
        // Each argument is the result before it, as in a loop that works.
        .macro bench_loop name target calls
        .p2align 6
        .type \name, @function
\name:  push %rbx
        mov %rdi, %rbx
        .p2align 6
1:
        .rept \calls
        call \target
        mov %rax, %rdi
        .endr
        dec %rbx
        jne 1b
        pop %rbx
        ret
        bench_end \name
        .endm
        bench_loop bench_call_prepared_plain bench_prepared_plain 1
        bench_loop bench_call_prepared bench_prepared 1
        bench_loop bench_call_work_plain bench_work_plain 1
        bench_loop bench_call_work_patched bench_work_patched 1
        bench_loop bench_call_leaf_plain bench_leaf_plain 1
        bench_loop bench_call_leaf_patched bench_leaf_patched 1
        bench_loop bench_call_prepared_by_hand bench_prepared_by_hand 1
        bench_loop bench_call_by_hand bench_by_hand 1
        bench_loop bench_call_by_hand_gated bench_by_hand_gated 1
        bench_loop bench_call_dense_plain bench_leaf_plain 8
        bench_loop bench_call_dense_patched bench_leaf_patched 8
        .popsection
)");

extern "C" {
long bench_prepared(long), bench_prepared_new(long), bench_work_patched(long), bench_work_new(long),
    bench_leaf_patched(long), bench_leaf_new(long), bench_prepared_by_hand(long),
    bench_by_hand(long), bench_by_hand_gated(long), bench_hand_gate(long);
void bench_call_prepared_plain(std::uint64_t), bench_call_prepared(std::uint64_t),
    bench_call_work_plain(std::uint64_t), bench_call_work_patched(std::uint64_t),
    bench_call_leaf_plain(std::uint64_t), bench_call_leaf_patched(std::uint64_t),
    bench_call_dense_plain(std::uint64_t), bench_call_dense_patched(std::uint64_t),
    bench_call_prepared_by_hand(std::uint64_t), bench_call_by_hand(std::uint64_t),
    bench_call_by_hand_gated(std::uint64_t);
}

namespace bench {
namespace {

using namespace molt::arch;

constexpr std::size_t prepared_size = 7, work_size = 21, leaf_size = 5;

// The one thread that there is stands here.
struct Alone : Witness {
  molt::Status no_thread_blocks_sigtrap() override { return {}; }
  molt::Status no_thread_within(std::span<const CodeRange>) override { return {}; }
};

void must(const molt::Status& status) {
  if (!status) throw std::runtime_error(status.error().detail);
}

thread_local std::uint32_t gate_word [[gnu::tls_model("initial-exec")]] = 0;
GateVerdict never(GateRecord*, std::uintptr_t) { return GateVerdict::take_new; }

class Patched {
 public:
  Patched(long (*function)(long), std::size_t size, bool prepared) {
    EntryQuery query;
    query.address = reinterpret_cast<CodeAddress>(function);
    query.size = size;
    query.before = prepared ? 5 : 0;
    query.patchable = prepared;
    query.live = {reinterpret_cast<const std::byte*>(query.address - query.before),
                  query.before + size};
    auto entry = analyse(query);
    if (!entry) throw std::runtime_error(entry.error().detail);
    must(prepare(pool_, writer_, *entry, redirect_));
  }
  ~Patched() {
    Edit edit{&redirect_, Change::remove, 0};
    (void)commit(writer_, {&edit, 1}, alone_);
    release(pool_, writer_, redirect_);
  }
  void change(Change what, CodeAddress target) {
    Edit edit{&redirect_, what, target};
    must(commit(writer_, {&edit, 1}, alone_));
  }
  CodeAddress gate_to(CodeAddress old_code, CodeAddress new_code) {
    auto slot = pool_.allocate(redirect_.entry.referenced, gate_size);
    if (!slot) throw std::runtime_error(slot.error().detail);
    record_.resolve = never;
    record_.old_code = old_code;
    record_.new_code = new_code;
    auto offset =
        reinterpret_cast<char*>(&gate_word) - static_cast<char*>(__builtin_thread_pointer());
    std::byte code[gate_size];
    std::size_t bytes =
        write_gate(slot->address, {static_cast<std::int32_t>(offset), 1, 2}, record_, code);
    must(pool_.publish(writer_, *slot, std::span(code).first(bytes)));
    return slot->address;
  }
  CodeAddress original() const { return redirect_.original; }

 private:
  CodePool pool_;
  TextWriter writer_ = TextWriter::open();
  Alone alone_;
  Redirect redirect_;
  GateRecord record_;
};

using Calls = void (*)(std::uint64_t);
Compared per_call(int rounds, Calls ours, Calls rival, double calls = 1) {
  Pinned pinned;
  struct Loops {
    Calls ours, rival;
  } loops{ours, rival};
  Compared c = compare_loops<Loops>(
      rounds, [](std::uint64_t n, Loops* both) { both->ours(n); },
      [](std::uint64_t n, Loops* both) { both->rival(n); }, &loops);
  c.ours /= calls;
  c.rival /= calls;
  c.difference /= calls;
  return c;
}

CodeAddress at(long (*function)(long)) { return reinterpret_cast<CodeAddress>(function); }

Compared short_jump(int rounds) {
  Patched patched(bench_prepared, prepared_size, true);
  patched.change(Change::install, at(bench_prepared_new));
  return per_call(rounds, bench_call_prepared, bench_call_prepared_plain);
}
Compared prepared(int rounds) {
  Patched patched(bench_prepared, prepared_size, true);
  patched.change(Change::install, at(bench_prepared_new));
  patched.change(Change::straighten, 0);
  return per_call(rounds, bench_call_prepared, bench_call_prepared_plain);
}
Compared unprepared(int rounds) {
  Patched patched(bench_leaf_patched, leaf_size, false);
  patched.change(Change::install, at(bench_leaf_new));
  return per_call(rounds, bench_call_leaf_patched, bench_call_leaf_plain);
}
Compared work(int rounds) {
  Patched patched(bench_work_patched, work_size, false);
  patched.change(Change::install, at(bench_work_new));
  return per_call(rounds, bench_call_work_patched, bench_call_work_plain);
}
Compared dense(int rounds) {
  Patched patched(bench_leaf_patched, leaf_size, false);
  patched.change(Change::install, at(bench_leaf_new));
  return per_call(rounds, bench_call_dense_patched, bench_call_dense_plain, 8);
}

// e9 to there, over whatever is at `from`, which nobody executes yet.
void jump_by_hand(long (*from)(long), CodeAddress to) {
  std::byte code[jump_size];
  const std::size_t bytes = write_jump(at(from), to, code);
  must(TextWriter::open().write(at(from), std::span(code).first(bytes)));
}
Compared prepared_over_floor(int rounds) {
  Patched patched(bench_prepared, prepared_size, true);
  patched.change(Change::install, at(bench_prepared_new));
  patched.change(Change::straighten, 0);
  jump_by_hand(bench_prepared_by_hand, at(bench_prepared_new));
  return per_call(rounds, bench_call_prepared, bench_call_prepared_by_hand);
}
Compared floor(int rounds) {
  jump_by_hand(bench_by_hand, at(bench_leaf_new));
  return per_call(rounds, bench_call_by_hand, bench_call_leaf_plain);
}
Compared unprepared_over_floor(int rounds) {
  Patched patched(bench_leaf_patched, leaf_size, false);
  patched.change(Change::install, at(bench_leaf_new));
  jump_by_hand(bench_by_hand, at(bench_leaf_new));
  return per_call(rounds, bench_call_leaf_patched, bench_call_by_hand);
}

// The gate words of a thread that has not switched yet, and of one that has.
constexpr std::uint32_t old_word = 1, new_word = 2;
Compared gate(int rounds, std::uint32_t word) {
  Patched patched(bench_leaf_patched, leaf_size, false);
  gate_word = word;
  patched.change(Change::install, patched.gate_to(patched.original(), at(bench_leaf_new)));
  return per_call(rounds, bench_call_leaf_patched, bench_call_leaf_plain);
}
Compared gate_work(int rounds, std::uint32_t word) {
  Patched patched(bench_work_patched, work_size, false);
  gate_word = word;
  patched.change(Change::install, patched.gate_to(patched.original(), at(bench_work_new)));
  return per_call(rounds, bench_call_work_patched, bench_call_work_plain);
}
// A word of the thread's is compared, is what it is compared with, and leads to the new version.
void gate_by_hand() {
  gate_word = new_word;
  std::byte code[32];
  Emitter emitter(at(bench_hand_gate), code);
  emitter.bytes({0x64, 0x81, 0x3c, 0x25});  // cmpl $new_word, %fs:gate_word
  emitter.u32(static_cast<std::uint32_t>(reinterpret_cast<char*>(&gate_word) -
                                         static_cast<char*>(__builtin_thread_pointer())));
  emitter.u32(new_word);
  emitter.bytes({0x0f, 0x84});  // je
  emitter.rel32(at(bench_leaf_new));
  must(TextWriter::open().write(at(bench_hand_gate), std::span(code).first(emitter.size())));
  jump_by_hand(bench_by_hand_gated, at(bench_hand_gate));
}
Compared floor_gate(int rounds) {
  gate_by_hand();
  return per_call(rounds, bench_call_by_hand_gated, bench_call_leaf_plain);
}
Compared gate_over_floor(int rounds) {
  Patched patched(bench_leaf_patched, leaf_size, false);
  patched.change(Change::install, patched.gate_to(patched.original(), at(bench_leaf_new)));
  gate_by_hand();
  return per_call(rounds, bench_call_leaf_patched, bench_call_by_hand_gated);
}
Compared gate_old(int rounds) { return gate(rounds, old_word); }
Compared gate_new(int rounds) { return gate(rounds, new_word); }
Compared gate_work_old(int rounds) { return gate_work(rounds, old_word); }
Compared gate_work_new(int rounds) { return gate_work(rounds, new_word); }

void figure(const char* name, Goal goal, const Options& options, Report& report,
            const char* rival = "unpatched") {
  Compared c = measure_in_processes(name, options);
  report.add({name, c.ours, "ns", rival, c.rival, c.ratio, std::move(goal)});
}
void steady(const Options& options, Report& report) {
  figure("redirect.prepared", Goal::ratio_at_most(1.05), options, report);
  figure("redirect.unprepared", Goal::ratio_at_most(1.05), options, report);
  figure("redirect.floor", Goal::info(), options, report);
  figure("redirect.prepared.over_floor", Goal::ratio_at_most(1.05), options, report, "by hand");
  figure("redirect.unprepared.over_floor", Goal::ratio_at_most(1.05), options, report, "by hand");
  figure("redirect.work", Goal::ratio_at_most(1.05), options, report);
  figure("redirect.dense", Goal::info(), options, report);
  figure("redirect.short", Goal::info(), options, report);
}
void transition(const Options& options, Report& report) {
  figure("redirect.gate.old", Goal::ratio_at_most(1.3), options, report);
  figure("redirect.gate.new", Goal::ratio_at_most(1.3), options, report);
  figure("redirect.floor.gate", Goal::info(), options, report);
  figure("redirect.gate.over_floor", Goal::ratio_at_most(1.05), options, report, "by hand");
  figure("redirect.gate.work.old", Goal::ratio_at_most(1.3), options, report);
  figure("redirect.gate.work.new", Goal::ratio_at_most(1.3), options, report);
}

}  // namespace

std::vector<Figure> redirect_figures() {
  return {{"redirect.prepared", prepared},
          {"redirect.unprepared", unprepared},
          {"redirect.floor", floor},
          {"redirect.prepared.over_floor", prepared_over_floor},
          {"redirect.unprepared.over_floor", unprepared_over_floor},
          {"redirect.floor.gate", floor_gate},
          {"redirect.gate.over_floor", gate_over_floor},
          {"redirect.work", work},
          {"redirect.dense", dense},
          {"redirect.short", short_jump},
          {"redirect.gate.old", gate_old},
          {"redirect.gate.new", gate_new},
          {"redirect.gate.work.old", gate_work_old},
          {"redirect.gate.work.new", gate_work_new}};
}

std::vector<Bench> redirect_benches() {
  return {{"redirect.steady", "a call of a patched function", steady},
          {"redirect.transition", "a call during a transition", transition}};
}

}  // namespace bench
