// The gate's trampoline against a caller in assembly that puts a value of its own into every register
// there is, and a version that looks at all of them.

#include <cpuid.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/mman.h>
#include <ucontext.h>
#include <unwind.h>

#include <cstring>
#include <thread>
#include <utility>

#include "../hook_layer/single_step.hpp"
#include "arch/x86_64/gate.hpp"
#include "arch/x86_64/pool.hpp"
#include "arch/x86_64/wrap.hpp"

using namespace molt::arch;

extern "C" {

// Everything that could carry an argument, or that a caller could count on.
struct alignas(64) Registers {
  std::uint64_t integer[15];  // rax rcx rdx rsi rdi r8 r9 r10 r11 rbx rbp r12 r13 r14 r15
  std::uint64_t stack;        // rsp at the version's first instruction
  std::uint64_t return_address;
  std::uint64_t slots[4];  // above the return address
  std::uint64_t flags;
  std::uint32_t mxcsr;
  std::uint16_t x87_control;
  std::uint16_t unused;
  std::uint64_t mask[8];  // k0-k7
  alignas(64) unsigned char vector[32][64];
  alignas(16) unsigned char x87[108];
};
static_assert(offsetof(Registers, stack) == 120 && offsetof(Registers, flags) == 168 &&
              offsetof(Registers, mxcsr) == 176 && offsetof(Registers, x87_control) == 180 &&
              offsetof(Registers, mask) == 184 && offsetof(Registers, vector) == 256 &&
              offsetof(Registers, x87) == 2304);

// Which vectors there are: 0 xmm, 1 ymm, 2 zmm and masks.
int gate_test_level = 0;
Registers gate_test_given, gate_test_seen;
CodeAddress gate_test_entry;
std::uint64_t gate_test_saved_stack;

// Loads gate_test_given, calls through gate_test_entry, comes back with the same caller's frame.
void gate_test_call();
// A version: stores everything into gate_test_seen.
void gate_test_old();
void gate_test_new();
// One that writes nothing to the stack.
void gate_test_quiet();
extern int gate_test_version;
int gate_test_version = 0;
// Whether the caller looks at all registers once more when it has them back.
int gate_test_looks_after = 0;
}

// %rip-relative throughout, so that no register is needed to reach the memory.
#define GIVEN(offset) "gate_test_given+" #offset "(%rip)"
#define SEEN(offset) "gate_test_seen+" #offset "(%rip)"
#define EACH16(F) \
  F(0) F(1) F(2) F(3) F(4) F(5) F(6) F(7) F(8) F(9) F(10) F(11) F(12) F(13) F(14) F(15)
#define EACH32(F) \
  EACH16(F)       \
  F(16) F(17) F(18) F(19) F(20) F(21) F(22) F(23) F(24) F(25) F(26) F(27) F(28) F(29) F(30) F(31)
#define EACH8(F) F(0) F(1) F(2) F(3) F(4) F(5) F(6) F(7)
#define LOAD_X(n) " movaps gate_test_given+256+64*" #n "(%rip), %xmm" #n "\n"
#define LOAD_Y(n) " vmovaps gate_test_given+256+64*" #n "(%rip), %ymm" #n "\n"
#define LOAD_Z(n) " vmovaps gate_test_given+256+64*" #n "(%rip), %zmm" #n "\n"
#define LOAD_K(n) " kmovq gate_test_given+184+8*" #n "(%rip), %k" #n "\n"
#define STORE_X(n) " movaps %xmm" #n ", gate_test_seen+256+64*" #n "(%rip)\n"
#define STORE_Y(n) " vmovaps %ymm" #n ", gate_test_seen+256+64*" #n "(%rip)\n"
#define STORE_Z(n) " vmovaps %zmm" #n ", gate_test_seen+256+64*" #n "(%rip)\n"
#define STORE_K(n) " kmovq %k" #n ", gate_test_seen+184+8*" #n "(%rip)\n"

