// release.cpp - the end of a patch: off the list, and its module put once nothing of it can be in use.

#include <algorithm>

#include "base/futex.hpp"
#include "livepatch/internal.hpp"

namespace molt::livepatch {

void retire(const PatchPtr& patch, const char* why_pinned) {
  Engine& e = engine();
  const Observer* observer;
  bool is_pinned = false;
  {
    Lock lock(e.mutex);
    e.patches.remove(patch);
    patch->on_list = false;
    patch->enabled = false;
    observer = e.observer;
    if (e.delay_release_ms > 0) {
      // As the kernel's debugging option: for once, twice, three or four times as long.
      const std::int64_t delay_ms = e.delay_release_ms * (1 + now_ns() / 1000 % 4);
      e.pinned.push_back({patch, why_pinned != nullptr ? why_pinned : "delay_release",
                          why_pinned != nullptr, now_ns() + delay_ms * 1'000'000});
    } else if (why_pinned != nullptr) {
      e.pinned.push_back({patch, why_pinned});
    }
    is_pinned = !e.pinned.empty();
  }
  if (observer != nullptr) observer->gone(patch->name);
  if (is_pinned && collect_pinned() == 0) ensure_worker();
  announce();
}

std::size_t collect_pinned() {
  Engine& e = engine();
  std::vector<Pinned> candidates;
  {
    Lock lock(e.mutex);
    candidates = e.pinned;
  }
  std::size_t freed = 0;
  for (const Pinned& pinned : candidates) {
    if (now_ns() < pinned.not_before_ns) continue;
    threads::RangeSet ranges;
    for (const auto& object : pinned.patch->objects) {
      for (const auto& func : object->funcs) {
        for (const arch::CodeRange& range : func->code) ranges.add(range.begin, range.end);
      }
    }
    if (!ranges.empty()) add_pool_code(ranges);  // the ways in
    threads::ProofOptions options;
    options.deadline = Deadline{0};  // one look
    options.own_frame = engine().own_frame;
    options.may_sample = false;
    if (pinned.needs_proof && !ranges.empty()) {
      auto proof = threads::prove_out(ranges, options);
      if (!proof || !proof->out()) continue;
    }
    Lock lock(e.mutex);
    const auto at = std::find_if(e.pinned.begin(), e.pinned.end(),
                                 [&](const Pinned& p) { return p.patch == pinned.patch; });
    if (at == e.pinned.end()) continue;
    e.pinned.erase(at);
    ++freed;
  }
  if (freed != 0) announce();
  return freed;
}

}  // namespace molt::livepatch
