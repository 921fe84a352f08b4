// audit.cpp - the rounds of a search: all that is there, then what was written meanwhile, until the
// answer stands still.

#include "audit/audit.hpp"

#include <sys/resource.h>
#include <time.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cstdio>

#include "arch/x86_64/scan.hpp"
#include "audit/copy.hpp"
#include "audit/judge.hpp"
#include "audit/kernel.hpp"
#include "audit/owners.hpp"
#include "audit/pages.hpp"
#include "audit/stacks.hpp"
#include "base/own_memory.hpp"
#include "elf/maps.hpp"
#include "threads/procfs.hpp"
#include "threads/record.hpp"

namespace molt::audit {
namespace {

constexpr std::uintptr_t page_bytes = 4096;
// Words that are kept for a closer look; with more than these the answer is clear.
constexpr std::size_t hits_max = 16 * 1024;

// --- one at a time ------------------------------------------------------------------------------

// The process whose thread audits; 0: none. A forked child finds its parent's there, whose thread it
// does not have.
std::atomic<std::uint32_t> g_auditor{0};

class Turn {
 public:
  Status take(const Options& options) {
    const auto self = static_cast<std::uint32_t>(getpid());
    for (;;) {
      std::uint32_t seen = g_auditor.load(std::memory_order_acquire);
      if (seen != self) {
        if (g_auditor.compare_exchange_strong(seen, self, std::memory_order_acq_rel,
                                              std::memory_order_acquire)) {
          mine_ = true;
          return {};
        }
        continue;
      }
      if (options.deadline.passed()) return fail(ETIMEDOUT, "gave up waiting for another audit");
      if (options.cancelled && options.cancelled()) return fail(ECANCELED, "cancelled");
      futex_wait(g_auditor, seen, options.deadline.sooner(Deadline::in_ms(50)));
    }
  }
  Turn() = default;
  ~Turn() {
    if (!mine_) return;
    g_auditor.store(0, std::memory_order_release);
    futex_wake_all(g_auditor);
  }
  Turn(const Turn&) = delete;
  Turn& operator=(const Turn&) = delete;

 private:
  bool mine_ = false;
};

// --- giving way ---------------------------------------------------------------------------------

// The search reads memory as fast as it can. Once it is large, and this thread was preempted, the
// program wants the CPU: then rest nine times as long as was worked since the last rest.
class Manners {
 public:
  void worked(std::uint64_t bytes) {
    since_look_ += bytes;
    all_ += bytes;
    constexpr std::uint64_t look_every = std::uint64_t{1} << 20;
    constexpr std::uint64_t short_search = std::uint64_t{32} << 20;
    if (since_look_ < look_every || all_ < short_search) return;
    since_look_ = 0;
    rusage usage{};
    if (getrusage(RUSAGE_THREAD, &usage) != 0) return;
    const std::int64_t now = now_ns();
    if (usage.ru_nivcsw != preempted_ && preempted_ >= 0) {
      constexpr std::int64_t longest_ns = 20'000'000;
      const std::int64_t rest = std::min(9 * (now - worked_from_), longest_ns);
      timespec nap{0, static_cast<long>(rest)};
      nanosleep(&nap, nullptr);
      worked_from_ = now_ns();
    } else if (preempted_ < 0) {
      worked_from_ = now;
    }
    preempted_ = usage.ru_nivcsw;
  }

 private:
  std::uint64_t since_look_ = 0, all_ = 0;
  long preempted_ = -1;
  std::int64_t worked_from_ = 0;
};

// --- the search ---------------------------------------------------------------------------------

bool starts_with(std::string_view text, std::string_view prefix) {
  return text.substr(0, prefix.size()) == prefix;
}

// Devices have no memory of ours; what the kernel maps for itself has none at all.
bool is_searchable(const elf::MapsLine& line) {
  if (!line.readable || (line.shared && !line.writable)) return false;
  if (starts_with(line.path, "[v")) return false;  // vdso, vvar, vsyscall
  return !starts_with(line.path, "/dev/") || starts_with(line.path, "/dev/shm/") ||
         starts_with(line.path, "/dev/zero");
}

// Names that the program gave to anonymous memory tell what it is for, not another file.
bool is_unnamed(std::string_view path) { return path == "[heap]" || starts_with(path, "[anon:"); }

class Search {
 public:
  Search(const Target& target, const Options& options) : target_(target), options_(options) {}

