// What the residency proof costs, and who notices: residency.proof, residency.disturbed,
// residency.scan, residency.copy, residency.gap.
//
// A thousand threads sleep; it is proven that none of them is in a piece of code. Nobody runs because
// of it: their run counts are read before and after. The longest gap is that of a thread that does
// nothing but read the clock, alone on its CPU, in windows with proofs and in windows without, in
// turn.

#include <pthread.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

#include <atomic>
#include <cstring>
#include <memory>
#include <random>
#include <stdexcept>
#include <thread>
#include <vector>

#include "arch/x86_64/scan.hpp"
#include "base/futex.hpp"
#include "benches.hpp"
#include "threads/procfs.hpp"
#include "threads/residency.hpp"

namespace bench {
namespace {

using namespace molt;
using namespace molt::threads;

constexpr int sleeper_count = 1000;

class Sleepers {
 public:
  Sleepers() {
    pthread_attr_t attributes;
    pthread_attr_init(&attributes);
    pthread_attr_setstacksize(&attributes, 64 * 1024);
    threads_.resize(sleeper_count);
    for (auto& thread : threads_) {
      if (pthread_create(&thread, &attributes, run, this) != 0) {
        throw std::runtime_error("cannot start 1000 threads");
      }
    }
    pthread_attr_destroy(&attributes);
    while (started_.load(std::memory_order_acquire) != sleeper_count) sched_yield();
    // Until the last one has fallen asleep.
    std::uint64_t before = 0;
    for (std::uint64_t now = runs(); now != before; now = runs()) {
      before = now;
      const timespec t{0, 10'000'000};
      nanosleep(&t, nullptr);
    }
  }
  ~Sleepers() {
    word_.store(1, std::memory_order_release);
    futex_wake_all(word_);
    for (pthread_t thread : threads_) pthread_join(thread, nullptr);
  }

  // The sum of their run counts.
  std::uint64_t runs() {
    std::uint64_t sum = 0;
    Status ok = inspect([&](Census& census) {
      if (!census.refresh()) return;
      for (Thread* thread : census.threads()) {
        if (thread->tid == asker_) continue;
        std::uint64_t count = 0;
        if (read_run_count(thread->schedstat.get(), count)) sum += count;
      }
    });
    if (!ok) throw std::runtime_error(ok.error().detail);
    return sum;
  }

