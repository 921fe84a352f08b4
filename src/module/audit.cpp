// audit.cpp - the search for addresses in a module (audit/), before its memory goes and on request.

#include "audit/audit.hpp"

#include <algorithm>
#include <cstdlib>
#include <cstring>

#include "audit/target.hpp"
#include "base/sanitizer.hpp"
#include "module/internal.hpp"

namespace molt::module {
namespace {

// MOLT_AUDIT=0 in the environment: unloading does not search. `molt audit` still does.
bool switched_off() {
  static const bool off = [] {
    const char* value = std::getenv("MOLT_AUDIT");
    return value != nullptr && std::strcmp(value, "0") == 0;
  }();
  return off;
}

constexpr int before_unmapping_ms = 10'000;
constexpr int on_request_ms = 30'000;
// How many findings a reason names; the log has more.
constexpr std::size_t named_in_reason = 3;
constexpr std::size_t named_in_log = 16;

template <class T>
audit::Range memory_of(const T* begin, std::size_t count) {
  const auto at = reinterpret_cast<std::uintptr_t>(begin);
  return {at, at + count * sizeof(T)};
}

audit::Range range_of(const linker::CodeRange& range) { return {range.begin, range.end}; }

// Of a patch file no dynamic loader knows anything; unwinders have addresses of its frames, and the
// table of addresses is the linker's.
audit::Target target_of(const linker::Linked& linked) {
  audit::Target target;
  std::vector<const linker::Target*> all;
  for (const linker::Target& one : linked.targets()) {
    if (!one.whole.empty()) all.push_back(&one);
  }
  std::ranges::sort(all, {}, [](const auto* one) { return one->whole.begin; });
  for (const linker::Target* one : all) {
    target.segments.push_back(range_of(one->whole));
    if (!one->code.empty()) target.text.push_back(range_of(one->code));
    if (!one->variables.empty()) target.data.push_back(range_of(one->variables));
    target.tables.push_back(range_of(one->frames));
    target.tables.push_back(range_of(one->addresses));
  }
  for (const linker::CodeRange& known : linked.known_memory())
    target.known.push_back(range_of(known));
  return target;
}

Result<audit::Target> target_of(const Module& module) {
  if (module.linked) {
    audit::Target target = target_of(*module.linked);
    target.known.push_back(memory_of(&module, 1));
    return target;
  }
  auto target = audit::target_of(module.handle, module.stored.path);
  if (!target) return target;
  target->known.push_back(memory_of(&module, 1));
  const auto* begin = reinterpret_cast<const char*>(target->segments.front().begin);
  const auto* end = reinterpret_cast<const char*>(target->segments.back().end);
  hooks::for_memory_naming(module.owner, begin, end, [&](const void* at, std::size_t bytes) {
    target->known.push_back(memory_of(static_cast<const char*>(at), bytes));
  });
  return target;
}

// Is all that bars on the heap, and leads to the module's variables? Then it may be what its static
// containers hold: which other blocks lead to those cannot be told for certain, as used blocks have
// old words in their gaps.
bool may_be_its_own(const audit::Report& report) {
  return report.more == 0 &&
         std::all_of(report.findings.begin(), report.findings.end(), [](const auto& f) {
           return !f.bars || (f.block.size() != 0 && f.to_data && f.looks == audit::Looks::data);
         });
}

std::string reason_of(const audit::Report& report, const Module& module) {
  const std::size_t count = report.barring();
  std::string text = std::to_string(count) + (count == 1 ? " pointer left: " : " pointers left: ");
  std::size_t named = 0;
  for (const audit::Finding& finding : report.findings) {
    if (!finding.bars || named == named_in_reason) continue;
    if (named++ != 0) text += "; ";
    text += finding.text();
  }
  if (count > named) text += "; and " + std::to_string(count - named) + " more";
  for (const std::string& hazard : module.hazards) text += "; " + hazard;
  return text;
}

}  // namespace

std::string pointers_left(Module& module, bool may_destroy) {
#ifdef MOLT_MUTATE_NO_PROOFS
  return "";
#endif
  // A sanitizer's shadow and tables are full of addresses in code that nobody follows.
  if (under_sanitizer() || switched_off() || module.ignore_pointers || !module.is_mapped()) {
    return "";
  }
  auto target = target_of(module);
  if (!target) return target.error().detail;
  audit::Options options;
  options.deadline = Deadline::in_ms(before_unmapping_ms);
  auto report = audit::audit(*target, options);
  // With a hazard the dynamic loader may keep it, and would not run its destructors.
  if (report && report->barring() != 0 && may_destroy && !module.destroyed && !module.linked &&
      module.hazards.empty() && may_be_its_own(*report)) {
    module.destroyed = true;
    audit::run_destructors(*target);
    report = audit::audit(*target, options);
  }
  if (!report) return std::string("not searched for pointers: ") + report.error().detail;
  if (report->barring() == 0) return "";
  for (std::size_t i = 0; i < report->findings.size() && i < named_in_log; ++i) {
    log::line(module.name, "pointer left: %s", report->findings[i].text().c_str());
  }
  return reason_of(*report, module);
}

Result<audit::Report> audit_module(const AuditRequest& request) {
  Lock lock(manager().mutex);
  ModulePtr module = find(request.name);
  if (!module) module = find_resident(request.name);
  if (!module) {
    return fail(ENOENT, "no module %s, loaded or left in memory", request.name.c_str());
  }
  if (!module->leaving && module->state != MOLT_MODULE_STATE_LIVE) {
    return fail(EBUSY, "%s is %s; try again", module->name.c_str(), state_text(module->state));
  }
  if (!module->is_mapped() || module->freeing) {
    return fail(EBUSY, "%s is out of Molt's hands: %s", module->name.c_str(),
                module->reason.empty() ? "it is being freed" : module->reason.c_str());
  }
  // Its memory stays while this looks at it.
  InsideScope inside(lock, *module);
  // What the core has on purpose, as long as the module lives.
  std::vector<audit::Range> known;
  for (const auto& notifier : manager().notifiers) {
    if (notifier->owner == module.get()) known.push_back(memory_of(notifier.get(), 1));
  }
  for (const Offer& offer : manager().offers) {
    if (offer.owner == module.get()) known.push_back(memory_of(&offer, 1));
  }
  lock.unlock();
  if (const void* word = patch_record(*module)) {
    known.push_back(memory_of(static_cast<const molt_module* const*>(word), 1));
  }
  auto target = target_of(*module);
  if (!target) return pass(target);
  target->known.insert(target->known.end(), known.begin(), known.end());
  audit::Options options;
  options.deadline = Deadline::in_ms(request.timeout_ms < 0 ? on_request_ms : request.timeout_ms);
  options.cancelled = request.cancelled;
  options.stacks = true;
  return audit::audit(*target, options);
}

}  // namespace molt::module