  Result<Report> run() {
    if (Status ok = copy_.open(); !ok) return pass(ok);
    if (Status ok = pages_.open(options_); !ok) return pass(ok);
    report_.method = pages_.method();
    unsigned unchanged = 0;
    bool some_vanished = false;
    for (unsigned round = 0; round < rounds_max; ++round) {
      const std::size_t before = hits_.size();
      const Status done = search_all(round, options_.stacks,
                                     [&](std::uintptr_t at, std::size_t n) { look_at(at, n); });
      if (!done) return pass(done);
      ++report_.rounds;
      if (round == 0) report_.resident = report_.bytes;
      const bool grew = hits_.size() != before;
      const bool shrank = forget_vanished();
      // What has vanished may have moved; then once is not enough.
      some_vanished |= shrank;
      unchanged = grew || shrank || round == 0 ? 0 : unchanged + 1;
      report_.stable = unchanged >= (some_vanished ? 2u : 1u);
#ifdef MOLT_MUTATE_AUDIT_NO_RESCAN
      report_.stable = true;
#endif
      if (report_.stable) break;
    }
    if (Status ok = judge_all(); !ok) return pass(ok);
    return std::move(report_);
  }

 private:
  Status read_mappings() {
    mappings_.clear();
    elf::MapsReader maps;
    for (;;) {
      elf::MapsLine line;
      switch (maps.next(line)) {
        case elf::MapsReader::Next::end:
          return {};
        case elf::MapsReader::Next::failed:
          return fail(EACCES, "cannot read /proc/self/maps");
        case elf::MapsReader::Next::line:
          if (!is_searchable(line) || is_in_target(line.range.begin)) break;
          mappings_.push_back({line.range, line.shared, line.writable, line.path == "[heap]",
                               line.path == "[stack]",
                               is_unnamed(line.path) ? "" : std::string(line.path)});
      }
    }
  }

  // What is left out, ascending; where it is not whole pages, the words around it are searched.
  void read_omitted(bool stacks) {
    omitted_ = target_.segments;
    for (std::size_t i = 0; i < own_memory_count(); ++i) {
      const OwnMemory own = own_memory(i);
      omitted_.push_back({own.begin, own.end});
    }
    omitted_.insert(omitted_.end(), target_.known.begin(), target_.known.end());
    threads_ = threads_now(copy_, main_stack());
    for (const ThreadMemory& thread : threads_) {
      if (thread.stack.size() == 0) continue;
      Range out = thread.stack;
      // Below its stack pointer there is nothing that a thread will read.
      if (stacks && !is_own_thread(thread.tid)) {
        out.end = thread.tid == gettid() ? own_frame_ : stack_pointer(thread.tid);
      }
      if (thread.stack.contains(out.begin) && out.end > out.begin) omitted_.push_back(out);
    }
    if (owners_ != nullptr) {
      for (const Range& own : owners_->own_memory()) omitted_.push_back(own);
      omit_memory_of(report_.findings);
      omit_memory_of(hits_);
    }
    // These lists themselves name the module (A3).
    omit_memory_of(target_.segments);
    omit_memory_of(target_.text);
    omit_memory_of(target_.data);
    omit_memory_of(target_.tables);
    omit_memory_of(target_.known);
    omitted_.reserve(omitted_.size() + 1);
    omit_memory_of(omitted_);
    std::sort(omitted_.begin(), omitted_.end(),
              [](const Range& a, const Range& b) { return a.begin < b.begin; });
  }

  Range main_stack() const {
    for (const Mapping& m : mappings_) {
      if (m.main_stack) return m.range;
    }
    return {};
  }

  template <class T>
  void omit_memory_of(const std::vector<T>& list) {
    const auto at = reinterpret_cast<std::uintptr_t>(list.data());
    omitted_.push_back({at, at + list.capacity() * sizeof(T)});
  }

  bool is_omitted(std::uintptr_t address) const {
    return std::any_of(omitted_.begin(), omitted_.end(),
                       [&](const Range& r) { return r.contains(address); });
  }

