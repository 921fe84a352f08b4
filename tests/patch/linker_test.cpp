// Patch files linked into this very program: each kind of relocation, and that what is refused leaves
// nothing behind.

#include "linker/linker.hpp"

#include <dlfcn.h>
#include <gtest/gtest.h>
#include <malloc.h>
#include <sys/mman.h>
#include <unistd.h>

#include <atomic>
#include <fstream>
#include <thread>

#include "sample.hpp"

namespace molt::patch_test {
namespace {

using linker::Linked;
using patchfile::PatchFile;

extern "C" {
// To be replaced: at least as long as the check wants.
__attribute__((noinline, used)) long molt_test_victim(long given) {
  asm volatile("nop; nop; nop; nop; nop; nop; nop; nop");
  return given + 1;
}
long molt_test_counter = 40;
thread_local long molt_test_local = 7;
}

// A sanitizer has a heap of its own.
#if !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)
#define MOLT_WATCHES_HEAP
// What is given back to the heap while a patch is linked, as whoever searches the heap would find it.
std::atomic<bool> is_watching{false};
std::byte given_back[1 << 20];
std::size_t given_back_bytes = 0;
#endif

const elf::NamedObject& self() {
  static const auto found = elf::find_loaded("");
  return *found;
}
std::uint64_t in_file(const void* address) {
  return reinterpret_cast<std::uintptr_t>(address) - self().bias;
}
std::span<const std::byte> victim() {
  return {reinterpret_cast<const std::byte*>(&molt_test_victim), 16};
}

Sample sample(std::vector<std::byte> text) {
  return make_sample("program", self().build_id,
                     in_file(reinterpret_cast<void*>(&molt_test_victim)), victim(),
                     std::move(text));
}
std::uint32_t bind(Sample& s, const std::string& name, const void* address) {
  builder::PatchWriter::Binding binding;
  binding.value = in_file(address);
  return s.writer.bind(name, binding);
}
std::uint32_t bind_dynamic(Sample& s, const std::string& name) {
  builder::PatchWriter::Binding binding;
  binding.kind = patch_file::Binding::dynamic;
  binding.is_function = true;
  return s.writer.bind(name, binding);
}
std::uint32_t bind_local(Sample& s) {
  // Its offset in the block: from where this thread has it.
  builder::PatchWriter::Binding binding;
  binding.kind = patch_file::Binding::tls;
  for (const Elf64_Phdr& p : self().segments) {
    if (p.p_type != PT_TLS) continue;
    const auto thread = reinterpret_cast<std::uintptr_t>(__builtin_thread_pointer());
    const std::uint64_t size = (p.p_memsz + p.p_align - 1) / p.p_align * p.p_align;
    binding.value = reinterpret_cast<std::uintptr_t>(&molt_test_local) - (thread - size);
  }
  return s.writer.bind("molt_test_local", binding);
}

struct Made {
  std::vector<std::byte> bytes;
  Result<std::unique_ptr<Linked>> linked;
};
Made link(const Sample& s) {
  Made made{s.writer.bytes(), nullptr};
  auto file = PatchFile::parse(made.bytes);
  if (!file) {
    made.linked = tl::unexpected<Error>(file.error());
  } else {
    made.linked = linker::link(*file, {});
  }
  return made;
}
long call(const Made& made, long given = 0) {
  const std::uintptr_t at = (*made.linked)->functions().front().new_address;
  return reinterpret_cast<long (*)(long)>(at)(given);
}
#define ASSERT_LINKED(made) ASSERT_TRUE((made).linked) << (made).linked.error().detail

std::size_t mappings() {
  std::ifstream maps("/proc/self/maps");
  std::size_t count = 0;
  for (std::string line; std::getline(maps, line);) {
    // Ours have no name, and are no stack or heap.
    count += line.find('/') == std::string::npos && line.find('[') == std::string::npos;
  }
  return count;
}
bool is_protected(std::uintptr_t address, const std::string& expected) {
  std::ifstream maps("/proc/self/maps");
  for (std::string line; std::getline(maps, line);) {
    unsigned long begin, end;
    char protection[8];
    if (std::sscanf(line.c_str(), "%lx-%lx %4s", &begin, &end, protection) == 3 &&
        address >= begin && address < end) {
      return expected == std::string(protection, 3);
    }
  }
  return false;
}

#ifdef MOLT_WATCHES_HEAP
TEST(Linker, LeavesNothingOfTheStagingOnTheHeap) {
  constexpr int into = 5;
  Sample s = sample(code({0x90, 0x90, 0x90, 0x90, 0x90, 0x90, 0xc3}));
  s.writer.relocate(s.variables, 0, R_X86_64_64, s.entry, into);
  s.writer.relocate(s.constants, 8, R_X86_64_64, s.entry, into);
  given_back_bytes = 0;
  is_watching.store(true, std::memory_order_relaxed);
  auto made = link(s);
  is_watching.store(false, std::memory_order_relaxed);
  ASSERT_LINKED(made);
  ASSERT_GT(given_back_bytes, 3 * 4096u) << "the staging was not seen";
  const std::uintptr_t pointer = (*made.linked)->functions().front().new_address + into;
  for (std::size_t at = 0; at + 8 <= given_back_bytes; at += 8) {
    std::uintptr_t word;
    std::memcpy(&word, given_back + at, sizeof word);
    EXPECT_NE(pointer, word) << "at " << at;
  }
}
#endif

TEST(Linker, CodeIsNearAndNeverWritable) {
  auto made = link(sample(code({0x48, 0x8d, 0x47, 0x05, 0xc3})));  // lea 5(%rdi),%rax; ret
  ASSERT_LINKED(made);
  EXPECT_EQ(12, call(made, 7));
  const linker::Target& target = (*made.linked)->targets().front();
  const auto distance = static_cast<std::int64_t>(target.whole.begin) -
                        static_cast<std::int64_t>(self().extent.begin);
  EXPECT_LT(std::abs(distance), std::int64_t{1} << 31);
  EXPECT_TRUE(is_protected(target.code.begin, "r-x"));
  EXPECT_TRUE(is_protected(target.constants.begin, "r--"));
  EXPECT_TRUE(is_protected(target.variables.begin, "rw-"));
}

TEST(Linker, GoesWithoutATrace) {
  const std::size_t before = mappings();
  {
    auto made = link(sample(code({0xc3})));
    ASSERT_LINKED(made);
    EXPECT_GT(mappings(), before);
  }
  EXPECT_EQ(before, mappings());
}

TEST(Linker, ReachesTheProgramsOwnVariables) {
  Sample s = sample(code({0x48, 0x8b, 0x05, 0, 0, 0, 0, 0xc3}));  // mov counter(%rip),%rax; ret
  s.writer.relocate(s.text, 3, R_X86_64_PC32, bind(s, "molt_test_counter", &molt_test_counter), -4);
  auto made = link(s);
  ASSERT_LINKED(made);
  molt_test_counter = 41;
  EXPECT_EQ(41, call(made));
}

// N3: a register that nothing may touch, not even one that callees may.
TEST(Linker, CallsFarFunctionsWithoutTouchingARegister) {
  // mov $99,%r11; push %rbx; call getpid; pop %rbx; ret. The veneer is entered by the call.
  Sample s = sample(code({0x53, 0xe8, 0, 0, 0, 0, 0x5b, 0xc3}));
  s.writer.relocate(s.text, 2, R_X86_64_PLT32, bind_dynamic(s, "getpid"), -4);
  auto made = link(s);
  ASSERT_LINKED(made);
  EXPECT_EQ(getpid(), call(made));
  const auto& functions = (*made.linked)->targets().front().functions;
  ASSERT_EQ(2u, functions.size());  // the function, and the veneers
  const auto* veneer = reinterpret_cast<const unsigned char*>(functions.back().begin);
  EXPECT_EQ(16u, functions.back().size());
  EXPECT_EQ(0xff, veneer[0]);  // jmp *2(%rip)
  EXPECT_EQ(0x25, veneer[1]);
}

TEST(Linker, LoadsAddressesFromATable) {
  // mov getpid@GOTPCREL(%rip),%rax; jmp *%rax
  Sample s = sample(code({0x48, 0x8b, 0x05, 0, 0, 0, 0, 0xff, 0xe0}));
  s.writer.relocate(s.text, 3, R_X86_64_REX_GOTPCRELX, bind_dynamic(s, "getpid"), -4);
  auto made = link(s);
  ASSERT_LINKED(made);
  EXPECT_EQ(getpid(), call(made));
}

TEST(Linker, RewritesALeaThatDoesNotReach) {
  // lea getpid(%rip),%rax; ret
  Sample s = sample(code({0x48, 0x8d, 0x05, 0, 0, 0, 0, 0xc3}));
  s.writer.relocate(s.text, 3, R_X86_64_PC32, bind_dynamic(s, "getpid"), -4);
  auto made = link(s);
  ASSERT_LINKED(made);
  EXPECT_EQ(reinterpret_cast<long>(&getpid), call(made));
}

class FarLoad : public testing::TestWithParam<int> {};

// mov environ(%rip),%reg, in a program that has no copy of it; and no other register is touched.
TEST_P(FarLoad, GoesByAStub) {
  const int reg = GetParam(), high = reg >= 8, low = reg & 7;
  // push %reg; mov environ(%rip),%reg; mov %reg,%rax; pop %reg; ret. Or for rax the load alone.
  std::vector<std::byte> text;
  const auto add = [&](std::initializer_list<int> bytes) {
    for (int b : bytes) text.push_back(static_cast<std::byte>(b));
  };
  if (reg != 0) add({0x40 | high, 0x50 | low});
  add({0x48 | high << 2, 0x8b, low << 3 | 5, 0, 0, 0, 0});
  const std::size_t field = text.size() - 4;
  if (reg != 0) add({0x48 | high << 2, 0x89, 0xc0 | low << 3, 0x40 | high, 0x58 | low});
  add({0xc3});
  Sample s = sample(std::move(text));
  builder::PatchWriter::Binding binding;
  binding.kind = patch_file::Binding::dynamic;
  s.writer.relocate(s.text, field, R_X86_64_PC32, s.writer.bind("environ", binding), -4);
  auto made = link(s);
  ASSERT_LINKED(made);
  const auto distance = reinterpret_cast<std::uintptr_t>(dlsym(RTLD_DEFAULT, "environ")) -
                        (*made.linked)->targets().front().whole.begin;
  ASSERT_GT(distance, std::uintptr_t{1} << 31) << "this program has environ itself: no test";
  EXPECT_EQ(*static_cast<long*>(dlsym(RTLD_DEFAULT, "environ")), call(made));
}
INSTANTIATE_TEST_SUITE_P(Registers, FarLoad, testing::Values(0, 1, 2, 3, 5, 6, 7, 8, 12, 13, 15));

TEST(Linker, RefusesWhatDoesNotReach) {
  const std::size_t before = mappings();
  // cmp getpid(%rip),%rax: there is no register to spare.
  Sample s = sample(code({0x48, 0x3b, 0x05, 0, 0, 0, 0, 0xc3}));
  s.writer.relocate(s.text, 3, R_X86_64_PC32, bind_dynamic(s, "getpid"), -4);
  auto made = link(s);
  ASSERT_FALSE(made.linked);
  EXPECT_EQ(ERANGE, made.linked.error().code);
  EXPECT_NE(nullptr, std::strstr(made.linked.error().detail, "getpid"));
  EXPECT_EQ(before, mappings());
}

TEST(Linker, RefusesAddressesOf32BitsThatHaveMore) {
  Sample s = sample(code({0xb8, 0, 0, 0, 0, 0xc3}));  // mov $counter,%eax
  s.writer.relocate(s.text, 1, R_X86_64_32, bind(s, "molt_test_counter", &molt_test_counter), 0);
  auto made = link(s);
  const bool is_low = reinterpret_cast<std::uintptr_t>(&molt_test_counter) < (1ull << 32);
  EXPECT_EQ(is_low, made.linked.has_value());
}

TEST(Linker, FillsConstantsAndVariables) {
  // mov 8+constants(%rip),%rax; mov (%rax),%rax; add variables(%rip),%rax; ret
  Sample s = sample(
      code({0x48, 0x8b, 0x05, 0, 0, 0, 0, 0x48, 0x8b, 0x00, 0x48, 0x03, 0x05, 0, 0, 0, 0, 0xc3}));
  const auto constants = s.writer.define("", s.constants, 0, 0, STT_NOTYPE);
  const auto variables = s.writer.define("", s.variables, 0, 0, STT_NOTYPE);
  s.writer.relocate(s.text, 3, R_X86_64_PC32, constants, 8 - 4);
  s.writer.relocate(s.text, 13, R_X86_64_PC32, variables, -4);
  s.writer.relocate(s.constants, 8, R_X86_64_64, bind(s, "molt_test_counter", &molt_test_counter),
                    0);
  auto made = link(s);
  ASSERT_LINKED(made);
  molt_test_counter = 5;
  EXPECT_EQ(5, call(made));
}

class ThreadLocal : public testing::TestWithParam<int> {};

TEST_P(ThreadLocal, VariablesOfEveryThread) {
  Sample s = [&] {
    switch (GetParam()) {
      case R_X86_64_TPOFF32: {  // mov %fs:local@tpoff,%rax; ret
        Sample one = sample(code({0x64, 0x48, 0x8b, 0x04, 0x25, 0, 0, 0, 0, 0xc3}));
        one.writer.relocate(one.text, 5, R_X86_64_TPOFF32, bind_local(one), 0);
        return one;
      }
      case R_X86_64_GOTTPOFF: {  // mov local@gottpoff(%rip),%rax; mov %fs:(%rax),%rax; ret
        Sample one = sample(code({0x48, 0x8b, 0x05, 0, 0, 0, 0, 0x64, 0x48, 0x8b, 0x00, 0xc3}));
        one.writer.relocate(one.text, 3, R_X86_64_GOTTPOFF, bind_local(one), -4);
        return one;
      }
      case R_X86_64_TLSGD: {  // push; data16 lea local@tlsgd(%rip),%rdi; call __tls_get_addr; mov; pop; ret
        Sample one = sample(code({0x53, 0x66, 0x48, 0x8d, 0x3d, 0, 0,    0,    0,    0x66, 0x66,
                                  0x48, 0xe8, 0,    0,    0,    0, 0x48, 0x8b, 0x00, 0x5b, 0xc3}));
        one.writer.relocate(one.text, 5, R_X86_64_TLSGD, bind_local(one), -4);
        one.writer.relocate(one.text, 13, R_X86_64_PLT32, bind_dynamic(one, "__tls_get_addr"), -4);
        return one;
      }
      default: {  // push; lea @tlsld(%rip),%rdi; call __tls_get_addr; mov local@dtpoff(%rax),%rax; pop; ret
        Sample one = sample(code({0x53, 0x48, 0x8d, 0x3d, 0,    0, 0, 0, 0xe8, 0,    0,
                                  0,    0,    0x48, 0x8b, 0x80, 0, 0, 0, 0,    0x5b, 0xc3}));
        const auto local = bind_local(one);
        one.writer.relocate(one.text, 4, R_X86_64_TLSLD, local, -4);
        one.writer.relocate(one.text, 9, R_X86_64_PLT32, bind_dynamic(one, "__tls_get_addr"), -4);
        one.writer.relocate(one.text, 16, R_X86_64_DTPOFF32, local, 0);
        return one;
      }
    }
  }();
  auto made = link(s);
  ASSERT_LINKED(made);
  molt_test_local = 11;
  EXPECT_EQ(11, call(made));
  std::thread([&] {
    molt_test_local = 12;
    EXPECT_EQ(12, call(made));
  }).join();
}
INSTANTIATE_TEST_SUITE_P(Models, ThreadLocal,
                         testing::Values(R_X86_64_TPOFF32, R_X86_64_GOTTPOFF, R_X86_64_TLSGD,
                                         R_X86_64_TLSLD));

// --- N1: what is refused before anything is mapped ---

TEST(Linker, RefusesAnotherBuildId) {
  const std::size_t before = mappings();
  auto made = link(make_sample("program", std::string(40, 'a'),
                               in_file(reinterpret_cast<void*>(&molt_test_victim)), victim(),
                               code({0xc3})));
  ASSERT_FALSE(made.linked);
  EXPECT_EQ(ESTALE, made.linked.error().code);
  EXPECT_EQ(before, mappings());
}

TEST(Linker, RefusesOtherBytes) {
  std::vector<std::byte> other(victim().begin(), victim().end());
  other[3] ^= std::byte{1};
  auto made =
      link(make_sample("program", self().build_id,
                       in_file(reinterpret_cast<void*>(&molt_test_victim)), other, code({0xc3})));
  ASSERT_FALSE(made.linked);
  EXPECT_EQ(ESTALE, made.linked.error().code);
  EXPECT_NE(nullptr, std::strstr(made.linked.error().detail, "bytes differ"));
}

TEST(Linker, RefusesFunctionsWhereThereIsNoCode) {
  auto made = link(make_sample("program", self().build_id, in_file(&molt_test_counter),
                               std::as_bytes(std::span(&molt_test_counter, 1)), code({0xc3})));
  ASSERT_FALSE(made.linked);
  EXPECT_EQ(ESTALE, made.linked.error().code);
}

TEST(Linker, RefusesSymbolsThatNobodyHas) {
  Sample s = sample(code({0xe8, 0, 0, 0, 0, 0xc3}));
  s.writer.relocate(s.text, 1, R_X86_64_PLT32, bind_dynamic(s, "molt_test_nowhere"), -4);
  auto made = link(s);
  ASSERT_FALSE(made.linked);
  EXPECT_EQ(ENOENT, made.linked.error().code);
  EXPECT_NE(nullptr, std::strstr(made.linked.error().detail, "molt_test_nowhere"));
}

TEST(Linker, EachTargetGetsItsOwnNear) {
  auto libc = elf::find_loaded("libc.so.6");
  ASSERT_TRUE(libc);
  Sample s = sample(code({0x48, 0x8d, 0x47, 0x05, 0xc3}));
  const auto second = s.writer.add_target("libc.so.6", libc->build_id, 0);
  builder::PatchWriter::Section section;
  section.name = ".text.there";
  section.content = code({0xc3});
  section.executable = true;
  section.target = second;
  const auto text = s.writer.add_section(section);
  builder::PatchWriter::Function function;
  const auto address = reinterpret_cast<std::uintptr_t>(&getpid);
  function.target = second;
  function.name = "getpid";
  function.symbol = s.writer.define("there", text, 0, 1, STT_FUNC);
  function.old_address = address - libc->bias;
  function.old_size = 8;
  function.old_bytes = {reinterpret_cast<const std::byte*>(address), 8};
  s.writer.add_function(function);
  auto made = link(s);
  ASSERT_LINKED(made);
  ASSERT_EQ(2u, (*made.linked)->targets().size());
  for (const auto& function_there : (*made.linked)->functions()) {
    const auto& target = (*made.linked)->targets()[function_there.target];
    const auto distance =
        static_cast<std::int64_t>(target.whole.begin - target.object.extent.begin);
    EXPECT_LT(std::abs(distance), std::int64_t{1} << 31);
    EXPECT_TRUE(target.code.contains(function_there.new_address));
  }
}

TEST(Linker, TheCheckAloneChangesNothing) {
  const Sample s = sample(code({0xc3}));
  const auto bytes = s.writer.bytes();
  auto file = PatchFile::parse(bytes);
  ASSERT_TRUE(file);
  const std::size_t before = mappings();
  EXPECT_TRUE(linker::check(*file, {}));
  EXPECT_EQ(before, mappings());
}

}  // namespace
}  // namespace molt::patch_test

// In front of libc's.
#ifdef MOLT_WATCHES_HEAP
extern "C" void __libc_free(void* block);
extern "C" void free(void* block) {
  using namespace molt::patch_test;
  if (block != nullptr && is_watching.load(std::memory_order_relaxed)) {
    const std::size_t bytes = malloc_usable_size(block);
    if (given_back_bytes + bytes <= sizeof given_back) {
      std::memcpy(given_back + given_back_bytes, block, bytes);
      given_back_bytes += bytes & ~std::size_t{7};
    }
  }
  __libc_free(block);
}
#endif
