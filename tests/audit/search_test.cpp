// Pointers planted in every kind of memory are found there and named; what does not count is not
// found; a pointer that moves behind the search's back is found all the same.

#include <dlfcn.h>
#include <gtest/gtest.h>
#include <link.h>
#include <pthread.h>
#include <sched.h>
#include <semaphore.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <time.h>
#include <ucontext.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <fstream>
#include <functional>
#include <ostream>
#include <string>
#include <string_view>
#include <thread>
#include <vector>

#include "audit/audit.hpp"
#include "audit/target.hpp"

using namespace molt;
using audit::Looks;
using audit::Method;
using audit::Place;

// Not in an anonymous namespace: their names are expected in the answer.
void* g_planted_in_bss;
void* g_planted_in_data = reinterpret_cast<void*>(1);
thread_local void* t_planted;

namespace {

// Lives on a test's stack, which is not searched: anywhere else its own words would be found.
struct Victim {
  void* handle = dlopen(VICTIM, RTLD_NOW | RTLD_LOCAL);
  audit::Target target;
  Victim() { target = *audit::target_of(handle, VICTIM); }
  ~Victim() { dlclose(handle); }
  template <class F = void (*)()>
  F find(const char* name) const {
    return reinterpret_cast<F>(dlsym(handle, name));
  }
  void* address(const char* name, std::size_t offset = 0) const {
    return static_cast<char*>(dlsym(handle, name)) + offset;
  }
};

struct How {
  const char* name;
  Method method;
  bool old_pagemap = false;
  bool no_pagemap = false;
};

void PrintTo(const How& how, std::ostream* out) { *out << how.name; }

class Search : public testing::TestWithParam<How> {
 protected:
  audit::Options options() const {
    audit::Options o;
    o.deadline = Deadline::in_ms(30'000);
    o.method = GetParam().method;
    o.old_pagemap = GetParam().old_pagemap;
    o.no_pagemap = GetParam().no_pagemap;
    return o;
  }
  audit::Report search(const Victim& victim) const { return search(victim, options()); }
  // What does not bar unloading is left out, unless stacks are asked for.
  static audit::Report search(const Victim& victim, const audit::Options& how) {
    auto report = audit::audit(victim.target, how);
    EXPECT_TRUE(report.has_value()) << (report ? "" : report.error().detail);
    if (!report) return {};
    std::erase_if(report->findings, [&](const audit::Finding& f) {
      return !f.bars && (!how.stacks || f.place != Place::stack);
    });
    return std::move(*report);
  }
};

std::string texts(const audit::Report& report) {
  std::string all;
  for (const auto& finding : report.findings) all += finding.text() + "\n";
  return all;
}

// Exactly one finding, at this address (0: the kernel's), with these words in its text.
void expect_one(const audit::Report& report, Place place, Looks looks, const void* at,
                const std::vector<std::string>& words) {
  ASSERT_EQ(report.findings.size(), 1u) << texts(report);
  const audit::Finding& f = report.findings[0];
  EXPECT_EQ(f.place, place) << f.text();
  EXPECT_EQ(f.looks, looks) << f.text();
  EXPECT_EQ(f.address, reinterpret_cast<std::uintptr_t>(at)) << f.text();
  for (const std::string& word : words) {
    EXPECT_NE(f.text().find(word), std::string::npos) << f.text() << " does not say " << word;
  }
  EXPECT_TRUE(report.stable);
}

void* pages(std::size_t bytes, int flags = MAP_PRIVATE) {
  void* memory = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, flags | MAP_ANONYMOUS, -1, 0);
  EXPECT_NE(memory, MAP_FAILED);
  return memory;
}

// A thread that stops where the test wants it.
class Stopped {
 public:
  explicit Stopped(std::function<void(const std::function<void()>&)> run)
      : thread_([this, run] {
          tid = gettid();
          pthread_setname_np(pthread_self(), "holder");
          run([this] {
            sem_post(&there_);
            sem_wait(&go_);
          });
        }) {
    sem_wait(&there_);
    // Until the kernel says that it sleeps: only then is its stack pointer told.
    for (std::string call; call.empty() || call == "running";) {
      std::ifstream("/proc/self/task/" + std::to_string(tid) + "/syscall") >> call;
      sched_yield();
    }
  }
  // Until it sleeps, and the kernel tells its stack pointer.
  void settle() const {
    const std::string file = "/proc/self/task/" + std::to_string(tid) + "/syscall";
    char first = 'r';  // "running"
    while (first == 'r') {
      sched_yield();
      FILE* state = std::fopen(file.c_str(), "r");
      ASSERT_NE(state, nullptr);
      first = static_cast<char>(std::fgetc(state));
      std::fclose(state);
    }
  }
  void finish() {
    if (!thread_.joinable()) return;
    sem_post(&go_);
    thread_.join();
  }
  ~Stopped() { finish(); }
  int tid = 0;