  // Calls look(address, bytes) for each piece, of which the words are in copy_ then.
  template <class Look>
  Status search_all(unsigned round, bool stacks, Look&& look) {
    if (Status ok = read_mappings(); !ok) return ok;
    read_omitted(stacks);
    for (const Mapping& mapping : mappings_) {
      std::uintptr_t at = mapping.range.begin;
      for (const Range& out : omitted_) {
        const std::uintptr_t from = (out.begin + page_bytes - 1) & ~(page_bytes - 1);
        const std::uintptr_t to = out.end & ~(page_bytes - 1);
        if (to <= at || from >= mapping.range.end || from >= to) continue;
        if (from > at && !search_part(mapping, {at, from}, round, look)) return stopped_;
        at = std::max(at, to);
      }
      if (at < mapping.range.end && !search_part(mapping, {at, mapping.range.end}, round, look)) {
        return stopped_;
      }
    }
    return {};
  }

  template <class Look>
  bool search_part(const Mapping& mapping, Range part, unsigned round, Look& look) {
    return pages_.for_each(mapping.range, part, !mapping.shared, round, [&](Range run) {
      for (std::uintptr_t at = run.begin; at < run.end;) {
        const std::size_t wanted = std::min<std::size_t>(run.end - at, Copy::bytes_max);
        const std::size_t got = copy_.take(at, wanted);
        report_.bytes += got;
        look(at, got);
        // Beyond a page that cannot be read.
        at = got == wanted ? at + got : (at + got + page_bytes) & ~(page_bytes - 1);
        if (!go_on(at - got, got)) return false;
      }
      return true;
    });
  }

  void look_at(std::uintptr_t at, std::size_t bytes) {
    const std::uint64_t lo = target_.segments.front().begin;
    const arch::Interval interval{lo, target_.segments.back().end - lo};
    const std::uint64_t* words = copy_.words();
    const std::size_t count = bytes / sizeof *words;
    for (std::size_t i = 0; (i += arch::find_word(words + i, count - i, interval)) < count; ++i) {
      const std::uintptr_t address = at + i * sizeof *words;
      // Where it begins another mapping may end: every table of mappings, ours too, has that address.
      if (words[i] == lo || !is_in_target(words[i]) || is_omitted(address)) continue;
      const auto place = std::lower_bound(hits_.begin(), hits_.end(), address);
      if (place != hits_.end() && *place == address) continue;
      if (hits_.size() == hits_max) {
        too_many_ = true;
        return;
      }
      hits_.insert(place, address);
    }
  }

  bool go_on(std::uintptr_t at, std::size_t bytes) {
    if (options_.observer) options_.observer({at, at + bytes});
    manners_.worked(bytes);
    if (options_.deadline.passed()) {
      stopped_ = fail(ETIMEDOUT, "the search of memory took too long");
    } else if (options_.cancelled && options_.cancelled()) {
      stopped_ = fail(ECANCELED, "cancelled");
    }
    return stopped_.has_value();
  }

  // Whether any did. Hits lie close together: a page is read once for all of its own.
  bool forget_vanished() {
    std::uintptr_t page = 0;
    std::size_t words = 0;
    const auto gone = [&](std::uintptr_t address) {
      // A block that was free, and that a list of ours has taken since.
      if (is_omitted(address)) return true;
      if (page != (address & ~(page_bytes - 1))) {
        page = address & ~(page_bytes - 1);
        words = copy_.take(page, page_bytes) / sizeof(std::uint64_t);
      }
      const std::size_t at = (address - page) / sizeof(std::uint64_t);
      return at >= words || !is_in_target(copy_.words()[at]);
    };
    const auto first = std::remove_if(hits_.begin(), hits_.end(), gone);
    const bool some = first != hits_.end();
    hits_.erase(first, hits_.end());
    return some;
  }

