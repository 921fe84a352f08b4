#include "threads/sample.hpp"

#include <linux/perf_event.h>
#include <poll.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <memory>

#include "threads/look.hpp"
#include "threads/start.hpp"

namespace molt::threads {
namespace {

constexpr std::size_t page = 4096;
constexpr std::size_t ring_bytes = 32 * page;       // of two: what perf_event wants
constexpr std::uint32_t stack_bytes = 65528 - 512;  // a record is shorter than 64 KiB in all
constexpr std::uint64_t period_ns = 20'000;
constexpr std::size_t most_at_once = 16;

// <asm/perf_regs.h>: bits in ascending order, segments left out.
constexpr std::uint64_t registers_asked = 0xff01ff;  // ax bx cx dx si di bp sp ip, r8 .. r15
constexpr std::size_t register_count = 17;
constexpr std::size_t sp_index = 7;
constexpr std::size_t ip_index = 8;

class Event {
 public:
  // False with errno.
  bool open(int tid) {
    perf_event_attr attr{};
    attr.size = sizeof attr;
    attr.type = PERF_TYPE_SOFTWARE;
    attr.config = PERF_COUNT_SW_CPU_CLOCK;
    attr.sample_period = period_ns;
    attr.sample_type = PERF_SAMPLE_REGS_USER | PERF_SAMPLE_STACK_USER;
    attr.sample_regs_user = registers_asked;
    attr.sample_stack_user = stack_bytes;
    attr.disabled = 1;
    attr.exclude_kernel = 1;
    attr.exclude_hv = 1;
    attr.wakeup_events = 1;
    clock_ = begin(attr, tid);
    if (!clock_) return false;
    void* memory =
        mmap(nullptr, page + ring_bytes, PROT_READ | PROT_WRITE, MAP_SHARED, clock_.get(), 0);
    if (memory == MAP_FAILED) {
      clock_.reset();
      return false;
    }
    ring_ = static_cast<std::byte*>(memory);
    // It may be forbidden alone: it fires in the kernel.
    attr.config = PERF_COUNT_SW_CONTEXT_SWITCHES;
    attr.sample_period = 1;
    attr.exclude_kernel = 0;
    switch_ = begin(attr, tid);
    if (switch_ && ioctl(switch_.get(), PERF_EVENT_IOC_SET_OUTPUT, clock_.get()) == 0)
      sample_once(switch_);
    return sample_once(clock_);
  }
  ~Event() {
    if (ring_ == nullptr) return;
    // The ring held a copy of a stack. Its pages are the kernel's again now, and nobody's pointers.
    munmap(ring_, page + ring_bytes);
  }

  // Readable with the first sample of either event.
  int fd() const { return clock_ ? clock_.get() : -1; }

  // The body of the first sample; null if there is none yet. It never wraps: it is the first.
  const std::uint64_t* sample() const {
    auto* head = reinterpret_cast<perf_event_mmap_page*>(ring_);
    const std::uint64_t end = __atomic_load_n(&head->data_head, __ATOMIC_ACQUIRE);
    for (std::uint64_t at = 0; at < end;) {
      auto* record = reinterpret_cast<const perf_event_header*>(ring_ + page + at);
      if (record->type == PERF_RECORD_SAMPLE) {
        return reinterpret_cast<const std::uint64_t*>(record + 1);
      }
      at += record->size;
      if (record->size == 0 || at >= ring_bytes) break;
    }
    return nullptr;
  }

 private:
  static Fd begin(const perf_event_attr& attr, int tid) {
    return Fd(
        static_cast<int>(::syscall(SYS_perf_event_open, &attr, tid, -1, -1, PERF_FLAG_FD_CLOEXEC)));
  }
  // One overflow, then it stops.
  static bool sample_once(const Fd& event) {
    return ioctl(event.get(), PERF_EVENT_IOC_REFRESH, 1) == 0;
  }

