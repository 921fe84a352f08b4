#include "threads/census.hpp"

#include <dirent.h>
#include <fcntl.h>
#include <linux/futex.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <mutex>
#include <utility>

#include "base/futex.hpp"
#include "base/own_memory.hpp"
#include "threads/own_thread.hpp"
#include "threads/procfs.hpp"
#include "threads/ranges.hpp"
#include "threads/start.hpp"

namespace molt::threads {
namespace {

constexpr std::size_t census_stack = 256 * 1024;
// For samples and for files that are opened for a moment.
constexpr std::size_t descriptors_kept_free = 40;
constexpr int most_listings = 64;
constexpr std::uint64_t worker_flags = 0x10 | 0x4000;  // PF_IO_WORKER, PF_USER_WORKER

// Broken on purpose, for the test that must see it (tests/threads).
#ifdef MOLT_MUTATE_ANY_LOAN
constexpr bool mutate_any_loan = true;
#else
constexpr bool mutate_any_loan = false;
#endif

// Where the last census ended. There is one at a time, and a mutex between one and the next.
std::uint64_t g_next_serial = 1, g_changes = 0;

// Where the thread was that forked; 0 in a process that no fork of ours has seen.
std::uintptr_t g_forked_at = 0;

bool read_words(pid_t process, std::uintptr_t address, std::span<std::uintptr_t> words) {
  iovec local{words.data(), words.size_bytes()};
  iovec remote{reinterpret_cast<void*>(address), words.size_bytes()};
  return process_vm_readv(process, &local, 1, &remote, 1, 0) ==
         static_cast<ssize_t>(words.size_bytes());
}

std::uintptr_t robust_list_of(int tid) {
  void* head = nullptr;
  std::size_t length = 0;
  return syscall(SYS_get_robust_list, tid, &head, &length) == 0
             ? reinterpret_cast<std::uintptr_t>(head)
             : 0;
}

}  // namespace

// --- set-up -------------------------------------------------------------------------------------

Census::Census() : next_serial_(g_next_serial), changes_(g_changes) {}

Census::~Census() {
  g_next_serial = next_serial_;
  g_changes = changes_ + 1;
}

Status Census::set_up() {
  process_ = getpid();
  own_tid_ = gettid();
  if (Status ok = leave_descriptor_table(); !ok) return ok;
  if (Status ok = occupy_standard_descriptors(); !ok) return ok;
  directory_.reset(::open("/proc/self/task", O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  if (!directory_ && errno == ENOENT) {
    return fail(ENOENT,
                "its threads cannot be listed: there is no /proc in its root; mount one there");
  }
  if (!directory_) return fail_errno(errno, "cannot list the threads of the process");
  if (Status ok = maps_.open(); !ok) return ok;
  // Never unmapped: a search of memory leaves it out, whose it is must not change. So the next
  // census has it too.
  static void* memory = MAP_FAILED;
  if (memory == MAP_FAILED) {
    memory = mmap(nullptr, scratch_bytes + 64, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS,
                  -1, 0);
    if (memory == MAP_FAILED) return fail_errno(errno, "no memory for copies of stacks");
    note_own_memory(memory, scratch_bytes + 64);
  }
  scratch_ = static_cast<std::byte*>(memory);

  // How far from glibc's thread pointer the kernel was told the robust list to be: the same in all
  // threads.
  const auto own = reinterpret_cast<std::uintptr_t>(__builtin_thread_pointer());
  if (const std::uintptr_t head = robust_list_of(0)) robust_offset_ = head - own;
  start_offset_ = start_routine_offset();

  // The first thread's stack ends where the kernel put its arguments. A child that was forked by
  // another thread runs on that one's.
  main_stack_top_ = read_stat_field("/proc/self/stat", 28) & ~std::uintptr_t{7};
  if (g_forked_at != 0 && !maps_.writable_around(main_stack_top_).contains(g_forked_at)) {
    main_stack_top_ = 0;
  }
  return refresh();
}

// --- listing ------------------------------------------------------------------------------------

Status Census::read_directory() {
  struct Entry {  // linux_dirent64
    std::uint64_t inode;
    std::int64_t offset;
    unsigned short length;
    unsigned char type;
    char name[];
  };
  tids_.clear();
  if (lseek(directory_.get(), 0, SEEK_SET) != 0) {
    return fail_errno(errno, "cannot list the threads of the process");
  }
  alignas(8) char buffer[32768];
  for (;;) {
    const long n = syscall(SYS_getdents64, directory_.get(), buffer, sizeof buffer);
    if (n < 0) return fail_errno(errno, "cannot list the threads of the process");
    if (n == 0) return {};
    for (long at = 0; at < n;) {
      auto* entry = reinterpret_cast<Entry*>(buffer + at);
      at += entry->length;
      int tid = 0;
      for (const char* c = entry->name; *c >= '0' && *c <= '9'; ++c) tid = tid * 10 + (*c - '0');
      if (tid != 0) tids_.push_back(tid);
    }
  }
}

// In the directory's links.
std::size_t Census::count() const {
  struct stat status;
  return fstat(directory_.get(), &status) == 0 && status.st_nlink > 2 ? status.st_nlink - 2 : 0;
}

bool Census::is_all(std::size_t count) const {
#ifdef MOLT_MUTATE_NO_COUNT
  return count != 0;
#endif
  return count == list_.size() + 1;  // the census's own is not on the list
}

Status Census::list() {
  if (Status ok = read_directory(); !ok) return ok;
  // A listing that was cut short is another one than the next in any case; the count makes that show at
  // once.
  const bool complete = count() == tids_.size();
  if (complete && tids_ == previous_) {
    for (Thread* thread : list_) {
      if (thread->is_gone) return adopt(), ++changes_, Status();
    }
    return {};
  }
  adopt();
  ++changes_;
  previous_ = tids_;
  return {};
}

Status Census::refresh() {
  for (int i = 0; i < most_listings; ++i) {
    const std::uint64_t before = changes_;
    if (Status ok = list(); !ok) return ok;
    if (i > 0 && changes_ == before) return {};
  }
  return fail(EAGAIN, "threads come and go faster than they can be listed; try again");
}

Thread* Census::find(int tid) const {
  for (Thread* thread : list_) {
    if (thread->tid == tid) return thread;
  }
  return nullptr;
}

bool Census::is_alive(const Thread& thread) const {
  std::uint64_t runs;
  return !thread.schedstat || read_run_count(thread.schedstat.get(), runs);
}

std::size_t Census::last_known(const std::vector<Thread*>& old) const {
  for (std::size_t i = tids_.size(); i > 0; --i) {
    const auto known = std::find_if(old.rbegin(), old.rend(),
                                    [&](const Thread* t) { return t->tid == tids_[i - 1]; });
    if (known == old.rend() || (*known)->is_gone || !(*known)->schedstat) continue;
    if (is_alive(**known)) return i;
  }
  return 0;
}

// The list becomes tids_. Both are mostly in the order of birth, so that the known thread is the
// next in the old list.
//
// A number may have gone to another thread. That one is the kernel's last then: in front of a thread
// that is the one that we know, whoever was known was born before it, and is the one that we know too.
// So the descriptors are asked from the end, until one answers.
void Census::adopt() {
  maps_.forget();
  std::vector<Thread*> old;
  old.swap(list_);
  list_.reserve(tids_.size());
  std::size_t next = 0;
  std::vector<bool> found(old.size(), false), kept(old.size(), false);
  std::vector<Thread*> born;
  const std::size_t trusted = last_known(old);
  for (std::size_t i = 0; i < tids_.size(); ++i) {
    const int tid = tids_[i];
    if (tid == own_tid_) continue;
    std::size_t at = next;
    while (at < old.size() && old[at]->tid != tid) ++at;
    if (at == old.size()) {
      for (at = 0; at < next && old[at]->tid != tid;) ++at;
      if (at == next) at = old.size();
    }
    if (at < old.size() && !found[at]) {
      found[at] = true;
      next = at + 1;
      const bool alive = !old[at]->is_gone && (i < trusted || is_alive(*old[at]));
      if (alive && old[at]->open_error == 0) {
        kept[at] = true;
        list_.push_back(old[at]);
        continue;
      }
    } else if (at < old.size()) {
      continue;  // listed twice
    }
    std::size_t slot = slots_.size();
    if (free_slots_.empty()) {
      slots_.emplace_back();
    } else {
      slot = free_slots_.back();
      free_slots_.pop_back();
    }
    slots_[slot] = std::make_unique<Thread>();
    Thread& thread = *slots_[slot];
    thread.tid = tid;
    thread.slot = slot;
    thread.serial = next_serial_++;
    thread.has_begun = starts_at_once() || tid == process_;
    list_.push_back(&thread);
    born.push_back(&thread);
  }
  // Not before: the search above reads the numbers of all.
  for (std::size_t i = 0; i < old.size(); ++i) {
    if (!kept[i]) drop(*old[i]);
  }

  const std::size_t room = born.empty() ? 0 : most_descriptors();
  for (Thread* thread : born) {
    thread->is_spare = open_descriptors_ + 2 > room;
    if (thread->is_spare) continue;
    if (open(*thread)) open_descriptors_ += 2;
  }
}

void Census::drop(Thread& thread) {
  if (thread.schedstat && !thread.is_spare) open_descriptors_ -= 2;
  free_slots_.push_back(thread.slot);
  slots_[thread.slot].reset();
}

std::size_t Census::most_descriptors() {
  rlimit limit{};
  getrlimit(RLIMIT_NOFILE, &limit);
  return limit.rlim_cur > descriptors_kept_free ? limit.rlim_cur - descriptors_kept_free : 0;
}

// A process that is not dumpable finds root's files there, and may not open them.
bool Census::can_be_had_again() const {
  struct stat info {};
  return fstat(directory_.get(), &info) == 0 && info.st_uid == geteuid();
}

// L1. To look at a name takes no right.
bool Census::is_file_of(const Thread& thread, const Fd& lent) const {
  if (mutate_any_loan) return true;
  char path[40];
  std::snprintf(path, sizeof path, "%d/syscall", thread.tid);
  struct stat named {
  }, sent{};
  return fstatat(directory_.get(), path, &named, 0) == 0 && fstat(lent.get(), &sent) == 0 &&
         named.st_dev == sent.st_dev && named.st_ino == sent.st_ino;
}

// `lent`, if it is one, is its `syscall`.
bool Census::open(Thread& thread, Fd lent) {
  if (thread.schedstat) return true;
  char path[40];
  std::snprintf(path, sizeof path, "%d/schedstat", thread.tid);
  thread.schedstat.reset(openat(directory_.get(), path, O_RDONLY | O_CLOEXEC));
  std::snprintf(path, sizeof path, "%d/syscall", thread.tid);
  if (thread.schedstat && lent) {
    thread.syscall = std::move(lent);
  } else if (thread.schedstat) {
    thread.syscall.reset(openat(directory_.get(), path, O_RDONLY | O_CLOEXEC));
  }
  if (!thread.schedstat || !thread.syscall) {
    const int error = errno;
    thread.is_gone = error == ENOENT || error == ESRCH;
    thread.open_error = thread.is_spare ? 0 : error;
    thread.schedstat.reset();
    errno = error;
    return false;
  }
  // The two names could belong to two threads only if the number changed hands between them; then
  // the first answers that its thread is gone.
  if (!read_run_count(thread.schedstat.get(), thread.runs)) {
    thread.is_gone = true;
    thread.schedstat.reset();
    thread.syscall.reset();
    errno = ESRCH;
    return false;
  }
  thread.runs_since_ns = now_ns();
  return true;
}

void Census::close_spare(Thread& thread) {
  if (!thread.is_spare) return;
  thread.schedstat.reset();
  thread.syscall.reset();
}

// --- what is asked once ---------------------------------------------------------------------------

void Census::find_stack(Thread& thread) {
  if (thread.tid == process_ && main_stack_top_ != 0) {
    maps_.forget();  // it grows
    const Extent around = maps_.writable_below(main_stack_top_ - 8);
    if (around) thread.stack = {around.begin, main_stack_top_};
    return;
  }
  if (thread.stack) return;
  const std::uintptr_t pointer = descriptor_of(thread);
  const Extent around = pointer != 0 ? maps_.writable_below(pointer - 8) : Extent{};
  if (!around) return;
  thread.stack = {around.begin, pointer};
#ifdef MOLT_MUTATE_NO_START
  return;
#endif
  std::uintptr_t routine[1];
  if (start_offset_ != 0 && read_words(process_, pointer + start_offset_, routine)) {
    thread.start_routine = routine[0] ^ RangeSet::mask;
  }
}

std::uintptr_t Census::descriptor_of(const Thread& thread) const {
  const std::uintptr_t head = robust_offset_ != 0 ? robust_list_of(thread.tid) : 0;
  if (head == 0) return 0;
  // It points at itself, twice.
  const std::uintptr_t pointer = head - robust_offset_;
  std::uintptr_t words[3];
  return read_words(process_, pointer, words) && words[0] == pointer && words[2] == pointer
             ? pointer
             : 0;
}

bool Census::is_worker(Thread& thread) {
  if (!thread.was_asked) read_flags(thread);
  return thread.is_worker;
}

bool Census::read_flags(Thread& thread) {
  constexpr int flags_field = 9, blocked_field = 32;
  constexpr std::uint64_t sigtrap = std::uint64_t{1} << (SIGTRAP - 1);
  char path[40];
  std::snprintf(path, sizeof path, "%d/stat", thread.tid);
  const Fd fd(openat(directory_.get(), path, O_RDONLY | O_CLOEXEC));
  std::uint64_t fields[blocked_field + 1] = {};
  if (!fd || !read_stat_fields(fd.get(), fields)) return false;
  thread.is_worker = (fields[flags_field] & worker_flags) != 0;
  thread.blocks_traps = (fields[blocked_field] & sigtrap) != 0;
  thread.was_asked = true;
  return true;
}

void Census::wipe() {
  std::memset(scratch_, 0, scratch_used_);
  // The compiler may not know that this memory is read by whoever looks for pointers.
  asm volatile("" ::"r"(scratch_) : "memory");
  scratch_used_ = 0;
}

// --- the census thread ----------------------------------------------------------------------------

struct CensusKeeper {
  static Status start_locked();
  static void* run(void* self);
  bool end_for_now();

  enum : std::uint32_t { idle, asked, starting, leaving };
  std::atomic<std::uint32_t> word{idle};
  const std::function<void(Census&)>* job = nullptr;
  Census* census = nullptr;  // null: not started
  const pid_t process = getpid();
  Status started;
};

namespace {

std::mutex g_askers;
CensusKeeper* g_keeper = nullptr;  // never freed
std::atomic<int> g_idle_ms{-1};
__thread Census* t_census __attribute__((tls_model("initial-exec"))) = nullptr;

}  // namespace

void* CensusKeeper::run(void* self) {
  auto& keeper = *static_cast<CensusKeeper*>(self);
  auto* census = new Census;
  keeper.started = census->set_up();
  const bool serves = keeper.started.has_value();
  if (serves) {
    keeper.census = census;
    t_census = census;
  } else {
    delete census;
  }
  keeper.word.store(idle, std::memory_order_release);
  futex_wake_all(keeper.word);
  while (serves) {
    std::uint32_t word;
    Deadline patience = Deadline::in_ms(g_idle_ms.load(std::memory_order_relaxed));
    while ((word = keeper.word.load(std::memory_order_acquire)) == idle) {
      futex_wait(keeper.word, idle, patience);
      if (!patience.passed()) continue;
      if (keeper.end_for_now()) return nullptr;
      // Somebody is about to ask, or forks; or it stays, and does not wake up for nothing.
      patience = census->can_be_had_again()
                     ? Deadline::in_ms(g_idle_ms.load(std::memory_order_relaxed))
                     : Deadline{};
    }
    if (word == leaving) break;
    (*keeper.job)(*census);
    census->wipe();
    keeper.word.store(idle, std::memory_order_release);
    futex_wake_all(keeper.word);
  }
  if (serves) {
    // In this thread: its descriptors are numbers of its own table.
    t_census = nullptr;
    delete census;
    keeper.census = nullptr;
    keeper.word.store(idle, std::memory_order_release);
    futex_wake_all(keeper.word);
  }
  return nullptr;
}

bool CensusKeeper::end_for_now() {
  if (!census->can_be_had_again() || !g_askers.try_lock()) return false;
  const bool ends = word.load(std::memory_order_acquire) == idle;
  if (ends) {
    t_census = nullptr;
    delete std::exchange(census, nullptr);
  }
  g_askers.unlock();
  return ends;
}

Status CensusKeeper::start_locked() {
  // A child made without fork handlers (a system call of its own) has the keeper's memory only.
  if (g_keeper == nullptr || g_keeper->process != getpid()) g_keeper = new CensusKeeper;
  CensusKeeper& keeper = *g_keeper;
  if (keeper.census != nullptr) return {};
  static_cast<void>(starts_at_once());
  keeper.word.store(starting, std::memory_order_relaxed);
  auto thread = start_thread("molt-census", census_stack, run, &keeper);
  if (!thread) return pass(thread);
  pthread_detach(*thread);
  while (keeper.word.load(std::memory_order_acquire) == starting) {
    futex_wait(keeper.word, starting);
  }
  return keeper.started;
}

bool on_census_thread() { return t_census != nullptr; }

Status start_census() {
  if (on_census_thread()) return {};
  std::lock_guard lock(g_askers);
  return CensusKeeper::start_locked();
}

Status inspect(const std::function<void(Census&)>& job) {
  if (on_census_thread()) {
    job(*t_census);
    return {};
  }
  std::lock_guard lock(g_askers);
  if (Status ok = CensusKeeper::start_locked(); !ok) return ok;
  CensusKeeper& keeper = *g_keeper;
  keeper.job = &job;
  keeper.word.store(CensusKeeper::asked, std::memory_order_release);
  futex_wake_all(keeper.word);
  while (keeper.word.load(std::memory_order_acquire) == CensusKeeper::asked) {
    futex_wait(keeper.word, CensusKeeper::asked);
  }
  return {};
}

void let_census_end(int idle_ms) { g_idle_ms.store(idle_ms, std::memory_order_relaxed); }

void stop_census() {
  if (on_census_thread()) return;
  std::lock_guard lock(g_askers);
  if (g_keeper == nullptr || g_keeper->process != getpid() || g_keeper->census == nullptr) return;
  CensusKeeper& keeper = *g_keeper;
  keeper.word.store(CensusKeeper::leaving, std::memory_order_release);
  futex_wake_all(keeper.word);
  while (keeper.word.load(std::memory_order_acquire) == CensusKeeper::leaving) {
    futex_wait(keeper.word, CensusKeeper::leaving);
  }
}

void census_before_fork() { g_askers.lock(); }

void census_after_fork(bool child) {
  if (child) {
    // The descriptors are numbers of a table that this process does not have: nothing is closed.
    g_keeper = nullptr;
    t_census = nullptr;
    g_forked_at = reinterpret_cast<std::uintptr_t>(__builtin_frame_address(0));
  }
  g_askers.unlock();
}

}  // namespace molt::threads