 private:
  static void* run(void* given) {
    auto* self = static_cast<Sleepers*>(given);
    self->started_.fetch_add(1, std::memory_order_release);
    while (self->word_.load(std::memory_order_acquire) == 0) futex_wait(self->word_, 0);
    return nullptr;
  }
  const int asker_ = gettid();
  std::vector<pthread_t> threads_;
  std::atomic<int> started_{0};
  std::atomic<std::uint32_t> word_{0};
};

RangeSet somewhere() {
  void* page = mmap(nullptr, 4096, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  RangeSet ranges;
  ranges.add(reinterpret_cast<std::uintptr_t>(page), reinterpret_cast<std::uintptr_t>(page) + 4096);
  munmap(page, 4096);
  return ranges;
}

void prove(const RangeSet& ranges, const void* frame) {
  ProofOptions options;
  options.deadline = Deadline::in_ms(30'000);
  options.own_frame = frame;
  auto proof = prove_out(ranges, options);
  if (!proof) throw std::runtime_error(proof.error().detail);
  if (!proof->out()) throw std::runtime_error(proof->holders[0].reason);
}

void measure_proof(const Options& options, Report& report) {
  Pinned pinned;  // the census thread as well: it is started here
  Sleepers sleepers;
  const RangeSet ranges = somewhere();
  prove(ranges, __builtin_frame_address(0));
  const std::uint64_t before = sleepers.runs();
  std::vector<double> times;
  const int rounds = options.quick ? 50 : 300;
  for (int i = 0; i < rounds; ++i) {
    const std::int64_t from = now_ns();
    prove(ranges, __builtin_frame_address(0));
    times.push_back(static_cast<double>(now_ns() - from) / sleeper_count / 1000);
  }
  const std::uint64_t after = sleepers.runs();
  report.add({.name = "residency.proof",
              .value = median(times),
              .unit = "us/thread",
              .rival = "",
              .goal = Goal::value_at_most(2, "us/thread")});
  report.add({.name = "residency.disturbed",
              .value = static_cast<double>(after - before),
              .unit = "runs",
              .rival = "",
              .goal = Goal::value_is_zero()});
}

// --- the scan -----------------------------------------------------------------------------------------

// What stacks hold: small numbers, addresses of heap and stack, return addresses of other libraries.
struct Memory {
  static constexpr std::size_t bytes = 256 * 1024;
  Memory() : words(bytes / 8 + 8) {
    std::mt19937_64 random(1);
    for (auto& word : words) {
      switch (random() % 4) {
        case 0:
          word = 0;
          break;
        case 1:
          word = random() % 1000;
          break;
        case 2:
          word = 0x7f0000000000 + random() % 0x100000000;
          break;
        default:
          word = 0x555500000000 + random() % 0x10000000;
      }
    }
    const auto at = reinterpret_cast<std::uintptr_t>(words.data());
    begin = words.data() + (64 - at % 64) / 8 % 8;
  }
  std::vector<std::uint64_t> words;
  const std::uint64_t* begin;
};

RangeSet many_ranges() {
  RangeSet ranges;
  for (std::uintptr_t i = 0; i < 64; ++i) {
    ranges.add(0x555600000000 + i * 4096, 0x555600000000 + i * 4096 + 300);
  }
  return ranges;
}

template <class Find>
double scan_time(const Memory& memory, const RangeSet& ranges, Find&& find) {
  const std::uintptr_t low = ranges.begin_of(0);
  const arch::Interval interval{low, ranges.end_of(ranges.size() - 1) - low};
  constexpr int repeats = 8;
  std::size_t hits = 0;
  const std::int64_t from = now_ns();
  for (int r = 0; r < repeats; ++r) {
    constexpr std::size_t count = Memory::bytes / 8;
    for (std::size_t i = 0; i < count; ++i) {
      i += find(memory.begin + i, count - i, interval);
      if (i < count && ranges.contains(memory.begin[i])) ++hits;
    }
    keep(hits);
  }
  return static_cast<double>(now_ns() - from) / (repeats * Memory::bytes / 1024);
}

void measure_scan(const Options& options, Report& report) {
  Pinned pinned;
  const Memory memory;
  const RangeSet ranges = many_ranges();
  const int rounds = options.quick ? 50 : 400;
  const Compared scan = compare(
      rounds, [&] { return scan_time(memory, ranges, arch::find_word); },
      [&] { return scan_time(memory, ranges, arch::find_word_scalar); });
  report.add({.name = "residency.scan",
              .value = scan.ours,
              .unit = "ns/KiB",
              .rival = "scalar",
              .rival_value = scan.rival,
              .ratio = scan.ratio,
              .goal = Goal::value_at_most(10, "ns/KiB")});

  // What it costs on top that the memory may vanish meanwhile: the kernel copies it.
  std::vector<std::byte> copy(64 * 1024);
  const Compared copied = compare(
      rounds,
      [&] {
        const std::int64_t from = now_ns();
        for (std::size_t at = 0; at < Memory::bytes; at += copy.size()) {
          iovec local{copy.data(), copy.size()};
          iovec remote{const_cast<std::uint64_t*>(memory.begin) + at / 8, copy.size()};
          if (process_vm_readv(getpid(), &local, 1, &remote, 1, 0) < 0) {
            throw std::runtime_error("cannot copy");
          }
        }
        return static_cast<double>(now_ns() - from) / (Memory::bytes / 1024);
      },
      [&] {
        const std::int64_t from = now_ns();
        for (std::size_t at = 0; at < Memory::bytes; at += copy.size()) {
          std::memcpy(copy.data(), memory.begin + at / 8, copy.size());
          barrier();
        }
        return static_cast<double>(now_ns() - from) / (Memory::bytes / 1024);
      });
  report.add({.name = "residency.copy",
              .value = copied.ours,
              .unit = "ns/KiB",
              .rival = "memcpy",
              .rival_value = copied.rival,
              .ratio = copied.ratio});
}

// --- the longest gap ------------------------------------------------------------------------------------

// Reads the clock, and nothing else.
class ClockReader {
 public:
  ClockReader()
      : thread_([this] {
          Pinned pinned(cpus().back());
          std::int64_t last = now_ns();
          while (!stop_.load(std::memory_order_relaxed)) {
            const std::int64_t now = now_ns();
            if (now - last > longest_.load(std::memory_order_relaxed)) {
              longest_.store(now - last, std::memory_order_relaxed);
            }
            last = now;
          }
        }) {}
  ~ClockReader() {
    stop_.store(true, std::memory_order_relaxed);
    thread_.join();
  }
  void begin() { longest_.store(0, std::memory_order_relaxed); }
  double longest_us() const {
    return static_cast<double>(longest_.load(std::memory_order_relaxed)) / 1000;
  }

 private:
  std::atomic<std::int64_t> longest_{0};
  std::atomic<bool> stop_{false};
  std::thread thread_;
};

void measure_gap(const Options& options, Report& report) {
  if (cpus().size() < 2) throw std::runtime_error("needs two CPUs");
  Pinned pinned(cpus().front());
  Sleepers sleepers;
  const RangeSet ranges = somewhere();
  prove(ranges, __builtin_frame_address(0));
  // The census thread stays off the clock reader's CPU.
  if (!inspect([](Census&) {
        cpu_set_t set;
        CPU_ZERO(&set);
        CPU_SET(cpus().front(), &set);
        sched_setaffinity(0, sizeof set, &set);
      })) {
    throw std::runtime_error("no census");
  }
  ClockReader reader;
  // The reader runs all the time, so the proofs' only holder would be the reader itself: looked at are
  // all, but the answer is not waited for.
  constexpr int proofs = 4;
  std::int64_t window_ns = 0;
  const auto busy = [&] {
    reader.begin();
    const std::int64_t from = now_ns();
    for (int i = 0; i < proofs; ++i) {
      ProofOptions once;
      once.deadline = Deadline{from};
      once.own_frame = __builtin_frame_address(0);
      once.may_sample = false;
      auto proof = prove_out(ranges, once);
      if (!proof) throw std::runtime_error(proof.error().detail);
    }
    window_ns = now_ns() - from;
    return reader.longest_us();
  };
  const auto quiet = [&] {
    reader.begin();
    const std::int64_t end = now_ns() + window_ns;
    while (now_ns() < end) {
    }
    return reader.longest_us();
  };
  busy();
  const Compared gap = compare(options.quick ? 20 : 100, busy, quiet);
  report.add({.name = "residency.gap",
              .value = gap.ours,
              .unit = "us",
              .rival = "no proofs",
              .rival_value = gap.rival,
              .ratio = gap.ratio,
              .goal = Goal::ratio_at_most(1.2)});
}

}  // namespace

std::vector<Bench> residency_benches() {
  return {
      {"residency.proof", "1000 sleeping threads are proven out", measure_proof},
      {"residency.scan", "a stack is searched for 64 ranges", measure_scan},
      {"residency.gap", "longest gap of a clock reader beside proofs", measure_gap},
  };
}

}  // namespace bench