 private:
  static sem_t made() {
    sem_t s;
    sem_init(&s, 0, 0);
    return s;
  }
  sem_t there_ = made(), go_ = made();
  std::thread thread_;
};

TEST_P(Search, FindsNothingWhenThereIsNothing) {
  Victim victim;
  const auto report = search(victim);
  EXPECT_EQ(texts(report), "");
  EXPECT_TRUE(report.stable);
  EXPECT_GT(report.resident, 100'000u);
  EXPECT_GE(report.rounds, 2u);
}

TEST_P(Search, HeapBlock) {
  Victim victim;
  auto** block = static_cast<void**>(calloc(1, 96));
  block[5] = victim.address("on_timer");
  expect_one(search(victim), Place::heap, Looks::callback, block + 5,
             {"[heap] block of 1", "bytes, +40", "on_timer+0x0", "(callback)"});
  free(block);
}

TEST_P(Search, LastWordOfAHeapBlock) {
  Victim victim;
  auto** block = static_cast<void**>(calloc(1, 104));
  auto* after = calloc(1, 104);
  block[12] = victim.address("on_timer");
  expect_one(search(victim), Place::heap, Looks::callback, block + 12,
             {"[heap] block of 1", "bytes, +96"});
  free(after);
  free(block);
}

TEST_P(Search, HeapBlockOfAnotherArena) {
  Victim victim;
  void** block = nullptr;
  // A new thread's malloc takes an arena of its own while others are in use.
  Stopped thread([&](auto stop) {
    block = static_cast<void**>(calloc(1, 72));
    block[3] = victim.address("table_of_numbers", 8);
    stop();
    free(block);
  });
  ASSERT_EQ(reinterpret_cast<std::uintptr_t>(block) >> 26,
            reinterpret_cast<std::uintptr_t>(block + 3) >> 26);
  expect_one(search(victim), Place::heap, Looks::data, block + 3,
             {"[heap] block of ", "bytes, +24", "table_of_numbers+0x8", "(data)"});
}

TEST_P(Search, LargeHeapBlock) {
  Victim victim;
  auto** block = static_cast<void**>(calloc(1, 1 << 20));
  block[1000] = victim.address("on_timer");
  expect_one(search(victim), Place::heap, Looks::callback, block + 1000, {"[heap]", "+8000"});
  free(block);
}

TEST_P(Search, DataAndBssByName) {
  Victim victim;
  g_planted_in_data = victim.address("on_timer");
  expect_one(search(victim), Place::object, Looks::callback, &g_planted_in_data,
             {"audit_search", ": g_planted_in_data+0x0"});
  g_planted_in_data = nullptr;
  g_planted_in_bss = victim.address("on_signal");
  expect_one(search(victim), Place::object, Looks::callback, &g_planted_in_bss,
             {": g_planted_in_bss+0x0", "on_signal+0x0"});
  g_planted_in_bss = nullptr;
}

TEST_P(Search, ThreadLocalStorage) {
  Victim victim;
  void** at = nullptr;
  Stopped thread([&](auto stop) {
    t_planted = victim.address("on_timer");
    at = &t_planted;
    stop();
    t_planted = nullptr;
  });
  expect_one(search(victim), Place::thread_local_storage, Looks::callback, at,
             {"thread-local storage of thread " + std::to_string(thread.tid) + " (holder)"});
}

TEST_P(Search, AnonymousAndSharedMemory) {
  Victim victim;
  for (int flags : {MAP_PRIVATE, MAP_SHARED}) {
    auto** memory = static_cast<void**>(pages(16 * 4096, flags));
    memory[5 * 512 + 7] = victim.address("on_timer");
    expect_one(search(victim), Place::memory, Looks::callback, memory + 5 * 512 + 7,
               {flags == MAP_SHARED ? "shared memory" : "anonymous memory"});
    munmap(memory, 16 * 4096);
  }
}

TEST_P(Search, MemoryThatIsReadOnlyNow) {
  Victim victim;
  auto** memory = static_cast<void**>(pages(4096));
  memory[0] = victim.address("on_timer");
  ASSERT_EQ(mprotect(memory, 4096, PROT_READ), 0);
  expect_one(search(victim), Place::memory, Looks::callback, memory, {});
  munmap(memory, 4096);
}

TEST_P(Search, PrivateFileMemory) {
  Victim victim;
  const int file = memfd_create("a file", MFD_CLOEXEC);
  ASSERT_EQ(ftruncate(file, 8192), 0);
  void* mapped = mmap(nullptr, 8192, PROT_READ | PROT_WRITE, MAP_PRIVATE, file, 0);
  static_cast<void**>(mapped)[600] = victim.address("on_timer");
  expect_one(search(victim), Place::memory, Looks::callback, static_cast<void**>(mapped) + 600, {});
  munmap(mapped, 8192);
  close(file);
}

TEST_P(Search, VtableOfAnObject) {
  Victim victim;
  void* shape = reinterpret_cast<void* (*)()>(victim.address("new_shape"))();
  expect_one(search(victim), Place::heap, Looks::vtable, shape, {"_ZTV5Shape+0x10", "(vtable)"});
  operator delete(shape);
}

TEST_P(Search, SuspendedFiber) {
  Victim victim;
  constexpr std::size_t stack_bytes = 64 * 1024;
  void* stack = pages(stack_bytes);
  static ucontext_t fiber, main_context;
  static int (*call_out)(void (*)(void*), void*);
  call_out = victim.find<int (*)(void (*)(void*), void*)>("call_out");
  getcontext(&fiber);
  fiber.uc_stack.ss_sp = stack;
  fiber.uc_stack.ss_size = stack_bytes;
  fiber.uc_link = &main_context;
  makecontext(
      &fiber,
      +[] {
        auto f = call_out;
        call_out = nullptr;
        f([](void*) { swapcontext(&fiber, &main_context); }, nullptr);
      },
      0);
  swapcontext(&main_context, &fiber);
  const auto report = search(victim);
  bool found = false;
  for (const auto& f : report.findings) {
    const auto at = reinterpret_cast<std::uintptr_t>(stack);
    if (f.address < at || f.address >= at + stack_bytes) continue;
    found |= f.looks == Looks::return_address && f.text().find("call_out+0x") != std::string::npos;
  }
  EXPECT_TRUE(found) << texts(report);
  swapcontext(&main_context, &fiber);
  munmap(stack, stack_bytes);
  std::memset(&fiber, 0, sizeof fiber);
  std::memset(&main_context, 0, sizeof main_context);
}

TEST_P(Search, ThreadThatBeganInIt) {
  Victim victim;
  sem_t gates[2];
  for (sem_t& gate : gates) sem_init(&gate, 0, 0);
  pthread_t thread;
  ASSERT_EQ(pthread_create(&thread, nullptr, victim.find<void* (*)(void*)>("thread_main"), gates),
            0);
  sem_wait(gates + 1);
  const auto report = search(victim);
  ASSERT_EQ(report.findings.size(), 1u) << texts(report);
  EXPECT_EQ(report.findings[0].place, Place::thread);
  EXPECT_EQ(report.findings[0].looks, Looks::callback);
  EXPECT_NE(report.findings[0].text().find("thread_main+0x0"), std::string::npos);
  sem_post(gates);
  pthread_join(thread, nullptr);
  EXPECT_EQ(texts(search(victim)), "") << "the thread has ended";
}

TEST_P(Search, SignalHandler) {
  Victim victim;
  struct sigaction action {
  }, before{};
  action.sa_handler = victim.find<void (*)(int)>("on_signal");
  ASSERT_EQ(sigaction(SIGUSR2, &action, &before), 0);
  expect_one(search(victim), Place::signal, Looks::callback, nullptr,
             {"handler of SIGUSR2", "on_signal+0x0"});
  sigaction(SIGUSR2, &before, nullptr);
}

TEST_P(Search, DestructorOfAKey) {
  Victim victim;
  pthread_key_t key;
  ASSERT_EQ(pthread_key_create(&key, victim.find<void (*)(void*)>("on_value")), 0);
  const auto report = search(victim);
  ASSERT_EQ(report.findings.size(), 1u) << texts(report);
  EXPECT_EQ(report.findings[0].place, Place::object);
  EXPECT_NE(
      report.findings[0].text().find("destructor of thread-specific key " + std::to_string(key)),
      std::string::npos)
      << texts(report);
  pthread_key_delete(key);
  EXPECT_EQ(texts(search(victim)), "") << "the key is deleted";
}

TEST_P(Search, TimerThatCallsAFunction) {
  Victim victim;
  sigevent event{};
  event.sigev_notify = SIGEV_THREAD;
  event.sigev_notify_function = reinterpret_cast<void (*)(sigval)>(victim.address("on_value"));
  timer_t timer;
  ASSERT_EQ(timer_create(CLOCK_MONOTONIC, &event, &timer), 0);
  const auto report = search(victim);
  timer_delete(timer);
  ASSERT_EQ(report.findings.size(), 1u) << texts(report);
  EXPECT_EQ(report.findings[0].place, Place::heap);
  EXPECT_NE(report.findings[0].text().find("on_value+0x0"), std::string::npos);
}

TEST_P(Search, TimerThatPassesAnAddress) {
  Victim victim;
  sigevent event{};
  event.sigev_notify = SIGEV_SIGNAL;
  event.sigev_signo = SIGUSR2;
  event.sigev_value.sival_ptr = victim.address("table_of_numbers");
  timer_t timer;
  ASSERT_EQ(timer_create(CLOCK_MONOTONIC, &event, &timer), 0);
  // The kernel has the list where it is built with CHECKPOINT_RESTORE.
  const bool can_know = access("/proc/self/timers", R_OK) == 0;
  event = {};
  if (can_know) {
    expect_one(search(victim), Place::timer, Looks::data, nullptr,
               {"POSIX timer", "SIGUSR2", "table_of_numbers+0x0"});
  }
  timer_delete(timer);
  if (!can_know) GTEST_SKIP() << "this kernel has no /proc/PID/timers";
}

TEST_P(Search, StackOfASleepingThread) {
  Victim victim;
  const void* at = nullptr;
  Stopped thread([&](auto stop) {
    void* volatile local[2] = {victim.address("on_timer"), nullptr};
    at = const_cast<void**>(&local[0]);
    stop();
    local[0] = nullptr;
  });
  thread.settle();
  EXPECT_EQ(texts(search(victim)), "") << "stacks are for the residency proof";
  audit::Options with_stacks = options();
  with_stacks.stacks = true;
  const auto report = search(victim, with_stacks);
  bool found = false;
  for (const auto& f : report.findings) {
    EXPECT_EQ(f.place, Place::stack) << f.text();
    EXPECT_FALSE(f.bars) << f.text();
    found |= f.address == reinterpret_cast<std::uintptr_t>(at) &&
             f.text().find("(holder)") != std::string::npos &&
             f.text().find("above its stack pointer") != std::string::npos;
  }
  EXPECT_TRUE(found) << texts(report);
  EXPECT_EQ(report.barring(), 0u);
}

// --- what does not count ------------------------------------------------------------------------

TEST_P(Search, FreedBlocksDoNotCount) {
  Victim victim;
  auto plant = [&](std::size_t bytes) {
    auto** block = static_cast<void**>(malloc(bytes));
    for (std::size_t i = 0; i < bytes / 8; ++i) block[i] = victim.address("on_timer");
    return block;
  };
  // In a thread's cache; beyond it in a fastbin; in a bin; and what was given back to the top.
  std::vector<void**> small, large;
  for (int i = 0; i < 12; ++i) small.push_back(plant(64));
  for (int i = 0; i < 3; ++i) {
    large.push_back(plant(40'000));
    small.push_back(plant(64));
  }
  EXPECT_GT(search(victim).barring(), 1000u);
  for (void** block : small) free(block);
  for (void** block : large) free(block);
  const auto report = search(victim);
  EXPECT_EQ(texts(report), "");
  EXPECT_GT(report.dismissed, 100u) << "they were overwritten: nothing was tested";
}

TEST_P(Search, StacksOfEndedThreadsDoNotCount) {
  Victim victim;
  {
    Stopped thread([&](auto stop) {
      void* volatile local[64];
      for (auto& word : local) word = victim.address("on_timer");
      t_planted = victim.address("on_timer");
      stop();
    });
  }
  const auto report = search(victim);
  EXPECT_EQ(texts(report), "");
  EXPECT_GE(report.dismissed, 64u) << "glibc gave the stack back: nothing was tested";
}

// Blocks that lead to the module, and to which only the module leads: a tree, as of a static std::map.
TEST_P(Search, BlocksThatOnlyTheModuleRefersToDoNotCount) {
  struct Node {
    void* up;
    Node *left, *right;
  };
  Victim victim;
  auto** root = static_cast<Node**>(victim.address("table_of_numbers"));
  // On a thread that ends: this one's stack is searched, and must not know a node.
  auto elsewhere = [](const std::function<void()>& f) { std::thread(f).join(); };
  elsewhere([&] {
    auto* top = new Node{root, nullptr, nullptr};
    top->left = new Node{top, nullptr, nullptr};
    top->left->left = new Node{top->left, nullptr, nullptr};
    *root = top;
  });
  auto report = search(victim);
  EXPECT_EQ(texts(report), "");
  // Somebody else knows the innermost, from which the others can be reached.
  elsewhere([&] { g_planted_in_data = (*root)->left->left; });
  report = search(victim);
  ASSERT_EQ(report.findings.size(), 1u) << texts(report);
  EXPECT_EQ(report.findings[0].place, Place::heap);
  EXPECT_NE(texts(report).find(", known to "), std::string::npos) << texts(report);
  g_planted_in_data = nullptr;
  report = {};  // it leads there as well
  EXPECT_EQ(texts(search(victim)), "");
  // So does a thread that is at work on it.
  {
    Stopped thread([&](auto stop) {
      Node* volatile mine[1] = {*root};
      stop();
      EXPECT_EQ(mine[0], *root);
    });
    thread.settle();
    EXPECT_NE(texts(search(victim)), "");
  }
  EXPECT_EQ(texts(search(victim)), "");
  elsewhere([&] {
    delete (*root)->left->left;
    delete (*root)->left;
    delete *root;
    *root = nullptr;
  });
}

TEST_P(Search, WhatIsBehindAShortTextDoesNotCount) {
  Victim victim;
  auto* text = new std::string("abc");
  void* address = victim.address("on_timer");
  char* unwritten = text->data() + 8;
  std::memcpy(unwritten, &address, 8);
  EXPECT_EQ(texts(search(victim)), "");
  // No string, for lack of a NUL: a list with its first elements inside, say.
  (*text)[3] = 'd';
  expect_one(search(victim), Place::heap, Looks::callback, unwritten, {});
  std::memset(unwritten, 0, 8);
  delete text;
}

TEST_P(Search, TwoFlagsBesideAnOldPointerDoNotCount) {
  Victim victim;
  const auto table = reinterpret_cast<std::uintptr_t>(victim.address("wide_table"));
  const std::uintptr_t aligned = (table + 0xffff) & ~std::uintptr_t{0xffff};
  auto** block = static_cast<void**>(calloc(1, 96));
  for (const std::uintptr_t flags : {0x0, 0x1, 0x100, 0x101}) {
    block[5] = reinterpret_cast<void*>(aligned + flags);
    if (aligned + flags == table) continue;
    EXPECT_EQ(texts(search(victim)), "");
  }
  block[5] = reinterpret_cast<void*>(aligned + 2);
  expect_one(search(victim), Place::heap, Looks::data, block + 5, {"wide_table+"});
  block[5] = reinterpret_cast<void*>(table);
  expect_one(search(victim), Place::heap, Looks::data, block + 5, {"wide_table+0x0"});
  free(block);
}

// Lists of objects have it, and memory that such a list had once.
TEST_P(Search, AnOldWordOfTheUnwindTableDoesNotCount) {
  Victim victim;
  audit::Range table;
  dl_iterate_phdr(
      [](dl_phdr_info* info, std::size_t, void* data) {
        if (std::string_view(info->dlpi_name) != VICTIM) return 0;
        for (const auto* s = info->dlpi_phdr; s != info->dlpi_phdr + info->dlpi_phnum; ++s) {
          if (s->p_type != PT_GNU_EH_FRAME) continue;
          const std::uintptr_t begin = info->dlpi_addr + s->p_vaddr;
          *static_cast<audit::Range*>(data) = {begin, begin + s->p_memsz};
        }
        return 1;
      },
      &table);
  ASSERT_NE(table.size(), 0u);
  auto* memory = static_cast<std::uintptr_t*>(pages(4096, MAP_PRIVATE));
  memory[20] = table.begin;
  EXPECT_EQ(texts(search(victim)), "");
  memory[20] = table.end;
  EXPECT_NE(texts(search(victim)), "");
  munmap(memory, 4096);
}

// In memory of another malloc than glibc's nobody can tell that a block is free.
TEST_P(Search, WhatAnOldLinkMapHoldsDoesNotCount) {
  Victim victim;
  auto* memory = static_cast<std::uintptr_t*>(pages(4096, MAP_PRIVATE));
  const auto& segments = victim.target.segments;
  memory[20] = segments.front().begin;
  memory[21] = segments.back().end - 8;
  memory[22] = victim.target.text.front().end;
  EXPECT_EQ(texts(search(victim)), "");
  memory[20] = segments.front().begin + 8;  // and so it is something else
  EXPECT_NE(texts(search(victim)), "");
  // Written over up to where its text ends: the scopes behind that show it.
  memory[20] = memory[21] = 0;
  const auto table = reinterpret_cast<std::uintptr_t>(victim.address("wide_table"));
  memory[22] = (table + 4096) & ~std::uintptr_t{4095};
  memory[27] = 4;
  memory[28] = reinterpret_cast<std::uintptr_t>(memory + 23);
  EXPECT_NE(texts(search(victim)), "");
  victim.target.text.push_back({memory[22] - 16, memory[22] - 8});
  EXPECT_EQ(texts(search(victim)), "");
  memory[28] += 8;
  EXPECT_NE(texts(search(victim)), "");
  munmap(memory, 4096);
}

TEST_P(Search, KnownMemoryDoesNotCount) {
  Victim victim;
  auto** block = static_cast<void**>(calloc(1, 96));
  block[5] = block[6] = victim.address("on_timer");
  const auto at = reinterpret_cast<std::uintptr_t>(block + 5);
  victim.target.known.push_back({at, at + 8});
  expect_one(search(victim), Place::heap, Looks::callback, block + 6, {});
  free(block);
}

// --- meanwhile ----------------------------------------------------------------------------------

// The word is never where the search is: it goes from pages that are yet to be searched to one that
// has been. Only searching that one again can find it.
TEST_P(Search, MovingPointerIsFound) {
  Victim victim;
  constexpr std::size_t bytes = 64 * 4096;
  auto** memory = static_cast<void**>(pages(bytes));
  std::memset(memory, 1, bytes);
  void** from = memory + 60 * 512;
  void** to = memory + 3;
  *from = victim.address("on_timer");
  bool moved = false;
  audit::Options how = options();
  how.observer = [&](audit::Range searched) {
    if (moved || !searched.contains(reinterpret_cast<std::uintptr_t>(to))) return;
    EXPECT_FALSE(searched.contains(reinterpret_cast<std::uintptr_t>(from)));
    moved = true;
    std::swap(*from, *to);
  };
  const auto report = search(victim, how);
  EXPECT_TRUE(moved);
  expect_one(report, Place::memory, Looks::callback, to, {"on_timer+0x0"});
  EXPECT_GE(report.rounds, 3u);
  munmap(memory, bytes);
}

TEST_P(Search, UntouchedPagesStayUntouched) {
  Victim victim;
  constexpr std::size_t bytes = std::size_t{4} << 30;
  auto* memory = static_cast<char*>(mmap(nullptr, bytes, PROT_READ | PROT_WRITE,
                                         MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0));
  ASSERT_NE(memory, MAP_FAILED);
  memory[bytes / 2] = 1;
  auto resident_pages = [] {
    FILE* file = std::fopen("/proc/self/statm", "r");
    long size = 0, resident = 0;
    EXPECT_EQ(std::fscanf(file, "%ld %ld", &size, &resident), 2);
    std::fclose(file);
    return resident;
  };
  search(victim);
  const long before = resident_pages();
  const auto report = search(victim);
  EXPECT_LT(resident_pages() - before, 256);
  EXPECT_LT(report.resident, std::size_t{256} << 20);
  munmap(memory, bytes);
}

TEST_P(Search, MemoryThatComesAndGoesHarmsNobody) {
  Victim victim;
  std::atomic<bool> stop{false};
  std::thread churn([&] {
    constexpr std::size_t bytes = 64 * 4096;
    while (!stop) {
      void* memory = pages(bytes);
      std::memset(memory, 1, bytes);
      mprotect(static_cast<char*>(memory) + bytes / 2, bytes / 4, PROT_NONE);
      munmap(memory, bytes);
    }
  });
  for (int i = 0; i < 20; ++i) EXPECT_EQ(texts(search(victim)), "");
  stop = true;
  churn.join();
}

// It is found, and goes to a page that was searched before in the very round that is to confirm it.
TEST_P(Search, PointerThatMovesAfterItWasSeenIsFound) {
  Victim victim;
  constexpr std::size_t bytes = 64 * 4096;
  auto** memory = static_cast<void**>(pages(bytes));
  std::memset(memory, 1, bytes);
  void** from = memory + 60 * 512;
  void** to = memory + 3;
  *from = victim.address("on_timer");
  int seen = 0;
  audit::Options how = options();
  how.observer = [&](audit::Range searched) {
    const auto at = reinterpret_cast<std::uintptr_t>(to);
    // Pages that are not written are not searched again by every method: so they are written.
    if (searched.contains(reinterpret_cast<std::uintptr_t>(from)) && seen < 2) {
      memory[4] = memory[60 * 512 + 1] = memory[5];
    }
    if (!searched.contains(at) || ++seen != 2) return;
    std::swap(*from, *to);
  };
  const auto report = search(victim, how);
  EXPECT_GE(seen, 3);
  expect_one(report, Place::memory, Looks::callback, to, {"on_timer+0x0"});
  EXPECT_GE(report.rounds, 4u);
  munmap(memory, bytes);
}

TEST_P(Search, CanBeBoundedAndCancelled) {
  Victim victim;
  audit::Options how = options();
  how.deadline = Deadline{1};
  auto late = audit::audit(victim.target, how);
  ASSERT_FALSE(late.has_value());
  EXPECT_EQ(late.error().code, ETIMEDOUT);
  how = options();
  how.cancelled = [] { return true; };
  auto cancelled = audit::audit(victim.target, how);
  ASSERT_FALSE(cancelled.has_value());
  EXPECT_EQ(cancelled.error().code, ECANCELED);
}

bool works(Method method) {
  Victim victim;
  audit::Options how;
  how.method = method;
  return audit::audit(victim.target, how).has_value();
}

// Those that this kernel has; Choice.* says which it has not.
std::vector<How> methods_here() {
  std::vector<How> all = {{"rescan", Method::rescan},
                          {"rescan_by_old_pagemap", Method::rescan, true},
                          {"rescan_without_pagemap", Method::rescan, false, true}};
  if (works(Method::soft_dirty)) all.push_back({"soft_dirty", Method::soft_dirty});
  if (works(Method::write_protect)) all.push_back({"write_protect", Method::write_protect});
  return all;
}

INSTANTIATE_TEST_SUITE_P(, Search, testing::ValuesIn(methods_here()),
                         [](const auto& kind) { return std::string(kind.param.name); });

TEST(Choice, SoftDirtyWorksHere) {
  if (!works(Method::soft_dirty)) GTEST_SKIP() << "this kernel has no soft-dirty bits";
}

TEST(Choice, WriteProtectionWorksHere) {
  if (!works(Method::write_protect)) GTEST_SKIP() << "Linux before 6.7, or no userfaultfd";
}

TEST(Choice, OnlyWrittenPagesAreSearchedAgain) {
  for (Method method : {Method::write_protect, Method::soft_dirty}) {
    if (!works(method)) continue;
    Victim victim;
    constexpr std::size_t bytes = 32 << 20;
    void* memory = pages(bytes);
    std::memset(memory, 1, bytes);
    audit::Options how;
    how.method = method;
    const auto report = audit::audit(victim.target, how);
    ASSERT_TRUE(report.has_value());
    EXPECT_GE(report->resident, bytes);
    EXPECT_LT(report->bytes - report->resident, bytes / 4) << audit::to_text(method);
    munmap(memory, bytes);
  }
}

TEST(Choice, SmallProcessesAreSearchedTwice) {
  Victim victim;
  audit::Options how;
  auto report = audit::audit(victim.target, how);
  ASSERT_TRUE(report.has_value());
  EXPECT_EQ(report->method, Method::rescan);
}

TEST(Choice, LargeOnesAreWatchedWherePossible) {
  Victim victim;
  audit::Options how;
  how.method = Method::write_protect;
  if (!audit::audit(victim.target, how)) GTEST_SKIP() << "no write protection here";
  constexpr std::size_t bytes = 96 << 20;
  void* memory = pages(bytes);
  std::memset(memory, 1, bytes);
  how.method = Method::automatic;
  auto report = audit::audit(victim.target, how);
  ASSERT_TRUE(report.has_value());
  EXPECT_EQ(report->method, Method::write_protect);
  munmap(memory, bytes);
}

}  // namespace
