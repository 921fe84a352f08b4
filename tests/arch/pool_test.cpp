// Near memory, the writer of text, traps, and names.

#include <fcntl.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <ucontext.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cstring>
#include <fstream>
#include <functional>
#include <sstream>
#include <thread>

#include "arch/x86_64/entry.hpp"
#include "arch/x86_64/maps.hpp"
#include "arch/x86_64/names.hpp"
#include "arch/x86_64/pool.hpp"
#include "arch/x86_64/trap.hpp"

using namespace molt::arch;

namespace {

template <class R, class... A>
CodeAddress address_of(R (*function)(A...)) {
  return reinterpret_cast<CodeAddress>(function);
}
CodeAddress address_of(const void* p) { return reinterpret_cast<CodeAddress>(p); }

std::string protection_of(CodeAddress address) {
  std::ifstream maps("/proc/self/maps");
  for (std::string line; std::getline(maps, line);) {
    CodeAddress begin, end;
    char protection[5];
    if (std::sscanf(line.c_str(), "%lx-%lx %4s", &begin, &end, protection) == 3 &&
        address >= begin && address < end) {
      return protection;
    }
  }
  return "";
}

bool any_page_writable_and_executable() {
  auto maps = read_maps();
  for (auto& one : *maps) {
    if (one.writable && one.executable) return true;
  }
  return false;
}

// In a child: 0 if it went as it should, else what stopped it.
int in_child(const std::function<int()>& body) {
  fflush(nullptr);
  pid_t child = fork();
  if (child == 0) _exit(body());
  int status = 0;
  waitpid(child, &status, 0);
  return WIFSIGNALED(status) ? 128 + WTERMSIG(status) : WEXITSTATUS(status);
}

const std::byte return_7[] = {std::byte{0xb8}, std::byte{7}, std::byte{0},
                              std::byte{0},    std::byte{0}, std::byte{0xc3}};
using Seven = int (*)();

TEST(Pool, SlotsAreNearExecutableAndNeverWritable) {
  CodePool pool;
  TextWriter writer = TextWriter::open();
  // Where programs without PIE lie, this program, and a library.
  for (CodeAddress near : {CodeAddress{0x400000}, address_of(&protection_of),
                           address_of(reinterpret_cast<const void*>(&strlen))}) {
    auto slot = pool.allocate({near, near + 4096}, sizeof return_7);
    ASSERT_TRUE(slot) << slot.error().detail;
    EXPECT_TRUE(reaches(slot->address, near));
    EXPECT_TRUE(reaches(near, slot->address + slot->size));
    EXPECT_EQ(slot->address % 16, 0u);
    ASSERT_TRUE(pool.publish(writer, *slot, return_7));
    EXPECT_EQ(reinterpret_cast<Seven>(slot->address)(), 7);
    EXPECT_EQ(protection_of(slot->address), "r-xp");

    CodeAddress* cell = pool.allocate_cell(*slot);
    ASSERT_NE(cell, nullptr);
    EXPECT_TRUE(reaches(slot->address, address_of(cell)));
    *cell = 1;
    EXPECT_EQ(protection_of(address_of(cell)), "rw-p");
    pool.free_cell(cell);
    EXPECT_FALSE(any_page_writable_and_executable());
  }
  EXPECT_EQ(pool.blocks().size(), 3u);
}

TEST(Pool, FreedSlotsTrapAndAreUsedAgain) {
  CodePool pool;
  TextWriter writer = TextWriter::open();
  CodeRange near{address_of(&protection_of), address_of(&protection_of) + 1};
  auto first = pool.allocate(near, 100);
  ASSERT_TRUE(first);
  EXPECT_EQ(first->size, 112u);
  ASSERT_TRUE(pool.publish(writer, *first, return_7));
  pool.free(writer, *first);
  EXPECT_EQ(pool.used_bytes(), 0u);
  EXPECT_EQ(in_child([&] { return reinterpret_cast<Seven>(first->address)(); }), 128 + SIGTRAP);
  auto again = pool.allocate(near, 100);
  ASSERT_TRUE(again);
  EXPECT_EQ(again->address, first->address);
}

TEST(Pool, ManySlotsNeverOverlap) {
  CodePool pool;
  CodeRange near{address_of(&protection_of), address_of(&protection_of) + 1};
  std::vector<CodeRange> slots;
  for (int i = 0; i < 2000; ++i) {
    auto slot = pool.allocate(near, static_cast<std::size_t>(1 + i * 13 % 160));
    ASSERT_TRUE(slot);
    slots.push_back(slot->range());
  }
  std::ranges::sort(slots, {}, &CodeRange::begin);
  for (std::size_t i = 1; i < slots.size(); ++i) EXPECT_LE(slots[i - 1].end, slots[i].begin);
  EXPECT_GT(pool.blocks().size(), 1u);
}

// A reserved block is there when everything around has been taken since.
TEST(Pool, ExhaustionIsReportedAndReservingHelps) {
  EXPECT_EQ(in_child([] {
              CodeAddress near = 0x7000'0000'0000;
              CodePool reserved;
              if (!reserved.reserve({near, near + 1})) return 1;
              // All that is left within reach, as inaccessible memory.
              constexpr CodeAddress all = CodeAddress{1} << 32;
              auto maps = read_maps();
              CodeAddress from = near - all;
              for (auto& one : *maps) {
                if (one.range.end <= from || one.range.begin >= near + all) continue;
                if (one.range.begin > from) {
                  mmap(reinterpret_cast<void*>(from), one.range.begin - from, PROT_NONE,
                       MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED_NOREPLACE, -1, 0);
                }
                from = one.range.end;
              }
              if (from < near + all) {
                mmap(reinterpret_cast<void*>(from), near + all - from, PROT_NONE,
                     MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED_NOREPLACE, -1, 0);
              }
              CodePool late;
              auto slot = late.allocate({near, near + 1}, 16);
              if (slot) return 2;
              if (refusal_of(slot.error()) != Refusal::no_near_memory) return 3;
              if (slot.error().code != ENOMEM) return 4;
              return reserved.allocate({near, near + 1}, 16) ? 0 : 5;
            }),
            0);
}

// A page of text to write to: executable, private, of a file or not.
struct Text {
  explicit Text(int flags = MAP_PRIVATE | MAP_ANONYMOUS, int protection = PROT_READ | PROT_EXEC) {
    at = static_cast<std::byte*>(mmap(nullptr, 8192, PROT_READ | PROT_WRITE, flags, -1, 0));
    std::memset(at, 0x90, 8192);
    std::memcpy(at + 64, return_7, sizeof return_7);
    mprotect(at, 8192, protection);
  }
  ~Text() { munmap(at, 8192); }
  CodeAddress address(std::size_t offset = 0) const { return address_of(at + offset); }
  std::byte* at;
};
const std::byte eight[] = {std::byte{8}};

TEST(TextWriterTest, WritesAndKeepsProtections) {
  Text text;
  TextWriter writer = TextWriter::open();
  ASSERT_TRUE(writer.check({text.address(), text.address(8192)}));
  ASSERT_TRUE(writer.write(text.address(65), eight));
  EXPECT_EQ(reinterpret_cast<Seven>(text.address(64))(), 8);
  EXPECT_EQ(protection_of(text.address()), "r-xp");
  // Over two pages.
  const std::byte across[] = {std::byte{1}, std::byte{2}, std::byte{3}, std::byte{4}};
  ASSERT_TRUE(writer.write(text.address(4094), across));
  EXPECT_EQ(std::memcmp(text.at + 4094, across, 4), 0);
}

TEST(TextWriterTest, RefusesSharedAndUnmappedMemory) {
  Text shared(MAP_SHARED | MAP_ANONYMOUS), data(MAP_PRIVATE | MAP_ANONYMOUS, PROT_READ);
  TextWriter writer = TextWriter::open();
  auto checked = writer.check({shared.address(), shared.address(5)});
  ASSERT_FALSE(checked);
  EXPECT_EQ(refusal_of(checked.error()), Refusal::shared_mapping);
  checked = writer.check({data.address(), data.address(5)});
  ASSERT_FALSE(checked);
  EXPECT_EQ(refusal_of(checked.error()), Refusal::not_mapped);
  EXPECT_FALSE(writer.check({0x1000, 0x1005}));
  // A range that begins in text and ends outside.
  Text text;
  munmap(text.at + 4096, 4096);
  EXPECT_FALSE(writer.check({text.address(4090), text.address(4098)}));
  // Something new since the first look.
  Text newer;
  EXPECT_TRUE(writer.check({newer.address(), newer.address(16)}));
}

constexpr int set_mdwe =
    65;  // PR_SET_MDWE, with PR_MDWE_REFUSE_EXEC_GAIN: no memory becomes executable

void replace_pages_of_running_code(Text& text) {
  TextWriter writer = TextWriter::open();
  ASSERT_FALSE(writer.direct());
  // A thread that executes the page all the time sees the old or the new bytes, nothing else.
  std::atomic<bool> stop{false};
  std::atomic<int> wrong{0};
  std::thread runner([&] {
    while (!stop.load()) {
      int got = reinterpret_cast<Seven>(text.address(64))();
      if (got != 7 && got != 8) ++wrong;
    }
  });
  const std::byte seven[] = {std::byte{7}};
  for (int i = 0; i < 2000; ++i) {
    ASSERT_TRUE(writer.write(text.address(65), i % 2 ? seven : eight));
    ASSERT_TRUE(serialise_cores());
    ASSERT_EQ(reinterpret_cast<Seven>(text.address(64))(), i % 2 ? 7 : 8);
  }
  const std::byte across[] = {std::byte{1}, std::byte{2}, std::byte{3}, std::byte{4}};
  ASSERT_TRUE(writer.write(text.address(4094), across));
  EXPECT_EQ(std::memcmp(text.at + 4094, across, 4), 0);
  stop.store(true);
  runner.join();
  EXPECT_EQ(wrong.load(), 0);
  EXPECT_FALSE(any_page_writable_and_executable());
  EXPECT_EQ(protection_of(text.address()), "r-xp");
}

// The variables are read once in a process, so the test runs itself again with them.
TEST(TextWriterTest, ReplacesPagesWhereProcMemIsDenied) {
  if (getenv("MOLT_NO_PROC_MEM") == nullptr) {
    EXPECT_EQ(in_child([] {
                setenv("MOLT_NO_PROC_MEM", "1", 1);
                setenv("MOLT_NO_MEMBARRIER", "1", 1);
                execl("/proc/self/exe", "arch_pool_test",
                      "--gtest_filter=TextWriterTest.ReplacesPagesWhereProcMemIsDenied", nullptr);
                return 99;
              }),
              0);
    return;
  }
  Text text, other;
  replace_pages_of_running_code(text);
  if (prctl(set_mdwe, 1, 0, 0, 0) == 0) {  // since Linux 6.3
    void* page = mmap(nullptr, 4096, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    ASSERT_NE(mprotect(page, 4096, PROT_READ | PROT_EXEC), 0);
    replace_pages_of_running_code(other);
  }
}

TEST(TextWriterTest, WorksUnderMemoryDenyWriteExecute) {
  EXPECT_EQ(in_child([] {
              Text text;
              if (prctl(set_mdwe, 1, 0, 0, 0) != 0)
                return 0;  // a kernel before 6.3 has nothing to deny
              TextWriter writer = TextWriter::open();
              if (!writer.write(text.address(65), eight)) return 1;
              CodePool pool;
              auto slot = pool.allocate({text.address(), text.address(1)}, 16);
              if (!slot || !pool.publish(writer, *slot, return_7)) return 2;
              return reinterpret_cast<Seven>(text.address(64))() == 8 &&
                             reinterpret_cast<Seven>(slot->address)() == 7
                         ? 0
                         : 3;
            }),
            0);
}

// --- traps -----------------------------------------------------------------------------------

int answer_9() { return 9; }

TEST(Trap, SendsThreadsOn) {
  Text text;
  ASSERT_TRUE(trap_prepare());
  ASSERT_TRUE(trap_arm(text.address(64), address_of(answer_9)));
  TextWriter writer = TextWriter::open();
  std::uint64_t before = trap_count();
  errno = 77;
  ASSERT_TRUE(writer.write_byte(text.address(64), std::byte{0xcc}));
  errno = 77;
  EXPECT_EQ(reinterpret_cast<Seven>(text.address(64))(), 9);
  EXPECT_EQ(errno, 77);
  EXPECT_EQ(trap_count(), before + 1);
  // Late: the int3 has gone when the handler looks. Simulated by a handler that is called with a
  // context of its own.
  ASSERT_TRUE(writer.write_byte(text.address(64), std::byte{0xb8}));
  trap_disarm(text.address(64));
  struct sigaction ours;
  sigaction(SIGTRAP, nullptr, &ours);
  siginfo_t info = {};
  info.si_code = SI_KERNEL;
  ucontext_t context = {};
  context.uc_mcontext.gregs[REG_RIP] = static_cast<greg_t>(text.address(65));
  ours.sa_sigaction(SIGTRAP, &info, &context);
  EXPECT_EQ(static_cast<CodeAddress>(context.uc_mcontext.gregs[REG_RIP]), text.address(64));
  EXPECT_TRUE(trap_handler_range().contains(address_of(ours.sa_sigaction)));
}

TEST(Trap, ManySites) {
  ASSERT_TRUE(trap_prepare());
  // More than a few tables; nothing is executed there.
  for (CodeAddress site = 0x1000; site < 0x1000 + 16 * 3000; site += 16) {
    ASSERT_TRUE(trap_arm(site, site + 5));
    ASSERT_TRUE(trap_arm(site, site + 7));
  }
  struct sigaction ours;
  sigaction(SIGTRAP, nullptr, &ours);
  for (CodeAddress site = 0x1000; site < 0x1000 + 16 * 3000; site += 16) {
    siginfo_t info = {};
    info.si_code = SI_KERNEL;
    ucontext_t context = {};
    context.uc_mcontext.gregs[REG_RIP] = static_cast<greg_t>(site + 1);
    ours.sa_sigaction(SIGTRAP, &info, &context);
    ASSERT_EQ(static_cast<CodeAddress>(context.uc_mcontext.gregs[REG_RIP]), site + 7);
  }
}

int host_traps = 0;
void count_host_trap(int) { ++host_traps; }
void count_host_trap_info(int, siginfo_t* info, void*) {
  if (info->si_signo == SIGTRAP) ++host_traps;
}

TEST(Trap, TheHostsTrapsAreTheHosts) {
  EXPECT_EQ(in_child([] {
              // Installed before ours, of the old kind.
              signal(SIGTRAP, count_host_trap);
              if (!trap_prepare()) return 1;
              asm volatile("int3");
              if (host_traps != 1) return 2;
              kill(getpid(), SIGTRAP);
              if (host_traps != 2) return 3;
              // Put over ours later, of the new kind; ours goes over it again.
              struct sigaction host = {};
              host.sa_sigaction = count_host_trap_info;
              host.sa_flags = SA_SIGINFO;
              sigaction(SIGTRAP, &host, nullptr);
              if (!trap_prepare()) return 4;
              asm volatile("int3");
              return host_traps == 3 ? 0 : 5;
            }),
            0);
  // SA_SIGINFO makes no handler of these two.
  for (const int flags : {0, SA_SIGINFO}) {
    struct sigaction host = {};
    host.sa_flags = flags;
    // Nobody handles them: the default is death.
    EXPECT_EQ(in_child([&] {
                host.sa_handler = SIG_DFL;
                sigaction(SIGTRAP, &host, nullptr);
                if (!trap_prepare()) return 1;
                asm volatile("int3");
                return 2;
              }),
              128 + SIGTRAP);
    // One that was sent may be ignored; one that happened may not.
    EXPECT_EQ(in_child([&] {
                host.sa_handler = SIG_IGN;
                sigaction(SIGTRAP, &host, nullptr);
                if (!trap_prepare()) return 1;
                kill(getpid(), SIGTRAP);
                asm volatile("int3");
                return 2;
              }),
              128 + SIGTRAP);
  }
}

TEST(Trap, AHandlerThatBlocksThemDoesSoNoLonger) {
  struct sigaction action = {}, before, after;
  action.sa_handler = [](int) {};
  sigfillset(&action.sa_mask);
  action.sa_flags = SA_RESTART;
  sigaction(SIGUSR2, &action, &before);
  auto ready = trap_prepare();
  sigaction(SIGUSR2, &before, &after);
  ASSERT_TRUE(ready);
  EXPECT_EQ(after.sa_handler, action.sa_handler);
  EXPECT_EQ(after.sa_flags & SA_RESTART, SA_RESTART);
  EXPECT_EQ(sigismember(&after.sa_mask, SIGTRAP), 0);
  EXPECT_EQ(sigismember(&after.sa_mask, SIGUSR1), 1);
}

// Else a handler that interrupts ours on an alternate stack, and meets an int3, needs room for three frames there.
TEST(Trap, IsInterruptedByNothingAndTheHostsIsAsEver) {
  EXPECT_EQ(in_child([] {
              static sigset_t in_host;
              struct sigaction host = {};
              host.sa_handler = [](int) { pthread_sigmask(SIG_SETMASK, nullptr, &in_host); };
              sigaddset(&host.sa_mask, SIGUSR1);
              sigaction(SIGTRAP, &host, nullptr);
              sigset_t own;
              sigemptyset(&own);
              sigaddset(&own, SIGUSR2);
              pthread_sigmask(SIG_BLOCK, &own, nullptr);
              if (!trap_prepare()) return 1;
              struct sigaction ours;
              sigaction(SIGTRAP, nullptr, &ours);
              const auto blocks = [](const sigset_t& mask, int signal) {
                return sigismember(&mask, signal) == 1;
              };
              if (!blocks(ours.sa_mask, SIGALRM) || !blocks(ours.sa_mask, SIGUSR1)) return 2;
              if (blocks(ours.sa_mask, SIGTRAP) || blocks(ours.sa_mask, SIGSEGV)) return 3;
              asm volatile("int3");
              if (!blocks(in_host, SIGUSR1) || !blocks(in_host, SIGUSR2)) return 4;
              if (blocks(in_host, SIGALRM)) return 5;
              sigset_t after;
              pthread_sigmask(SIG_SETMASK, nullptr, &after);
              return blocks(after, SIGUSR2) && !blocks(after, SIGUSR1) ? 0 : 6;
            }),
            0);
}

// --- names -----------------------------------------------------------------------------------

TEST(Names, PerfIsToldWhenItAsks) {
  EXPECT_EQ(in_child([] {
              char path[64];
              std::snprintf(path, sizeof path, "/tmp/perf-%d.map", getpid());
              NamedCode* before = name_code({0x1000, 0x1040}, "molt:before");
              if (access(path, F_OK) == 0) return 1;
              if (!name_code_for_perf()) return 2;
              NamedCode* after = name_code({0x2000, 0x2040}, "molt:after");
              std::ifstream in(path);
              std::stringstream text;
              text << in.rdbuf();
              unlink(path);
              forget_code(before);
              forget_code(after);
              forget_code(nullptr);
              return text.str() == "1000 40 molt:before\n2000 40 molt:after\n" ? 0 : 3;
            }),
            0);
}

}  // namespace
