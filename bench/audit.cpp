// How fast the process's memory is searched for addresses in a module, and what the program notices:
//
//   audit.speed        a gibibyte of resident memory, by the method that is chosen for it; CPU time, so
//                      that what else runs on the machine does not count. Beside it copying the same
//                      memory by memcpy() in pieces that stay in the cache.
//   audit.throughput   a thread that stores to a large working set without pause: its rate while
//                      audits follow each other, and without them
//   audit.small        what unloading pays in a small process: this program, when nothing else was measured in it
//
// The search is linked in a second time, as libmolt.so does not show it.

#include <dlfcn.h>
#include <sys/mman.h>

#include <atomic>
#include <cstring>
#include <stdexcept>
#include <thread>

#include "audit/audit.hpp"
#include "audit/target.hpp"
#include "benches.hpp"
#include "harness.hpp"
#include "modules.hpp"

namespace bench {
namespace {

constexpr std::size_t gib = std::size_t{1} << 30;

class Memory {
 public:
  explicit Memory(std::size_t bytes) : bytes_(bytes) {
    void* memory = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED) throw std::runtime_error("no memory");
    at_ = static_cast<char*>(memory);
    std::memset(at_, 1, bytes);
  }
  ~Memory() { munmap(at_, bytes_); }
  Memory(const Memory&) = delete;
  Memory& operator=(const Memory&) = delete;
  char* at() const { return at_; }
  std::size_t bytes() const { return bytes_; }

 private:
  std::size_t bytes_;
  char* at_;
};

class Target {
 public:
  Target() : handle_(dlopen(module_path("bench_small").c_str(), RTLD_NOW | RTLD_LOCAL)) {
    auto target = molt::audit::target_of(handle_, "");
    if (!target) throw std::runtime_error("no target");
    target_ = std::move(*target);
  }
  ~Target() { dlclose(handle_); }
  Target(const Target&) = delete;
  Target& operator=(const Target&) = delete;

  molt::audit::Report search(molt::audit::Method method) const {
    molt::audit::Options options;
    options.method = method;
    auto report = molt::audit::audit(target_, options);
    if (!report) throw std::runtime_error(report.error().detail);
    return std::move(*report);
  }

 private:
  void* handle_;
  molt::audit::Target target_;
};

double copy_ms(const Memory& memory) {
  static char buffer[64 * 1024];
  const std::int64_t from = thread_cpu_ns();
  for (std::size_t at = 0; at < memory.bytes(); at += sizeof buffer) {
    std::memcpy(buffer, memory.at() + at, sizeof buffer);
    keep(&buffer);
    barrier();
  }
  return static_cast<double>(thread_cpu_ns() - from) / 1e6;
}

void speed(const Options& options, Report& report) {
  const Memory memory(options.quick ? gib / 4 : gib);
  const double parts = static_cast<double>(gib) / static_cast<double>(memory.bytes());
  Target target;
  auto measure = [&](const char* name, molt::audit::Method method, const Goal& goal) {
    std::vector<double> ours, rival;
    for (int i = 0; i < (options.quick ? 3 : 7); ++i) {
      rival.push_back(copy_ms(memory) * parts);
      const std::int64_t from = thread_cpu_ns();
      const auto done = target.search(method);
      const double ms = static_cast<double>(thread_cpu_ns() - from) / 1e6;
      ours.push_back(ms * static_cast<double>(gib) / static_cast<double>(done.resident));
    }
    const double value = median(ours), other = median(rival);
    report.add({name, value, "ms/GiB", "memcpy()", other, value / other, goal});
  };
  // 3 GiB/s of resident memory.
  measure("audit.speed", molt::audit::Method::automatic, Goal::value_at_most(333, "ms/GiB"));
  measure("audit.speed.rescan", molt::audit::Method::rescan, Goal::info());
}

void throughput(const Options& options, Report& report) {
  const Memory memory(options.quick ? gib / 4 : gib);
  Target target;
  std::atomic<bool> stop{false};
  std::atomic<std::uint64_t> stores{0};
  std::thread program([&] {
    constexpr std::size_t working_set = std::size_t{64} << 20;
    std::uint64_t random = 1;
    while (!stop.load(std::memory_order_relaxed)) {
      for (int i = 0; i < 1000; ++i) {
        random = random * 6364136223846793005u + 1442695040888963407u;
        memory.at()[(random >> 20) % working_set] = static_cast<char>(random >> 56);
      }
      stores.fetch_add(1000, std::memory_order_relaxed);
    }
  });
  auto rate = [&](auto&& meanwhile) {
    const std::uint64_t before = stores.load(std::memory_order_relaxed);
    const std::int64_t from = now_ns();
    meanwhile();
    return static_cast<double>(stores.load(std::memory_order_relaxed) - before) * 1e3 /
           static_cast<double>(now_ns() - from);
  };
  const Compared compared = compare(
      options.quick ? 3 : 15,
      [&] { return rate([&] { target.search(molt::audit::Method::automatic); }); },
      [&] {
        return rate([] {
          timespec nap{0, 300'000'000};
          nanosleep(&nap, nullptr);
        });
      });
  stop.store(true, std::memory_order_relaxed);
  program.join();
  report.add({"audit.throughput", compared.ours, "stores/us", "without an audit", compared.rival,
              compared.ratio, Goal::ratio_at_least(0.9)});
}

Compared small_process(int rounds) {
  Target target;
  std::vector<double> us;
  for (int i = 0; i < rounds; ++i) {
    const std::int64_t from = thread_cpu_ns();
    target.search(molt::audit::Method::automatic);
    us.push_back(static_cast<double>(thread_cpu_ns() - from) / 1e3);
  }
  return {median(us), 0, 0, 0};
}

void small(const Options& options, Report& report) {
  const Compared compared = measure_in_processes("audit.small", options);
  report.add({"audit.small", compared.ours, "us", "", 0, 0, Goal::value_at_most(1000, "us")});
}

}  // namespace

std::vector<Figure> audit_figures() { return {{"audit.small", small_process}}; }

std::vector<Bench> audit_benches() {
  return {
      {"audit.small", "an audit of a small process", small},
      {"audit.speed", "an audit of a gibibyte", speed},
      {"audit.throughput", "a busy program during audits", throughput},
  };
}

}  // namespace bench