asm(".text\n"
    "gate_test_call:\n"
    " push %rbp\n push %rbx\n push %r12\n push %r13\n push %r14\n push %r15\n"
    " push $0x44\n push $0x33\n push $0x22\n push $0x11\n"
    " mov %rsp, gate_test_saved_stack(%rip)\n"
    " fldcw " GIVEN(180) "\n ldmxcsr " GIVEN(176) "\n"
    " cmpl $1, gate_test_level(%rip)\n ja 3f\n je 2f\n"
    EACH16(LOAD_X) " jmp 4f\n2:\n" EACH16(LOAD_Y) " jmp 4f\n3:\n" EACH32(LOAD_Z) EACH8(LOAD_K)
    "4:\n"
    " pushq " GIVEN(168) "\n popfq\n"
    " mov " GIVEN(0) ", %rax\n mov " GIVEN(8) ", %rcx\n mov " GIVEN(16) ", %rdx\n"
    " mov " GIVEN(24) ", %rsi\n mov " GIVEN(32) ", %rdi\n mov " GIVEN(40) ", %r8\n"
    " mov " GIVEN(48) ", %r9\n mov " GIVEN(56) ", %r10\n mov " GIVEN(64) ", %r11\n"
    " mov " GIVEN(72) ", %rbx\n mov " GIVEN(80) ", %rbp\n mov " GIVEN(88) ", %r12\n"
    " mov " GIVEN(96) ", %r13\n mov " GIVEN(104) ", %r14\n mov " GIVEN(112) ", %r15\n"
    " call *gate_test_entry(%rip)\n"
    "gate_test_returned:\n"
    " pushfq\n cmpl $0, gate_test_looks_after(%rip)\n je 9f\n popfq\n call gate_test_new\n jmp 8f\n"
    "9: popfq\n8:\n"
    " lea 32(%rsp), %rsp\n"
    " pop %r15\n pop %r14\n pop %r13\n pop %r12\n pop %rbx\n pop %rbp\n"
    " cld\n ret\n"

    "gate_test_quiet:\n ret\n"

    "gate_test_new:\n movl $2, gate_test_version(%rip)\n jmp 1f\n"
    "gate_test_old:\n movl $1, gate_test_version(%rip)\n"
    "1:\n"
    " mov %rax, " SEEN(0) "\n mov %rcx, " SEEN(8) "\n mov %rdx, " SEEN(16) "\n"
    " mov %rsi, " SEEN(24) "\n mov %rdi, " SEEN(32) "\n mov %r8, " SEEN(40) "\n"
    " mov %r9, " SEEN(48) "\n mov %r10, " SEEN(56) "\n mov %r11, " SEEN(64) "\n"
    " mov %rbx, " SEEN(72) "\n mov %rbp, " SEEN(80) "\n mov %r12, " SEEN(88) "\n"
    " mov %r13, " SEEN(96) "\n mov %r14, " SEEN(104) "\n mov %r15, " SEEN(112) "\n"
    " mov %rsp, " SEEN(120) "\n"
    " pushfq\n popq " SEEN(168) "\n"
    " mov (%rsp), %rax\n mov %rax, " SEEN(128) "\n"
    " mov 8(%rsp), %rax\n mov %rax, " SEEN(136) "\n mov 16(%rsp), %rax\n mov %rax, " SEEN(144) "\n"
    " mov 24(%rsp), %rax\n mov %rax, " SEEN(152) "\n mov 32(%rsp), %rax\n mov %rax, " SEEN(160) "\n"
    " stmxcsr " SEEN(176) "\n fnstcw " SEEN(180) "\n fnsave " SEEN(2304) "\n"
    " cmpl $1, gate_test_level(%rip)\n ja 3f\n je 2f\n"
    EACH16(STORE_X) " jmp 4f\n2:\n" EACH16(STORE_Y) " jmp 4f\n3:\n" EACH32(STORE_Z) EACH8(STORE_K)
    "4:\n cmpl $0, gate_test_level(%rip)\n je 5f\n vzeroupper\n5:\n"
    " ret\n");
extern "C" const char gate_test_returned;

