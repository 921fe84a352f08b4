#include "livepatch/site.hpp"

#include <errno.h>
#include <sys/uio.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "arch/x86_64/trap.hpp"
#include "base/own_memory.hpp"
#include "base/poison.hpp"
#include "entries/witness.hpp"
#include "livepatch/internal.hpp"
#include "threads/residency.hpp"

namespace molt::livepatch {
namespace {

// All of it under the engine's token (engine.hpp): one operation at a time. What show.cpp reads is
// changed under the engine's lock as well.
struct Sites {
  std::vector<std::unique_ptr<Site>> all;
  struct Retired {
    arch::CodeSlot slot;
    SiteGate* gate = nullptr;  // freed with it
  };
  std::vector<Retired> retired;
  std::vector<SiteGate*> free_gates;
  bool redirecting = true;
  bool set_up = false;
};
// Leaked on purpose: threads run through gates until the process's last moment.
Sites& sites() {
  static Sites* s = new Sites;
  return *s;
}

void set_up() {
  entries::set_up();
  if (sites().set_up) return;
  // For perf; gdb is told in any case.
  if (secure_getenv("MOLT_PERF_MAP") != nullptr) {
    if (Status named = arch::name_code_for_perf(); !named) say("%s", named.error().detail);
  }
  sites().set_up = true;
}

constexpr int running_patience_ms = 100;

SiteGate* new_gate() {
  constexpr std::size_t gates_at_once = 512;
  auto& free = sites().free_gates;
  if (free.empty()) {
    void* memory = map_own_memory(gates_at_once * sizeof(SiteGate));
    if (memory == nullptr) return nullptr;
    for (std::size_t i = gates_at_once; i > 0; --i) {
      free.push_back(static_cast<SiteGate*>(memory) + i - 1);
    }
  }
  auto* gate = new (free.back()) SiteGate;
  free.pop_back();
  return gate;
}
void free_gate(SiteGate* gate) {
  if (gate == nullptr) return;
  arch::forget_code(gate->name);
  gate->name = nullptr;
  sites().free_gates.push_back(gate);
}

entries::ThreadWitness witness_of(int patience_ms, const threads::Foreseen& foreseen = {}) {
  return entries::ThreadWitness(patience_ms, running_patience_ms, engine().own_frame, foreseen);
}

// --- the gate's slow path ------------------------------------------------------------------------------

arch::GateVerdict resolve_at_gate(arch::GateRecord* record, std::uintptr_t stack) {
  const int saved = errno;
  auto* gate = reinterpret_cast<SiteGate*>(record);
  const gate::Settled settled = gate::settle(gate->generation, stack);
  errno = saved;
  switch (settled) {
    case gate::Settled::decided:
      return arch::GateVerdict::again;
    case gate::Settled::stays_unpatched:
      return arch::GateVerdict::take_old;
    case gate::Settled::stays_patched:
    case gate::Settled::stale:  // both ways lead back to the entry (retire_gates)
      break;
  }
  return arch::GateVerdict::take_new;
}
static_assert(std::is_standard_layout_v<SiteGate> && offsetof(SiteGate, record) == 0);

// --- entries -----------------------------------------------------------------------------------------

// A target that a jump at the site can name.
Result<arch::CodeAddress> near_target(arch::TextWriter& writer, const Site& site,
                                      std::uintptr_t target) {
  const arch::CodeRange near = entries::near(*site.seat);
  if (arch::reaches(near.begin, target) && arch::reaches(near.end, target)) return target;
  entries::Pool pool = entries::pool();
  auto slot = pool.allocate(near, arch::jump_size);
  if (!slot) return pass(slot);
  std::byte code[arch::jump_size] = {};
  arch::write_jump(slot->address, target, code);
  if (Status ok = pool.publish(writer, *slot, code); !ok) {
    pool.free(writer, *slot);
    return pass(ok);
  }
  sites().retired.push_back({*slot, nullptr});  // counted as old code, freed when proven empty
  return slot->address;
}

Result<SiteGate*> make_gate(arch::TextWriter& writer, const Lead& to, std::uint32_t generation) {
  const Site& site = *to.site;
  entries::Pool pool = entries::pool();
  auto slot = pool.allocate(entries::near(*site.seat), arch::gate_size);
  if (!slot) return pass(slot);
  SiteGate* gate = new_gate();
  if (gate == nullptr) {
    pool.free(writer, *slot);
    return fail_errno(ENOMEM, "no memory for a gate");
  }
  gate->slot = *slot;
  gate->generation = generation;
  gate->record.resolve = resolve_at_gate;
  gate->record.old_code = code_of(site, to.unpatched);
  gate->record.new_code = code_of(site, to.patched);
  gate->record.cookie = site.seat;
  const arch::GateWords words{static_cast<std::int32_t>(gate::word_offset()),
                              gate::decided(generation, gate::Side::unpatched),
                              gate::decided(generation, gate::Side::patched)};
  std::byte code[arch::gate_size] = {};
  const bool fits = arch::write_gate(slot->address, words, gate->record, code) != 0;
  Status ok = fits ? pool.publish(writer, *slot, code)
                   : Status(fail(EINVAL, "a gate takes more than %zu bytes", arch::gate_size));
  if (!ok) {
    pool.free(writer, *slot);
    free_gate(gate);
    return pass(ok);
  }
  gate->name = arch::name_code(slot->range(), (site.name + "@gate").c_str());
  return gate;
}

void retire(SiteGate* gate) { sites().retired.push_back({gate->slot, gate}); }

}  // namespace

std::uintptr_t code_of(const Site& site, const Func* version) {
  return version == nullptr || version->nop ? site.seat->redirect.original : version->address;
}

Result<ObjectSymbols> symbols_of(const elf::NamedObject& object) {
  auto symbols = elf::read_symbols(object);
  if (!symbols) return pass(symbols);
  return ObjectSymbols{object, std::move(*symbols)};
}

namespace {
// What settle() and the look at the own stack call: patched, they would come to a gate from inside of
// one. memcpy() and the like are indirect functions, which are refused already.
bool is_used_in_gates(std::uintptr_t address) {
  const std::uintptr_t used[] = {reinterpret_cast<std::uintptr_t>(&syscall),
                                 reinterpret_cast<std::uintptr_t>(&getpid),
                                 reinterpret_cast<std::uintptr_t>(&process_vm_readv),
                                 reinterpret_cast<std::uintptr_t>(&__errno_location)};
  return std::find(std::begin(used), std::end(used), address) != std::end(used);
}
}  // namespace

Result<Site*> site_of(const ObjectSymbols& in, const std::string& name, unsigned long position) {
  set_up();
  auto found = in.symbols.find(name, static_cast<std::uint32_t>(position));
  if (!found) return pass(found);
  if (!found->is_function() || found->is_indirect()) {
    return fail(EINVAL, "symbol '%s' in object '%s' is %s; only functions can be replaced",
                name.c_str(), std::string(in.object.name()).c_str(),
                found->is_indirect() ? "an indirect function, resolved when the program was loaded"
                                     : "no function");
  }
  auto site =
      site_at(in, name, found->address, found->size, entries::parts_of(in.symbols, name), false);
  if (site && (*site)->name == name) (*site)->position = position;
  return site;
}

Site* known_site(const elf::Range& extent, const std::string& name, unsigned long position) {
  for (const auto& known : sites().all) {
    if (known->position == position && known->name == name && extent.contains(known->address)) {
      return known.get();
    }
  }
  return nullptr;
}

Site* known_site(std::uintptr_t address) {
  for (const auto& known : sites().all) {
    if (known->address == address) return known.get();
  }
  return nullptr;
}

Result<Site*> site_at(const ObjectSymbols& in, const std::string& name, std::uintptr_t address,
                      std::uint64_t size, std::vector<arch::CodeRange> parts, bool verified) {
  set_up();
  if (Site* known = known_site(address)) return known;
  if (is_used_in_gates(address)) {
    return fail(EINVAL,
                "function '%s' is one that the runtime itself calls while it changes functions",
                name.c_str());
  }
  if (size == 0) {
    return fail(ENOENT, "function '%s' in object '%s' has no known size", name.c_str(),
                std::string(in.object.name()).c_str());
  }
  auto site = std::make_unique<Site>();
  site->name = name;
  site->address = address;
  site->size = size;
  auto seat =
      entries::seat_of(in.object, in.symbols, {name, address, size, std::move(parts), verified});
  if (!seat) return pass(seat);
  site->seat = *seat;
  site->parts = site->seat->parts;
  site->copy_name =
      arch::name_code(site->seat->redirect.copy_range(), (name + "@original").c_str());
  Lock lock(engine().mutex);
  sites().all.push_back(std::move(site));
  return sites().all.back().get();
}

std::vector<arch::CodeRange> code_at(const ObjectSymbols& in, std::uintptr_t address) {
  auto at = in.symbols.at(address);
  if (at && at->offset == 0 && at->symbol.size > 0) {
    std::vector<arch::CodeRange> code = entries::parts_of(in.symbols, std::string(at->symbol.name));
    code.push_back({address, address + at->symbol.size});
    return code;
  }
  // Stripped: everything that could be it.
  const arch::CodeRange segment = entries::segment_of(in.object, address);
  if (segment.empty()) return {};
  return {segment};
}

Status lead(std::span<const Lead> leads, std::uint32_t generation, int patient_ms,
            threads::RangeSet* foreseen, std::uint64_t foreseen_number, bool traps_open) {
  if (leads.empty()) return {};
  arch::TextWriter writer = arch::TextWriter::open();
  std::vector<entries::Wish> wishes;
  std::vector<SiteGate*> gates;
  const auto give_up = [&](const Error& why) -> tl::unexpected<Error> {
    // Threads may have passed them before they were taken back.
    for (SiteGate* gate : gates) {
      if (gate != nullptr) retire(gate);
    }
    retire_gates();
    return tl::unexpected<Error>(why);
  };
  for (const Lead& to : leads) {
    Site& site = *to.site;
    gates.push_back(nullptr);
    entries::Wish wish{site.seat, entries::Rank::version, 0};
    if (to.gated) {
      auto gate = make_gate(writer, to, generation);
      if (!gate) return give_up(gate.error());
      gates.back() = *gate;
      if (foreseen != nullptr) {
        const arch::CodeRange counted = arch::gate_counted((*gate)->slot.address);
        foreseen->add(counted.begin, counted.end);
      }
      wish.target = (*gate)->slot.address;
    } else if (code_of(site, to.patched) != site.seat->redirect.original) {
      auto target = near_target(writer, site, code_of(site, to.patched));
      if (!target) return give_up(target.error());
      wish.target = *target;
    }
    if (wish.target != site.seat->version) wishes.push_back(wish);
  }
  entries::ThreadWitness witness = witness_of(patient_ms, {foreseen, foreseen_number});
  if (traps_open) witness.others_let_traps_in();
  if (Status ok = entries::commit(writer, wishes, witness); !ok) return give_up(ok.error());
  Lock lock(engine().mutex);
  for (std::size_t i = 0; i < leads.size(); ++i) {
    Site& site = *leads[i].site;
    if (site.gate != nullptr) retire(site.gate);
    site.gate = gates[i];
  }
  return {};
}

void add_pool_code(threads::RangeSet& ranges) {
  // A thread in the trap's handler will be where the jump of an earlier change led to.
  const arch::CodeRange trap = arch::trap_handler_range();
  ranges.add(trap.begin, trap.end);
  for (const auto& site : sites().all) {
    if (site->gate == nullptr) continue;
    const arch::CodeRange counted = arch::gate_counted(site->gate->slot.address);
    ranges.add(counted.begin, counted.end);
  }
  for (const Sites::Retired& retired : sites().retired) {
    const arch::CodeRange range =
        retired.gate != nullptr ? arch::gate_counted(retired.slot.address) : retired.slot.range();
    ranges.add(range.begin, range.end);
  }
}

void add_version(threads::RangeSet& ranges, const Site& site, const Func* version) {
  if (version != nullptr && !version->nop) {
    for (const arch::CodeRange& range : version->code) ranges.add(range.begin, range.end);
    return;
  }
  // No return address is the function's own first byte, and a thread that stands there meets what
  // is at the entry. But pointers to functions are on every stack.
  ranges.add(site.address + 1, site.address + site.size);
  for (const arch::CodeRange& part : site.parts) ranges.add(part.begin, part.end);
  const arch::CodeRange copy = site.seat->redirect.copy_range();
  ranges.add(copy.begin, copy.end);
}

void retire_gates() {
  for (Sites::Retired& retired : sites().retired) {
    if (retired.gate == nullptr || retired.gate->record.cookie == nullptr) continue;
    const auto* seat = static_cast<const entries::Seat*>(retired.gate->record.cookie);
    // Where the entry could not be written it may still lead here.
    const auto choice = operable() ? seat->choice() : seat->in_force();
    for (auto verdict : {arch::GateVerdict::take_old, arch::GateVerdict::take_new}) {
      __atomic_store_n(&retired.gate->record.exits[static_cast<std::uint32_t>(verdict)], choice,
                       __ATOMIC_RELEASE);
    }
  }
}

namespace {
void note_uncollected(bool left) {
  Lock lock(engine().mutex);
  engine().uncollected = left;
}
}  // namespace

bool collect() {
  auto& retired = sites().retired;
  note_uncollected(false);
  if (retired.empty()) return true;
  // A jump of a version that is in force is in the list too: not to be freed.
  std::vector<Sites::Retired> go, stay;
  for (const Sites::Retired& r : retired) {
    const bool in_use = std::any_of(sites().all.begin(), sites().all.end(), [&](const auto& site) {
      return site->seat->version == r.slot.address;
    });
    (in_use ? stay : go).push_back(r);
  }
  if (go.empty()) return true;
  threads::RangeSet set;
  for (const Sites::Retired& r : go) set.add(r.slot.range().begin, r.slot.range().end);
  // Who is in these has come from a gate, or will be sent on to one.
  const arch::CodeRange slow = arch::gate_slow_range(), trap = arch::trap_handler_range();
  set.add(slow.begin, slow.end);
  set.add(trap.begin, trap.end);
  threads::ProofOptions options;
  options.deadline = Deadline{0};  // one look
  options.own_frame = engine().own_frame;
  options.may_sample = false;
  auto proof = threads::prove_out(set, options);
  if (!proof || !proof->out()) {
    note_uncollected(true);
    return false;
  }
  arch::TextWriter writer = arch::TextWriter::open();
  for (const Sites::Retired& r : go) {
    entries::pool().free(writer, r.slot);
    free_gate(r.gate);
  }
  retired = std::move(stay);
  return true;
}

bool collect_later() {
  constexpr std::size_t much = 256;
  if (sites().retired.size() >= much) return collect();
  const bool is_clean = sites().retired.empty();
  note_uncollected(!is_clean);
  return is_clean;
}

bool has_short_jumps() {
  const auto& all = sites().all;
  return std::any_of(all.begin(), all.end(), [](const auto& site) {
    return site->gate == nullptr && site->seat->redirect.form == arch::RedirectForm::short_jump;
  });
}

bool straighten() {
  constexpr int patience_ms = 50;
  arch::TextWriter writer = arch::TextWriter::open();
  bool all_done = true;
  for (const auto& site : sites().all) {
    if (site->gate != nullptr || site->seat->redirect.form != arch::RedirectForm::short_jump)
      continue;
    entries::ThreadWitness witness = witness_of(patience_ms);
    if (!entries::straighten(writer, *site->seat, witness)) all_done = false;
  }
  return all_done;
}

void forget_sites(const elf::Range& extent, threads::RangeSet& ways_in) {
  Lock lock(engine().mutex);
  bool any = false;
  std::erase_if(sites().all, [&](const auto& site) {
    if (!extent.contains(site->address)) return false;
    if (site->gate != nullptr) retire(site->gate);
    for (Sites::Retired& retired : sites().retired) {
      if (retired.gate != nullptr && retired.gate->record.cookie == site->seat) {
        retired.gate->record.cookie = nullptr;  // no entry to go back to
      }
    }
    arch::forget_code(site->copy_name);
    for (const arch::CodeSlot& slot : entries::forget(site->seat)) {
      sites().retired.push_back({slot, nullptr});
    }
    any = true;
    return true;
  });
  if (!any) return;
  add_pool_code(ways_in);
  const arch::CodeRange slow = arch::gate_slow_range();
  ways_in.add(slow.begin, slow.end);
}

void forget_stale_sites(const elf::NamedObject& object) {
  std::vector<std::uintptr_t> stale;
  for (const auto& site : sites().all) {
    if (!object.extent.contains(site->address) || site->gate != nullptr || !site->stack.empty()) {
      continue;
    }
    const arch::Redirect& redirect = site->seat->redirect;
    // Our jump went with its memory; what is there is as it was when the entry was first seen.
    arch::Redirect untouched = redirect;
    untouched.form = arch::RedirectForm::absent;
    const bool is_ours = arch::intact(redirect);
    const bool is_new = !is_ours && (redirect.form == untouched.form || arch::intact(untouched));
    if (site->seat->is_gone || site->seat->object != object.path || is_new) {
      stale.push_back(site->address);
    }
  }
  threads::RangeSet ignored;
  for (const std::uintptr_t address : stale) forget_sites({address, address + 1}, ignored);
}

std::vector<Site*> patched_sites() {
  std::vector<Site*> patched;
  for (const auto& site : sites().all) {
    if (!site->stack.empty()) patched.push_back(site.get());
  }
  return patched;
}

Status set_redirecting(bool on) {
  if (!on && !patched_sites().empty()) {
    return fail(EBUSY, "functions are patched; revert the patches first");
  }
  sites().redirecting = on;
  return {};
}

bool redirecting() { return sites().redirecting; }

}  // namespace molt::livepatch