  Status judge_all() {
    std::vector<KernelWord> held = kernel_words();
    held.erase(std::remove_if(held.begin(), held.end(),
                              [&](const KernelWord& w) { return !is_in_target(w.value); }),
               held.end());
    if (hits_.empty() && held.empty()) return {};
    Judge judge(target_, options_.stacks, copy_, mappings_);
    for (const KernelWord& word : held) {
      Finding finding;
      finding.place = word.is_signal ? Place::signal : Place::timer;
      finding.where = word.what;
      judge.name_target(word.value, finding);
      report_.findings.push_back(std::move(finding));
    }
    for (std::size_t i = 0; i < hits_.size(); ++i) {
      if (report_.findings.size() == findings_max) {
        report_.more += hits_.size() - i;
        break;
      }
      const std::uintptr_t address = hits_[i];
      if (auto finding = judge.judge(address)) {
        report_.findings.push_back(std::move(*finding));
      } else {
        ++report_.dismissed;
      }
    }
    if (too_many_) ++report_.more;
    return find_owners(judge);
  }

  Status find_owners(Judge& judge) {
    Owners owners;
    for (const Finding& f : report_.findings) {
      if (f.bars && f.block.size() != 0) owners.ask(f.block);
    }
    owners_ = &owners;
    unsigned passes = 0;
    for (; owners.begin(); ++passes) {
      if (passes == Owners::passes_max) {
        owners.give_up();
        break;
      }
      const Range envelope = owners.envelope();
      const arch::Interval interval{envelope.begin, envelope.size()};
      const auto look = [&](std::uintptr_t at, std::size_t bytes) {
        const std::uint64_t* words = copy_.words();
        const std::size_t count = bytes / sizeof *words;
        for (std::size_t i = 0; (i += arch::find_word(words + i, count - i, interval)) < count;
             ++i) {
          const std::uintptr_t address = at + i * sizeof *words;
          if (envelope.contains(words[i]) && !is_omitted(address)) owners.note(address, words[i]);
        }
      };
      if (Status ok = search_all(Pages::everything, true, look); !ok) return ok;
      for (const Owners::Reference& reference : std::vector(owners.references())) {
        const auto stack = std::find_if(
            threads_.begin(), threads_.end(),
            [&](const ThreadMemory& t) { return t.stack.contains(reference.address); });
        Finding found;
        if (stack != threads_.end()) {
          owners.from_outside(reference, "the stack of thread " + std::to_string(stack->tid) +
                                             " (" + threads::thread_name(stack->tid) + ")");
        } else if (judge.place(reference.address, found)) {
          if (found.block.size() != 0) {
            owners.from_block(reference, found.block);
          } else if (!reference.to_end && !is_in_the_loader(found)) {
            owners.from_outside(reference, found.where);
          }
        }
      }
    }
    owners_ = nullptr;
    owners.decide();
    for (Finding& f : report_.findings) {
      if (!f.bars || f.block.size() == 0) continue;
      f.bars = !owners.only_the_module(f.block);
      f.owner = f.bars ? owners.who_else(f.block) : "only the module, or the dynamic loader";
    }
    // A block may have been freed, and used by another, while it was looked at.
    const auto gone = [&](const Finding& f) {
      return f.address != 0 && !is_in_target(copy_.word(f.address).value_or(0));
    };
    report_.findings.erase(std::remove_if(report_.findings.begin(), report_.findings.end(), gone),
                           report_.findings.end());
    return {};
  }

  bool is_in_target(std::uintptr_t value) const {
    return std::any_of(target_.segments.begin(), target_.segments.end(),
                       [&](const Range& r) { return r.contains(value); });
  }

  const Target& target_;
  const Options& options_;
  Copy copy_;
  Pages pages_;
  Manners manners_;
  std::vector<Mapping> mappings_;
  std::vector<Range> omitted_;
  std::vector<ThreadMemory> threads_;
  Owners* owners_ = nullptr;  // while blocks are asked for
  const std::uintptr_t own_frame_ = reinterpret_cast<std::uintptr_t>(__builtin_frame_address(0));
  std::vector<std::uintptr_t> hits_;  // where, ascending; what is looked up again
  bool too_many_ = false;
  Status stopped_;
  Report report_;
};

}  // namespace

Result<Report> audit(const Target& target, const Options& options) {
  if (target.segments.empty()) return fail(EINVAL, "nothing to look for");
  // Until the search's lists are gone: they name other modules, which the next one may look for.
  Turn turn;
  if (Status ok = turn.take(options); !ok) return pass(ok);
  const std::int64_t began = now_ns();
  Result<Report> report = Search(target, options).run();
  if (report) report->us = (now_ns() - began) / 1000;
  return report;
}

}  // namespace molt::audit