namespace {

// The thread's gate word, as the engine's is: reachable at a constant distance from %fs:0.
thread_local std::uint32_t word [[gnu::tls_model("initial-exec")]] = 0;
constexpr std::uint32_t old_word = 0x1001, new_word = 0x1002, pending = 0x1003;

std::int32_t word_offset() {
  return static_cast<std::int32_t>(reinterpret_cast<char*>(&word) -
                                   static_cast<char*>(__builtin_thread_pointer()));
}

// Everything that a C function may change.
void clobber_everything() {
  asm volatile("fninit\n fld1\n fldpi" ::: "st", "st(1)");
  asm volatile("emms");
  if (gate_test_level == 0) {
#define CLEAR(n) " xorps %%xmm" #n ", %%xmm" #n "\n"
    asm volatile(EACH16(CLEAR)::: "memory");
  } else {
    asm volatile("vzeroall" ::: "memory");
  }
  if (gate_test_level == 2) {
#define CLEAR_Z(n) " vpternlogd $0xff, %%zmm" #n ", %%zmm" #n ", %%zmm" #n "\n"
#define CLEAR_K(n) " kxorq %%k" #n ", %%k" #n ", %%k" #n "\n"
    asm volatile(EACH32(CLEAR_Z) EACH8(CLEAR_K)::: "memory");
  }
  unsigned csr = 0x1f80;
  asm volatile("ldmxcsr %0" ::"m"(csr));
  asm volatile(
      "mov $-1, %%rax\n mov %%rax, %%rcx\n mov %%rax, %%rdx\n mov %%rax, %%rsi\n mov %%rax, %%rdi\n"
      "mov %%rax, %%r8\n mov %%rax, %%r9\n mov %%rax, %%r10\n mov %%rax, %%r11\n"
      "xor %%eax, %%eax\n" ::
          : "rax", "rcx", "rdx", "rsi", "rdi", "r8", "r9", "r10", "r11", "cc");
}

int resolved = 0;
std::uintptr_t resolve_stack = 0;
std::uintptr_t given_stack = 0;
GateVerdict answer_again(GateRecord*, std::uintptr_t stack) {
  ++resolved;
  given_stack = stack;
  resolve_stack = reinterpret_cast<std::uintptr_t>(__builtin_frame_address(0));
  clobber_everything();
  word = new_word;
  return GateVerdict::again;
}
GateVerdict answer_old(GateRecord*, std::uintptr_t) {
  ++resolved;
  clobber_everything();
  return GateVerdict::take_old;
}
GateVerdict answer_new(GateRecord*, std::uintptr_t) {
  ++resolved;
  clobber_everything();
  return GateVerdict::take_new;
}

class Gate : public testing::Test {
 protected:
  void SetUp() override {
    gate_setup();
    unsigned a, b, c, d;
    __cpuid(1, a, b, c, d);
    gate_test_level = 0;
    if (__builtin_cpu_supports("avx2")) gate_test_level = 1;
    if (__builtin_cpu_supports("avx512bw")) gate_test_level = 2;

    // Every byte of every register different from its neighbours', and none of them 0.
    auto* bytes = reinterpret_cast<unsigned char*>(&gate_test_given);
    for (std::size_t i = 0; i < sizeof gate_test_given; ++i) {
      bytes[i] = static_cast<unsigned char>(i * 37 % 251 + 1);
    }
    gate_test_given.flags = 0x0ad7;  // all arithmetic flags, interrupts; no trap, no direction
    gate_test_given.mxcsr = 0x1f80 | 0x6000;  // rounding to zero
    gate_test_given.x87_control = 0x0c7f;     // the same
    std::memset(&gate_test_seen, 0, sizeof gate_test_seen);
    resolved = 0;
  }
  void TearDown() override {
    unsigned csr = 0x1f80;
    asm volatile("ldmxcsr %0" ::"m"(csr));
    asm volatile("fninit");
  }

  void make(GateVerdict (*resolve)(GateRecord*, std::uintptr_t), bool far = false,
            void (*only)() = nullptr) {
    auto near = far ? CodeRange{0x10000000, 0x10001000} : here();
    auto made = pool_.allocate(near, gate_size);
    ASSERT_TRUE(made) << made.error().detail;
    slot_ = *made;
    record_ = GateRecord{};
    record_.resolve = resolve;
    record_.old_code = reinterpret_cast<CodeAddress>(gate_test_old);
    record_.new_code = reinterpret_cast<CodeAddress>(gate_test_new);
    if (only != nullptr) {
      record_.old_code = record_.new_code = reinterpret_cast<CodeAddress>(only);
    }
    std::byte code[gate_size];
    GateWords words{word_offset(), old_word, new_word};
    std::size_t size = write_gate(slot_.address, words, record_, code);
    ASSERT_GT(size, 0u);
    ASSERT_LE(size, gate_size);
    TextWriter writer = TextWriter::open();
    ASSERT_TRUE(pool_.publish(writer, slot_, std::span(code).first(size)));
    gate_test_entry = slot_.address;
  }
  static CodeRange here() {
    auto at = reinterpret_cast<CodeAddress>(gate_test_old);
    return {at, at + 4096};
  }

