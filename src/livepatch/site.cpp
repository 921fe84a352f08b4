#include "livepatch/site.hpp"

#include <errno.h>
#include <fcntl.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "arch/x86_64/trap.hpp"
#include "base/fd.hpp"
#include "base/own_memory.hpp"
#include "livepatch/internal.hpp"
#include "threads/procfs.hpp"
#include "threads/residency.hpp"

namespace molt::livepatch {
namespace {

// All of it under the engine's token (engine.hpp): one operation at a time. What show.cpp reads is
// changed under the engine's lock as well.
struct Sites {
  arch::CodePool pool;
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
// Leaked on purpose: threads run through the pool until the process's last moment.
Sites& sites() {
  static Sites* s = new Sites;
  return *s;
}

void set_up() {
  if (sites().set_up) return;
  arch::text_setup();
  arch::gate_setup();
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

// --- what the arch layer asks about threads --------------------------------------------------------

class ThreadWitness final : public arch::Witness {
 public:
  explicit ThreadWitness(int patient_ms) : patient_ms_(patient_ms) {}

  // Threads block all signals for a moment when they begin and end: only who goes on does matters.
  Status no_thread_blocks_sigtrap() override {
    const Deadline patience = Deadline::in_ms(patient_ms_);
    std::vector<int> blocking;
    if (Status listed = list_blocking(blocking); !listed) return listed;
    for (;;) {
      std::erase_if(blocking, [](int tid) { return !blocks_sigtrap(tid); });
      if (blocking.empty()) return {};
      if (patience.passed()) break;
      timespec pause{0, 1'000'000};
      nanosleep(&pause, nullptr);  // tidy: sleep-ok nobody tells when a mask changes
    }
    return fail({EBUSY, arch::refusal_name(arch::Refusal::traps_blocked)},
                "thread %d (%s) blocks SIGTRAP, and the int3 that a safe change of code needs "
                "would kill it; let it unblock SIGTRAP, or build with "
                "-fpatchable-function-entry=7,5",
                blocking.front(), threads::thread_name(blocking.front()).c_str());
  }

  // One listing if it is as the last one was. Whoever is born afterwards is in no listing, and has the
  // mask of a thread that is looked at here.
  static Status list_blocking(std::vector<int>& tids) {
    Status verdict;
    Status asked = threads::inspect([&](threads::Census& census) {
      const std::uint64_t before = census.changes();
      verdict = census.list();
      if (verdict && census.changes() != before) verdict = census.refresh();
      if (!verdict) return;
      for (threads::Thread* thread : census.threads()) {
        if (blocks_sigtrap(census, *thread)) tids.push_back(thread->tid);
      }
    });
    return asked ? verdict : asked;
  }

  Status no_thread_within(std::span<const arch::CodeRange> ranges) override {
    threads::RangeSet set;
    for (const arch::CodeRange& range : ranges) set.add(range.begin, range.end);
    threads::ProofOptions options;
    options.deadline = Deadline::in_ms(patient_ms_);
    options.own_frame = engine().own_frame;
    // It runs, and cannot come back in: a look at itself takes it no time.
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

 private:
  // A sleeping thread is asked once, and then only how often it has run.
  static bool blocks_sigtrap(threads::Census& census, threads::Thread& thread) {
    const auto runs = [&] {
      std::uint64_t count = 0;
      return thread.schedstat && threads::read_run_count(thread.schedstat.get(), count) ? count : 0;
    };
    const std::uint64_t before = runs();
    if (before != 0 && before == thread.traps_open_at) return false;
    const bool is_asleep =
        before != 0 && thread.syscall &&
        threads::read_syscall(thread.syscall.get()).kind == threads::Snapshot::sleeping;
    if (!census.read_flags(thread) || thread.is_worker) return false;  // or it has gone
    if (thread.blocks_traps) return true;
    if (is_asleep && runs() == before) thread.traps_open_at = before;
    return false;
  }

  static bool blocks_sigtrap(int tid) {
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

  int patient_ms_;
};

// --- the gate's slow path ------------------------------------------------------------------------------

arch::GateVerdict resolve_at_gate(arch::GateRecord* record) {
  const int saved = errno;
  auto* gate = reinterpret_cast<SiteGate*>(record);
  const auto sp = reinterpret_cast<std::uintptr_t>(__builtin_frame_address(0));
  const gate::Settled settled = gate::settle(gate->generation, sp);
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

std::string refusal_text(const std::string& function, const Error& why) {
  return "function '" + function + "' cannot be redirected: " + why.detail;
}

// Bytes around a function that belong to no symbol.
constexpr std::size_t most_padding = 64;

std::size_t unowned_before(const elf::Symbols& symbols, std::uint64_t address) {
  auto at = symbols.at(address - 1);
  if (!at || at->symbol.size == 0) return 0;
  const std::uint64_t end = at->symbol.address + at->symbol.size;
  return end <= address
             ? static_cast<std::size_t>(std::min<std::uint64_t>(address - end, most_padding))
             : 0;
}

std::size_t unowned_after(const elf::Symbols& symbols, std::uint64_t end,
                          const arch::CodeRange& segment) {
  std::size_t n = 0;
  while (n < most_padding && segment.contains(end + n)) {
    auto at = symbols.at(end + n);
    if (at && at->symbol.address >= end) break;
    ++n;
  }
  return n;
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

// Where compilers put pieces of a function: never called by its name, entered by jumps.
std::vector<arch::CodeRange> parts_of(const elf::Symbols& symbols, const std::string& name) {
  std::vector<arch::CodeRange> parts;
  const char* suffixes[] = {".cold",   ".cold.0", ".cold.1",      ".cold.2",     ".part.0",
                            ".part.1", ".part.2", ".part.0.cold", ".part.1.cold"};
  for (const char* suffix : suffixes) {
    for (const elf::FoundSymbol& part : symbols.find_all(name + suffix)) {
      if (part.is_function() && part.size > 0)
        parts.push_back({part.address, part.address + part.size});
    }
  }
  return parts;
}

std::span<const std::byte> memory(std::uintptr_t begin, std::uintptr_t end) {
  return {reinterpret_cast<const std::byte*>(begin), end - begin};
}

Result<arch::Entry> analyse(const ObjectSymbols& in, const Site& site) {
  const arch::CodeRange segment = segment_of(in.object, site.address);
  arch::EntryQuery query;
  query.address = site.address;
  query.size = site.size;
  // In a stripped object a function that has no name may lie there.
  if (in.symbols.complete()) {
    query.before = unowned_before(in.symbols, site.address);
    if (site.address - query.before < segment.begin) query.before = site.address - segment.begin;
    query.after = unowned_after(in.symbols, site.address + site.size, segment);
  }
  query.live = memory(site.address - query.before, site.address + site.size + query.after);
  const auto in_file =
      elf::bytes_in_file(in.object, site.address - query.before, query.live.size());
  if (in_file) query.expected = {in_file->data(), in_file->size()};
  std::vector<arch::EntryQuery::Part> parts;
  for (const arch::CodeRange& part : site.parts) {
    parts.push_back({part.begin, memory(part.begin, part.end)});
  }
  query.parts = parts;
  return arch::analyse(query);
}

// A target that a jump at the site can name.
Result<arch::CodeAddress> near_target(arch::TextWriter& writer, const Site& site,
                                      std::uintptr_t target) {
  constexpr std::size_t longest_entry = 16;
  if (arch::reaches(site.address, target) && arch::reaches(site.address + longest_entry, target)) {
    return target;
  }
  arch::CodePool& pool = sites().pool;
  auto slot = pool.allocate({site.address, site.address + longest_entry}, arch::jump_size);
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
  constexpr std::size_t longest_entry = 16;
  const Site& site = *to.site;
  arch::CodePool& pool = sites().pool;
  auto slot = pool.allocate({site.address, site.address + longest_entry}, arch::gate_size);
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
  gate->record.cookie = reinterpret_cast<void*>(site.address);
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
  return version == nullptr || version->nop ? site.redirect.original : version->address;
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
  for (const auto& known : sites().all) {
    if (known->address == found->address) return known.get();
  }
  if (is_used_in_gates(found->address)) {
    return fail(EINVAL,
                "function '%s' is one that the runtime itself calls while it changes functions",
                name.c_str());
  }
  // Linked into the program, the runtime cannot be told from it.
  const auto mine = elf::object_at(reinterpret_cast<const void*>(&resolve_at_gate));
  const auto program = elf::find_loaded("");
  if (mine && mine->extent.contains(found->address) &&
      !(program && program->extent.contains(found->address))) {
    return fail(EINVAL, "function '%s' is the runtime's own", name.c_str());
  }
  if (found->size == 0) {
    return fail(ENOENT, "function '%s' in object '%s' has no known size", name.c_str(),
                std::string(in.object.name()).c_str());
  }
  auto site = std::make_unique<Site>();
  site->name = name;
  site->address = found->address;
  site->size = found->size;
  site->parts = parts_of(in.symbols, name);
  auto entry = analyse(in, *site);
  if (!entry) {
    return fail({entry.error().code, entry.error().site}, "%s",
                refusal_text(name, entry.error()).c_str());
  }
  arch::TextWriter writer = arch::TextWriter::open();
  if (Status ok = arch::prepare(sites().pool, writer, *entry, site->redirect); !ok) {
    return fail({ok.error().code, ok.error().site}, "%s", refusal_text(name, ok.error()).c_str());
  }
  site->copy_name = arch::name_code(site->redirect.copy_range(), (name + "@original").c_str());
  Lock lock(engine().mutex);
  sites().all.push_back(std::move(site));
  return sites().all.back().get();
}

std::vector<arch::CodeRange> code_at(const ObjectSymbols& in, std::uintptr_t address) {
  auto at = in.symbols.at(address);
  if (at && at->offset == 0 && at->symbol.size > 0) {
    std::vector<arch::CodeRange> code = parts_of(in.symbols, std::string(at->symbol.name));
    code.push_back({address, address + at->symbol.size});
    return code;
  }
  // Stripped: everything that could be it.
  const arch::CodeRange segment = segment_of(in.object, address);
  if (segment.empty()) return {};
  return {segment};
}

Status lead(std::span<const Lead> leads, std::uint32_t generation, int patient_ms) {
  if (leads.empty()) return {};
  arch::TextWriter writer = arch::TextWriter::open();
  std::vector<arch::Edit> edits;
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
    const bool is_absent = site.redirect.form == arch::RedirectForm::absent;
    gates.push_back(nullptr);
    arch::Edit edit;
    edit.redirect = &site.redirect;
    if (to.gated) {
      auto gate = make_gate(writer, to, generation);
      if (!gate) return give_up(gate.error());
      gates.back() = *gate;
      edit.target = (*gate)->slot.address;
    } else if (code_of(site, to.patched) == site.redirect.original) {
      if (is_absent) continue;
      edit.change = arch::Change::remove;
      edits.push_back(edit);
      continue;
    } else {
      auto target = near_target(writer, site, code_of(site, to.patched));
      if (!target) return give_up(target.error());
      edit.target = *target;
      if (!is_absent && site.redirect.target == edit.target) continue;
    }
    edit.change = is_absent ? arch::Change::install : arch::Change::retarget;
    edits.push_back(edit);
  }
  ThreadWitness witness(patient_ms);
  if (Status ok = arch::commit(writer, edits, witness); !ok) return give_up(ok.error());
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
  const arch::CodeRange copy = site.redirect.copy_range();
  ranges.add(copy.begin, copy.end);
}

void retire_gates() {
  for (Sites::Retired& retired : sites().retired) {
    if (retired.gate == nullptr) continue;
    const auto entry = reinterpret_cast<std::uintptr_t>(retired.gate->record.cookie);
    for (auto verdict : {arch::GateVerdict::take_old, arch::GateVerdict::take_new}) {
      __atomic_store_n(&retired.gate->record.exits[static_cast<std::uint32_t>(verdict)], entry,
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
      return site->redirect.form != arch::RedirectForm::absent &&
             site->redirect.target == r.slot.address;
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
    sites().pool.free(writer, r.slot);
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
    return site->gate == nullptr && site->redirect.form == arch::RedirectForm::short_jump;
  });
}

bool straighten() {
  constexpr int patience_ms = 50;
  arch::TextWriter writer = arch::TextWriter::open();
  bool all_done = true;
  for (const auto& site : sites().all) {
    if (site->gate != nullptr || site->redirect.form != arch::RedirectForm::short_jump) continue;
    arch::Edit edit;
    edit.redirect = &site->redirect;
    edit.change = arch::Change::straighten;
    ThreadWitness witness(patience_ms);
    if (!arch::commit(writer, {&edit, 1}, witness)) all_done = false;
  }
  return all_done;
}

void forget_sites(const elf::Range& extent, threads::RangeSet& ways_in) {
  Lock lock(engine().mutex);
  bool any = false;
  const auto leave = [&](const arch::CodeSlot& slot) {
    if (!slot.range().empty()) sites().retired.push_back({slot, nullptr});
  };
  std::erase_if(sites().all, [&](const auto& site) {
    if (!extent.contains(site->address)) return false;
    if (site->gate != nullptr) retire(site->gate);
    arch::forget_code(site->copy_name);
    leave(site->redirect.copy);
    leave(site->redirect.landing);
    any = true;
    return true;
  });
  if (!any) return;
  add_pool_code(ways_in);
  const arch::CodeRange slow = arch::gate_slow_range();
  ways_in.add(slow.begin, slow.end);
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
