// residency.cpp - who is, or may come to be, in a module's code (threads/residency.hpp): asked before
// its memory goes, and on request.

#include <cstdio>
#include <utility>

#include "base/torture_step.hpp"
#include "elf/loaded_symbols.hpp"
#include "module/internal.hpp"
#include "threads/residency.hpp"

namespace molt::module {
namespace {

// How many threads a reason names.
constexpr std::size_t named_in_reason = 3;

std::string text_of(const Holder& holder) {
  std::string text = holder.what;
  if (holder.tid != 0) {
    text += " " + std::to_string(holder.tid);
    if (!holder.thread.empty()) text += " (" + holder.thread + ")";
  }
  if (!holder.where.empty()) text += " " + holder.where;
  if (holder.asleep_ms > 0) text += ", asleep for " + std::to_string(holder.asleep_ms) + " ms";
  if (!holder.syscall.empty()) text += " in " + holder.syscall;
  return text;
}

// "in on_tick+0x1c" or, where only an unwinder could tell, "may return into on_tick+0x1c".
Holder thread_holder(const threads::Finding& finding, const elf::Symbols* symbols) {
  Holder holder;
  holder.what = "thread";
  holder.tid = finding.tid;
  holder.thread = finding.name;
  holder.certain = finding.certain;
  holder.depth = finding.depth;
  holder.stack_address = finding.at;
  holder.serial = finding.serial;
  holder.asleep_ms = finding.asleep_ns / 1'000'000;
  if (finding.activity == threads::Activity::sleeping && finding.syscall >= 0) {
    holder.syscall = threads::syscall_name(finding.syscall);
  }
  if (finding.verdict == threads::Verdict::inside) {
    holder.address = finding.address();
    const auto at = symbols ? symbols->at(holder.address) : std::nullopt;
    char offset[24];
    std::snprintf(offset, sizeof offset, "+0x%llx",
                  static_cast<unsigned long long>(at ? at->offset : 0));
    holder.function = at ? std::string(at->symbol.name) + offset : "its code";
    holder.where = (finding.certain ? "is in " : "may return into ") + holder.function;
  } else {
    holder.where = std::string("is not proven to be out: ") + finding.reason;
  }
  return holder;
}

std::vector<Holder> name_all(const Module& module, const std::vector<threads::Finding>& findings) {
  std::vector<Holder> holders;
  if (findings.empty()) return holders;
  if (module.linked) {
    // Its functions have the names of those that they replace.
    for (const threads::Finding& finding : findings) {
      holders.push_back(thread_holder(finding, nullptr));
      for (const linker::Function& f : module.linked->functions()) {
        if (finding.verdict == threads::Verdict::inside && f.new_address == finding.address()) {
          holders.back().function = f.name;
        }
      }
    }
    return holders;
  }
  const auto object = elf::find_loaded_at(module.address);
  Result<elf::Symbols> symbols =
      object ? elf::read_symbols(*object) : Result<elf::Symbols>(pass(object));
  for (const threads::Finding& finding : findings) {
    holders.push_back(thread_holder(finding, symbols ? &*symbols : nullptr));
  }
  return holders;
}

}  // namespace

std::string name_holders(const std::vector<Holder>& holders) {
  std::string text;
  for (std::size_t i = 0; i < holders.size() && i < named_in_reason; ++i) {
    if (i != 0) text += "; ";
    text += text_of(holders[i]);
  }
  if (holders.size() > named_in_reason) {
    text += "; and " + std::to_string(holders.size() - named_in_reason) + " more";
  }
  return text;
}

std::string threads_left([[maybe_unused]] const Module& module, [[maybe_unused]] Deadline deadline,
                         [[maybe_unused]] const Cancelled& cancelled) {
#ifdef MOLT_MUTATE_NO_PROOFS
  return "";
#endif
  threads::ProofOptions options;
  options.deadline = deadline;
  options.cancelled = cancelled;
  options.call_in = hooks::call_in;
  threads::RangeSet ranges = module.text;
  ranges.add(module.ways_in);
  const auto proof = threads::prove_out(ranges, options);
  if (!proof) return std::string("its threads could not be looked at: ") + proof.error().detail;
  if (proof->out()) return "";
  return name_holders(name_all(module, proof->holders));
}

Result<BlockingReport> blocking(std::string_view name) {
  Lock lock(manager().mutex);
  ModulePtr module = find(name, true);
  if (!module) module = find_resident(name);
  if (!module) {
    return fail(ENOENT, "no module %.*s, loaded or left in memory", static_cast<int>(name.size()),
                name.data());
  }
  BlockingReport report;
  report.name = module->name;
  report.state =
      module->leaving ? (module->pinned ? "pinned" : "resident") : state_text(module->state);
  report.reason = module->reason;
  auto add = [&](std::string what, std::string where) {
    Holder holder;
    holder.what = std::move(what);
    holder.where = std::move(where);
    holder.certain = true;
    report.holders.push_back(std::move(holder));
  };
  for (const Module* user : module->users) add("module", user->name + " uses its symbols");
  const int own = thread_count(*module);
  if (own > 0) add("its threads", thread_names(*module));
  if (const int others = module->references() - own - static_cast<int>(module->users.size());
      others > 0) {
    add("references", std::to_string(others) + " held by others");
  }
  if (!module->is_mapped() || module->freeing || module->wanted) return report;
  // Its memory, and what owns its callbacks, stay while this looks at them.
  InsideScope inside(lock, *module, true);
  hooks::Owner* const owner = module->owner;
  lock.unlock();
  MOLT_TORTURE_STEP(1000);
  MOLT_TORTURE_HOLDS((owner == nullptr || module->owner == owner) && !module->freeing);
  if (owner != nullptr) {
    for (const hooks::Inside& i : hooks::who_is_inside(owner)) {
      Holder holder;
      holder.what = i.tid ? "thread" : "an asynchronous callback";
      holder.tid = i.tid;
      holder.thread = i.thread;
      holder.where = i.hook.empty() ? "is in a callback" : "is in a callback of hook " + i.hook;
      holder.certain = true;
      report.holders.push_back(std::move(holder));
    }
  }
  // Who only happens to run is proven out in that time.
  constexpr int patience_ms = 100;
  threads::ProofOptions options;
  options.deadline = Deadline::in_ms(patience_ms);
  options.cancelled = [&] {
    const Lock cancel_lock(manager().mutex);
    return module->wanted;
  };
  const auto proof = threads::prove_out(module->text, options);
  if (!proof) return pass(proof);
  for (Holder& holder : name_all(*module, proof->holders))
    report.holders.push_back(std::move(holder));
  return report;
}

Status testify(int tid, std::uint64_t serial, threads::Testimony testimony) {
  return threads::testify(tid, serial, std::move(testimony));
}

Result<threads::Loans> take_loans() { return threads::take_loans(); }

}  // namespace molt::module