  void expect_everything_kept() {
    expect_registers_kept();
    const Registers& seen = gate_test_seen;
    EXPECT_EQ(seen.stack, gate_test_saved_stack - 8) << "rsp";
    EXPECT_EQ(seen.return_address, reinterpret_cast<std::uint64_t>(&gate_test_returned));
    for (unsigned i = 0; i < 4; ++i) EXPECT_EQ(seen.slots[i], 0x11 * (i + 1));
  }
  void expect_registers_kept() {
    const Registers &given = gate_test_given, &seen = gate_test_seen;
    static const char* const names[] = {"rax", "rcx", "rdx", "rsi", "rdi", "r8",  "r9", "r10",
                                        "r11", "rbx", "rbp", "r12", "r13", "r14", "r15"};
    for (int i = 0; i < 15; ++i) EXPECT_EQ(seen.integer[i], given.integer[i]) << names[i];
    EXPECT_EQ(seen.flags & 0x400, 0u) << "direction flag";
    EXPECT_EQ(seen.mxcsr & 0xffc0, given.mxcsr & 0xffc0u);
    EXPECT_EQ(seen.x87_control, given.x87_control);
    std::uint16_t tags;
    std::memcpy(&tags, seen.x87 + 8, 2);
    EXPECT_EQ(tags, 0xffff) << "the x87 stack must be empty";
    std::size_t width = gate_test_level == 2 ? 64 : gate_test_level == 1 ? 32 : 16;
    for (int i = 0; i < (gate_test_level == 2 ? 32 : 16); ++i) {
      EXPECT_EQ(std::memcmp(seen.vector[i], given.vector[i], width), 0) << "vector " << i;
    }
    if (gate_test_level == 2) {
      for (int i = 0; i < 8; ++i) EXPECT_EQ(seen.mask[i], given.mask[i]) << "k" << i;
    }
  }
  void call(int version, int resolves) {
    gate_test_version = 0;
    resolved = 0;
    gate_test_call();
    EXPECT_EQ(gate_test_version, version);
    EXPECT_EQ(resolved, resolves);
    expect_everything_kept();
  }

