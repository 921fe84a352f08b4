#include "interpose/entries.hpp"

#include <fcntl.h>
#include <time.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <vector>

#include "base/fd.hpp"
#include "base/futex.hpp"
#include "elf/loaded.hpp"
#include "threads/census.hpp"
#include "threads/procfs.hpp"
#include "threads/residency.hpp"

namespace molt::interpose {
namespace {

constexpr std::size_t most_padding = 64;
// A thread in a prologue runs, and is out of it before it can be looked at twice.
constexpr int running_patience_ms = 10;

std::span<const std::byte> memory(std::uintptr_t begin, std::size_t bytes) {
  return {reinterpret_cast<const std::byte*>(begin), bytes};
}

arch::CodeRange segment_of(const elf::NamedObject& object, std::uintptr_t address) {
  for (const Elf64_Phdr& segment : object.segments) {
    if (segment.p_type != PT_LOAD || !(segment.p_flags & PF_X)) continue;
    const arch::CodeRange range{object.bias + segment.p_vaddr,
                                object.bias + segment.p_vaddr + segment.p_memsz};
    if (range.contains(address)) return range;
  }
  return {};
}

// Bytes on both sides that belong to no symbol. Of a stripped object nobody knows whose they are.
void find_padding(const elf::Symbols& symbols, const arch::CodeRange& segment,
                  arch::EntryQuery& query) {
  if (!symbols.complete()) return;
  if (auto at = symbols.at(query.address - 1); at && at->symbol.size != 0) {
    const std::uint64_t end = at->symbol.address + at->symbol.size;
    if (end <= query.address) {
      query.before = std::min({query.address - end, most_padding, query.address - segment.begin});
    }
  }
  const std::uint64_t end = query.address + query.size;
  while (query.after < most_padding && segment.contains(end + query.after)) {
    auto at = symbols.at(end + query.after);
    if (at && at->symbol.address >= end) break;
    ++query.after;
  }
}

bool blocks_sigtrap(int tid) {
  char path[64];
  std::snprintf(path, sizeof path, "/proc/self/task/%d/status", tid);
  const Fd fd(open(path, O_RDONLY | O_CLOEXEC));
  char text[4096];
  const ssize_t n = fd ? read(fd.get(), text, sizeof text - 1) : -1;
  if (n <= 0) return false;  // it has gone
  text[n] = '\0';
  const char* mask = std::strstr(text, "\nSigBlk:");
  unsigned long long blocked = 0;
  constexpr unsigned long long sigtrap = 1ull << (5 - 1);
  return mask != nullptr && std::sscanf(mask + 8, " %llx", &blocked) == 1 && (blocked & sigtrap);
}

Status look_for_blocked_sigtrap() {
  Status verdict;
  Status asked = threads::inspect([&](threads::Census& census) {
    if (verdict = census.refresh(); !verdict) return;
    for (threads::Thread* thread : census.threads()) {
      if (census.is_worker(*thread) || !blocks_sigtrap(thread->tid)) continue;
      verdict = fail({EBUSY, arch::refusal_name(arch::Refusal::traps_blocked)},
                     "thread %d (%s) blocks SIGTRAP, and the int3 that a safe change of code needs "
                     "would kill it; `molt load` opens it where it may trace the process",
                     thread->tid, threads::thread_name(thread->tid).c_str());
      return;
    }
  });
  return asked ? verdict : asked;
}

}  // namespace

Result<Located> locate(std::string_view library, std::string_view function,
                       const std::function<Status(std::uintptr_t)>& may_be) {
  auto object = elf::find_loaded(library);
  if (!object) return pass(object);
  const std::string name(function);
  if (auto mine = elf::object_at(reinterpret_cast<const void*>(&look_for_blocked_sigtrap));
      mine && mine->extent.contains(object->extent.begin)) {
    return fail(EINVAL, "function '%s' is the runtime's own", name.c_str());
  }
  auto symbols = elf::read_symbols(*object);
  if (!symbols) return pass(symbols);
  auto found = symbols->find(function);
  if (!found) {
    return fail(ENOENT, "%s%s%s", found.error().detail, symbols->complete() ? "" : "; ",
                symbols->complete() ? "" : symbols->shortcomings().c_str());
  }
  if (!found->is_function() || found->is_indirect()) {
    return fail(EINVAL, "'%s' is %s", name.c_str(),
                found->is_indirect()
                    ? "an indirect function: which code it means was chosen when the program began"
                    : "no function");
  }
  if (may_be) {
    if (Status ok = may_be(found->address); !ok) return pass(ok);
  }
  Located located;
  located.address = found->address;
  const arch::CodeRange segment = segment_of(*object, found->address);
  if (segment.empty()) return fail(ENOTSUP, "'%s' lies in no code of its library", name.c_str());
  arch::EntryQuery query;
  query.address = found->address;
  query.size = found->size;
  find_padding(*symbols, segment, query);
  query.live = memory(query.address - query.before, query.before + query.size + query.after);
  auto entry = arch::analyse(query);
  if (!entry) {
    return fail({entry.error().code, entry.error().site}, "function '%s' cannot be redirected: %s",
                name.c_str(), entry.error().detail);
  }
  located.entry = *entry;
  located.object = std::move(*object);
  return located;
}

// Threads block all signals for a moment when they begin and end: only who goes on does matters.
Status ThreadWitness::no_thread_blocks_sigtrap() {
  const Deadline patience = Deadline::in_ms(patience_ms_);
  for (;;) {
    Status verdict = look_for_blocked_sigtrap();
    if (verdict || patience.passed()) return verdict;
    timespec pause{0, 1'000'000};
    nanosleep(&pause, nullptr);  // tidy: sleep-ok nobody tells when a mask changes
  }
}

Status ThreadWitness::no_thread_within(std::span<const arch::CodeRange> ranges) {
  threads::RangeSet set;
  for (const arch::CodeRange& range : ranges) set.add(range.begin, range.end);
  threads::ProofOptions options;
  options.deadline = Deadline::in_ms(patience_ms_);
  options.last_means = threads::LastMeans::signal;
  options.last_means_after = Deadline::in_ms(running_patience_ms);
  auto proof = threads::prove_out(set, options);
  if (!proof) return pass(proof);
  if (proof->out()) return {};
  const threads::Finding& who = proof->holders.front();
  return fail({EBUSY, arch::refusal_name(arch::Refusal::in_use)},
              "thread %d (%s) stands in the first bytes of the function (%s); try again", who.tid,
              who.name, who.reason);
}

}  // namespace molt::interpose