  Fd clock_, switch_;
  std::byte* ring_ = nullptr;
};

void judge(Census& census, Thread& thread, const RangeSet& ranges, const std::uint64_t* body,
           Finding& f) {
  constexpr const char* no_registers = "a sample of it had no registers";
  f.activity = Activity::running;
  if (*body++ != PERF_SAMPLE_REGS_ABI_64) {
    f.reason = no_registers;
    return;
  }
  const std::uint64_t* registers = body;
  body += register_count;
  f.sp = registers[sp_index];
  f.pc = registers[ip_index] ^ RangeSet::mask;
  std::uint64_t copied = *body++;
  const auto* stack = reinterpret_cast<const std::byte*>(body);
  if (copied != 0) copied = std::min(copied, body[copied / 8]);  // after the data: how much is real

  f.verdict = Verdict::out;
  Scan scan(ranges, f, f.sp);
  scan.word(registers[ip_index], "it is in the code", true);
  for (std::size_t i = 0; i < register_count; ++i) {
    if (i != sp_index && i != ip_index) scan.word(registers[i], "an address in a register", false);
  }
  saw_running(thread, registers[ip_index]);
  if (!thread.stack.contains(f.sp)) census.find_stack(thread);
  const char* doubt = nullptr;
  std::size_t wanted = copied;
  if (!thread.stack.contains(f.sp)) {
    doubt = "it runs on a stack that is not its own";
  } else {
    wanted = thread.stack.end - f.sp;
    if (wanted > copied) doubt = "its stack is deeper than a sample";
  }
  // Moved to where it lies in its cache lines as the original does.
  const std::uintptr_t from = (f.sp + 7) & ~std::uintptr_t{7};
  const std::size_t skipped = from - f.sp;
  const std::size_t bytes = std::min<std::size_t>(wanted, copied) & ~std::size_t{7};
  if (bytes > skipped) {
    const std::size_t used = (bytes - skipped) & ~std::size_t{7};
    std::byte* copy =
        census.scratch() + (from - reinterpret_cast<std::uintptr_t>(census.scratch())) % 64;
    census.note_scratch(used + 64);
    std::memcpy(copy, stack + skipped, used);
    scan.words(reinterpret_cast<const std::uint64_t*>(copy), used / 8, from);
    for (const Scan::Interrupted& i : scan.interrupted()) {
      if (i.sp < f.sp || !thread.stack.contains(i.sp)) doubt = "it runs on an alternate stack";
    }
    if (!thread.has_begun) doubt = not_begun;
    if (scan.too_many()) doubt = "more signal frames on its stack than can be followed";
  }
  scan.start_of(thread);
  if (doubt != nullptr && f.verdict != Verdict::inside) {
    f.verdict = Verdict::unknown;
    f.reason = doubt;
  }
}

}  // namespace

void sample_all(Census& census, std::span<Thread* const> threads, const RangeSet& ranges,
                std::int64_t wait_ns, Finding* findings) {
  Event events[most_at_once];
  pollfd polled[most_at_once];
  const std::size_t n = std::min(threads.size(), most_at_once);
  std::size_t waiting = 0;
  for (std::size_t i = 0; i < n; ++i) {
    Finding& f = findings[i];
    f = Finding{};
    f.tid = threads[i]->tid;
    f.activity = Activity::running;
    f.reason = "it runs, and did not come by user mode while it was sampled";
    const bool opened = events[i].open(threads[i]->tid);
    if (!opened) {
      f.reason = errno == ESRCH ? "it ended" : "it runs, and the system does not let us sample it";
    }
    polled[i] = {opened ? events[i].fd() : -1, POLLIN, 0};
    waiting += opened;
  }
  const std::int64_t end = now_ns() + wait_ns;
  while (waiting > 0) {
    const std::int64_t left = end - now_ns();
    if (left <= 0) break;
    const timespec t{left / 1'000'000'000, left % 1'000'000'000};
    if (ppoll(polled, n, &t, nullptr) <= 0) break;
    for (std::size_t i = 0; i < n; ++i) {
      if (polled[i].fd < 0 || polled[i].revents == 0) continue;
      if (const std::uint64_t* body = events[i].sample()) {
        judge(census, *threads[i], ranges, body, findings[i]);
      }
      polled[i].fd = -1;  // sampled, or the thread has ended
      --waiting;
    }
  }
}

Finding sample(Census& census, Thread& thread, const RangeSet& ranges, std::int64_t wait_ns) {
  Finding finding;
  Thread* const one[] = {&thread};
  sample_all(census, one, ranges, wait_ns, &finding);
  return finding;
}

}  // namespace molt::threads