  CodePool pool_;
  CodeSlot slot_;
  GateRecord record_;
};

TEST_F(Gate, TheWordDecides) {
  make(answer_again);
  word = old_word;
  call(1, 0);
  word = new_word;
  call(2, 0);
}

TEST_F(Gate, AnyOtherWordAsksAndKeepsEverything) {
  make(answer_again);
  for (std::uint32_t other : {0u, pending, old_word + 0x1000, ~0u}) {
    word = other;
    call(2, 1);
  }
}

TEST_F(Gate, VerdictsAreFollowed) {
  word = pending;
  make(answer_old);
  call(1, 1);
  make(answer_new);
  call(2, 1);
  EXPECT_EQ(word, pending);
}

TEST_F(Gate, FarVersionsAreReachedThroughLiterals) {
  make(answer_again, true);
  ASSERT_FALSE(reaches(slot_.address, reinterpret_cast<CodeAddress>(gate_test_old)));
  word = old_word;
  call(1, 0);
  word = pending;
  call(2, 1);
}

TEST_F(Gate, ThreadsHaveWordsOfTheirOwn) {
  make(answer_again);
  word = old_word;
  std::thread other([&] {
    word = new_word;
    call(2, 0);
  });
  other.join();
  call(1, 0);
}

// G4: nothing that is left under the stack pointer points into what counts as old code.
TEST_F(Gate, NoStaleWordAccuses) {
  for (auto resolve : {answer_again, answer_old, answer_new}) {
    make(resolve, false, gate_test_quiet);
    word = pending;
    gate_test_call();
    CodeRange counted = gate_counted(slot_.address);
    auto* below = reinterpret_cast<volatile std::uint64_t*>(gate_test_saved_stack);
    for (int i = 1; i < 1024; ++i) {
      EXPECT_FALSE(counted.contains(below[-i])) << "word " << i << " below the caller";
    }
  }
}

// A signal at each instruction of the whole way, whose handler comes through the same gate.
TEST_F(Gate, SignalsMayArriveAtEveryInstruction) {
  make(answer_again);
  static CodeAddress entry;
  entry = slot_.address;
  static int nested;
  long n = 1;
  for (;; ++n) {
    word = n % 3 == 0 ? old_word : n % 3 == 1 ? new_word : pending;
    std::uint32_t before = word;
    nested = 0;
    gate_test_version = 0;
    std::memset(&gate_test_seen, 0, sizeof gate_test_seen);
    bool reached = single_step::interrupt_after(
        n, [] { gate_test_call(); },
        [] {
          // As a handler that calls a patched function: the word may ask again.
          Registers kept = gate_test_seen;
          int version = gate_test_version;
          std::uint64_t stack = gate_test_saved_stack;
          asm volatile("movl $7, %%edi\n call *%0\n" ::"r"(entry)
                       : "rax", "rcx", "rdx", "rsi", "rdi", "r8", "r9", "r10", "r11", "memory",
                         "cc");
          gate_test_seen = kept;
          gate_test_version = version;
          gate_test_saved_stack = stack;
          ++nested;
        });
    ASSERT_EQ(gate_test_version, before == old_word ? 1 : 2) << "interrupted after " << n;
    ASSERT_NO_FATAL_FAILURE(expect_everything_kept());
    if (HasFailure() || (!reached && n > 400)) break;
  }
  EXPECT_GT(n, 100);
}

// Through resolve() a thread's stack can be walked: a version's caller is above it.
_Unwind_Reason_Code look_for_caller(_Unwind_Context* context, void* found) {
  if (_Unwind_GetIP(context) == reinterpret_cast<std::uintptr_t>(&gate_test_returned)) {
    *static_cast<bool*>(found) = true;
  }
  return _URC_NO_REASON;
}
bool walked = false;
GateVerdict walk(GateRecord*, std::uintptr_t) {
  _Unwind_Backtrace(look_for_caller, &walked);
  return GateVerdict::take_new;
}
TEST_F(Gate, TheStackCanBeWalkedThroughResolve) {
  make(walk);
  word = pending;
  walked = false;
  gate_test_call();
  EXPECT_TRUE(walked);
}

TEST_F(Gate, AVersionStartsWithTheStackAlignedAsAtACall) {
  make(answer_again);
  word = pending;
  gate_test_call();
  EXPECT_EQ(gate_test_seen.stack, gate_test_saved_stack - 8);
  EXPECT_EQ(resolve_stack % 16, 0u);  // its %rbp
  EXPECT_EQ(given_stack, gate_test_saved_stack - 8);
}

TEST(Jump, NearAndFar) {
  CodePool pool;
  TextWriter writer = TextWriter::open();
  auto target = reinterpret_cast<CodeAddress>(+[](long a) { return a + 5; });
  for (CodeRange near : {CodeRange{target, target + 64}, CodeRange{0x20000000, 0x20000040}}) {
    auto slot = pool.allocate(near, jump_size);
    ASSERT_TRUE(slot);
    std::byte code[jump_size];
    std::size_t size = write_jump(slot->address, target, code);
    EXPECT_EQ(size == 5, reaches(slot->address, target));
    EXPECT_LE(size, jump_size);
    ASSERT_TRUE(pool.publish(writer, *slot, std::span(code).first(size)));
    EXPECT_EQ(reinterpret_cast<long (*)(long)>(slot->address)(37), 42);
  }
}

// --- wrap.hpp ---------------------------------------------------------------------------------------

class Wrap : public Gate {
 protected:
  void TearDown() override {
    gate_test_looks_after = 0;
    Gate::TearDown();
  }

  template <class F>
  F* make_wrap(WrapKind kind, Passage (*before)(WrapRecord*, molt_call*), F* original) {
    auto made = pool_.allocate(here(), wrap_stub_size);
    EXPECT_TRUE(made) << made.error().detail;
    static molt_chain some;  // its being there is all that is looked at
    record_.before_hook.chain = &some;
    record_.before = before;
    record_.after = after;
    record_.original = reinterpret_cast<CodeAddress>(original);
    std::byte code[wrap_stub_size];
    const std::size_t size = write_wrap_stub(made->address, record_, kind, code);
    EXPECT_GT(size, 0u);
    EXPECT_LE(size, wrap_stub_size);
    TextWriter writer = TextWriter::open();
    EXPECT_TRUE(pool_.publish(writer, *made, std::span(code).first(size)));
    gate_test_entry = made->address;
    return reinterpret_cast<F*>(made->address);
  }

  static Passage pass(WrapRecord*, molt_call* call) {
    seen_ = *call;
    clobber_everything();
    return Passage::pass;
  }
  static Passage watch(WrapRecord* record, molt_call* call) {
    seen_ = *call;
    EXPECT_TRUE(record->stack_words == 0 || call->stack[0] == 13);
    clobber_everything();
    return Passage::watch;
  }
  static Passage answer(WrapRecord*, molt_call* call) {
    call->result = 4711;
    call->float_result = 0.5;
    clobber_everything();
    return Passage::answer;
  }
  static void after(WrapRecord*, molt_call* call) {
    after_ = *call;
    ++afters_;
    clobber_everything();
  }

  void expect_arguments_kept(bool floats) {
    const Registers &given = gate_test_given, &seen = gate_test_seen;
    // %al counts them.
    EXPECT_TRUE(!floats || seen.integer[0] == given.integer[0]);
    for (int i : {1, 2, 3, 4, 5, 6}) EXPECT_EQ(seen.integer[i], given.integer[i]) << i;
    // %rbp is the wrapper's while it waits for a result.
    for (int i : {9, 11, 12, 13, 14}) EXPECT_EQ(seen.integer[i], given.integer[i]) << i;
    for (int i = 0; floats && i < 8; ++i) {
      EXPECT_EQ(std::memcmp(seen.vector[i], given.vector[i], 8), 0) << "vector " << i;
    }
    constexpr int in_call[] = {4, 3, 2, 1, 5, 6};  // of Registers::integer
    for (int i = 0; i < 6; ++i) EXPECT_EQ(seen_.integers[i], given.integer[in_call[i]]);
    for (int i = 0; floats && i < 8; ++i) {
      EXPECT_EQ(std::memcmp(&seen_.floats[i], given.vector[i], 8), 0) << "vector " << i;
    }
  }

  WrapRecord record_;
  static inline molt_call seen_, after_;
  static inline int afters_ = 0;
};

TEST_F(Wrap, ArgumentsReachTheFunction) {
  for (auto before : {pass, watch}) {
    for (auto kind : {WrapKind::integers, WrapKind::floats, WrapKind::careful}) {
      std::memset(&gate_test_seen, 0, sizeof gate_test_seen);
      afters_ = 0;
      make_wrap(kind, before, gate_test_new);
      gate_test_call();
      expect_arguments_kept(kind != WrapKind::integers);
      EXPECT_EQ(afters_, before == watch);
      if (before == pass) {
        EXPECT_EQ(gate_test_seen.stack, gate_test_saved_stack - 8);
      } else {
        EXPECT_EQ(gate_test_seen.stack % 16, (gate_test_saved_stack - 8) % 16);
      }
    }
  }
}

// W6: the callback changes where the call goes on, and until it is there, instruction by instruction, no
// register has ever held that address.
extern "C" {
long gate_test_step(CodeAddress entry);  // one instruction at a time, by SIGTRAP
Passage gate_test_turn(WrapRecord*, molt_call*);
void gate_test_turned();
CodeAddress gate_test_way;
Passage gate_test_passage;
}
asm(R"(
        .text
        .globl gate_test_step, gate_test_turn, gate_test_turned
gate_test_step:
        subq $8, %rsp
        movq %rdi, %r10
        pushfq
        orq $0x100, (%rsp)
        popfq
        call *%r10
        pushfq
        andq $-0x101, (%rsp)
        popfq
        addq $8, %rsp
        ret
gate_test_turn:
        pushq gate_test_way(%rip)
        popq 16(%rdi)
        movl gate_test_passage(%rip), %eax
        ret
gate_test_turned:
        movl $77, %eax
        ret
)");

TEST_F(Wrap, NoRegisterCarriesTheWay) {
  static int steps, carried;
  gate_test_way = reinterpret_cast<CodeAddress>(gate_test_turned);
  struct sigaction action = {}, before = {};
  action.sa_flags = SA_SIGINFO;
  action.sa_sigaction = [](int, siginfo_t*, void* context) {
    auto& registers = static_cast<ucontext_t*>(context)->uc_mcontext.gregs;
    const auto way = static_cast<greg_t>(gate_test_way);
    ++steps;
    if (registers[REG_RIP] == way) {
      registers[REG_EFL] &= ~greg_t{0x100};
      return;
    }
    for (int i = REG_R8; i <= REG_RCX; ++i) carried += registers[i] == way;
  };
  ASSERT_EQ(sigaction(SIGTRAP, &action, &before), 0);
  for (auto kind : {WrapKind::integers, WrapKind::floats}) {
    for (auto passage : {Passage::pass, Passage::watch}) {
      steps = carried = 0;
      gate_test_passage = passage;
      make_wrap(kind, gate_test_turn, gate_test_new);
      EXPECT_EQ(gate_test_step(gate_test_entry), 77);
      EXPECT_GT(steps, 20);
      EXPECT_EQ(carried, 0);
    }
  }
  sigaction(SIGTRAP, &before, nullptr);
}

// A side without callbacks is not called.
TEST_F(Wrap, EmptySides) {
  for (auto kind : {WrapKind::integers, WrapKind::floats, WrapKind::careful}) {
    std::memset(&gate_test_seen, 0, sizeof gate_test_seen);
    afters_ = 0;
    make_wrap(kind, answer, gate_test_new);
    record_.after_hook.chain = std::exchange(record_.before_hook.chain, nullptr);
    gate_test_call();
    EXPECT_EQ(afters_, 1);
    record_.after_hook.chain = nullptr;
    gate_test_call();
    EXPECT_EQ(afters_, 1);
    EXPECT_EQ(gate_test_seen.stack, gate_test_saved_stack - 8);
    if (kind == WrapKind::careful) expect_registers_kept();
  }
}

TEST_F(Wrap, CarefulPassKeepsEverything) {
  make_wrap(WrapKind::careful, pass, gate_test_new);
  gate_test_call();
  expect_everything_kept();
}

TEST_F(Wrap, CarefulWatchKeepsWhatTheFunctionLeft) {
  make_wrap(WrapKind::careful, watch, gate_test_new);
  gate_test_call();
  constexpr int rbp = 10;
  gate_test_seen.integer[rbp] = gate_test_given.integer[rbp];  // the wrapper's own
  expect_registers_kept();                                     // on the way in
  make_wrap(WrapKind::careful, watch, gate_test_quiet);
  gate_test_looks_after = 1;
  gate_test_call();
  expect_registers_kept();  // and on the way out
  EXPECT_EQ(after_.result, gate_test_given.integer[0]);
}

TEST_F(Wrap, CarefulAnswerKeepsTheRest) {
  make_wrap(WrapKind::careful, answer, gate_test_quiet);
  gate_test_looks_after = 1;
  gate_test_given.integer[0] = 4711;
  gate_test_call();
  expect_registers_kept();
}

long many(long a, double b, long c, double d, long e, double f, long g, double h, long i, double j,
          long k, double l, long m, double n, long o, double p, long q, double r, double s) {
  return a + 2 * c + 3 * e + 4 * g + 5 * i + 6 * k + 7 * m + 8 * o + 9 * q +
         static_cast<long>(10 * b + 20 * d + 30 * f + 40 * h + 50 * j + 60 * l + 70 * n + 80 * p +
                           90 * r + 100 * s);
}

TEST_F(Wrap, ArgumentsOnTheStackAreHandedOn) {
  const long wanted = many(1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19);
  for (auto before : {pass, watch}) {
    for (auto kind : {WrapKind::floats, WrapKind::careful}) {
      record_.stack_words = 3 + 2;
      auto* wrapped = make_wrap(kind, before, many);
      EXPECT_EQ(wrapped(1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19), wanted);
      if (before != watch) continue;
      EXPECT_EQ(static_cast<long>(after_.result), wanted);
    }
  }
}

double half(double a) { return a / 2; }

TEST_F(Wrap, FloatingResults) {
  record_.gives_float = 1;
  for (auto kind : {WrapKind::floats, WrapKind::careful}) {
    EXPECT_EQ(make_wrap(kind, pass, half)(7), 3.5);
    EXPECT_EQ(make_wrap(kind, watch, half)(7), 3.5);
    EXPECT_EQ(after_.float_result, 3.5);
    EXPECT_EQ(make_wrap(kind, answer, half)(7), 0.5);
  }
}

long throws(long a) {
  if (a > 0) throw a;
  return a;
}

TEST_F(Wrap, ExceptionsPass) {
  for (auto before : {pass, watch}) {
    for (auto kind : {WrapKind::integers, WrapKind::floats, WrapKind::careful}) {
      afters_ = 0;
      auto* wrapped = make_wrap(kind, before, throws);
      EXPECT_THROW(wrapped(3), long);
      EXPECT_EQ(afters_, 0);
      EXPECT_EQ(wrapped(-3), -3);
    }
  }
}

}  // namespace
