#include "entries/seat.hpp"

#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <memory>
#include <mutex>
#include <optional>

#include "arch/x86_64/entry.hpp"
#include "arch/x86_64/gate.hpp"
#include "arch/x86_64/text.hpp"

namespace molt::entries {
namespace {

constexpr std::size_t most_padding = 64;
constexpr std::size_t longest_entry = 16;

// Leaked on purpose: threads run through the pool until the process's last moment.
struct Table {
  std::mutex mutex;
  arch::CodePool pool;
  std::vector<std::unique_ptr<Seat>> all;
  int set_up_in = 0;  // the process in which cores can be serialised
};
Table& table() {
  static auto* t = new Table;
  return *t;
}
using Lock = std::lock_guard<std::mutex>;

std::span<const std::byte> memory(std::uintptr_t begin, std::uintptr_t end) {
  return {reinterpret_cast<const std::byte*>(begin), end - begin};
}

// Bytes on both sides that belong to no symbol. In a stripped object a function that has no name may
// lie there.
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

Result<arch::Entry> analyse(const elf::NamedObject& object, const elf::Symbols& symbols,
                            const Seat& seat, bool verified) {
  const arch::CodeRange segment = segment_of(object, seat.address);
  if (segment.empty()) return fail(ENOTSUP, "it lies in no code of its object");
  arch::EntryQuery query;
  query.address = seat.address;
  query.size = seat.size;
  find_padding(symbols, segment, query);
  query.live = memory(seat.address - query.before, seat.address + seat.size + query.after);
  // What is there is what belongs there, a jump or int3 at the entry too.
  std::optional<Bytes> in_file;
  if (verified) {
    query.expected = query.live;
  } else {
    in_file = elf::bytes_in_file(object, seat.address - query.before, query.live.size());
    if (in_file) query.expected = {in_file->data(), in_file->size()};
  }
  std::vector<arch::EntryQuery::Part> parts;
  for (const arch::CodeRange& part : seat.parts) {
    parts.push_back({part.begin, memory(part.begin, part.end)});
  }
  query.parts = parts;
  return arch::analyse(query);
}

tl::unexpected<Error> cannot(const std::string& name, const Error& why) {
  return fail({why.code, why.site}, "function '%s' cannot be redirected: %s", name.c_str(),
              why.detail);
}

void lead_on([[maybe_unused]] const Seat& seat) {
#ifndef MOLT_MUTATE_WAYS_STAY
  for (arch::CodeAddress* way : seat.ways) {
    __atomic_store_n(way, seat.in_force(),
                     __ATOMIC_RELEASE);  // S2: no barrier's partner but the jump
  }
#endif
}

}  // namespace

void set_up() {
  Lock lock(table().mutex);
  if (table().set_up_in == getpid()) return;
  arch::text_setup();
  arch::gate_setup();
  table().set_up_in = getpid();
}

Pool pool() { return {}; }

Result<arch::CodeSlot> Pool::allocate(arch::CodeRange near, std::size_t size) {
  Lock lock(table().mutex);
  return table().pool.allocate(near, size);
}
Status Pool::publish(arch::TextWriter& writer, const arch::CodeSlot& slot,
                     std::span<const std::byte> code) {
  Lock lock(table().mutex);
  return table().pool.publish(writer, slot, code);
}
void Pool::free(arch::TextWriter& writer, const arch::CodeSlot& slot) {
  Lock lock(table().mutex);
  table().pool.free(writer, slot);
}

arch::CodeRange near(const Seat& seat) { return {seat.address, seat.address + longest_entry}; }

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

arch::CodeRange segment_of(const elf::NamedObject& object, std::uintptr_t address) {
  for (const Elf64_Phdr& segment : object.segments) {
    if (segment.p_type != PT_LOAD || !(segment.p_flags & PF_X)) continue;
    const arch::CodeRange range{object.bias + segment.p_vaddr,
                                object.bias + segment.p_vaddr + segment.p_memsz};
    if (range.contains(address)) return range;
  }
  return {};
}

Result<Seat*> seat_of(const elf::NamedObject& object, const elf::Symbols& symbols,
                      const elf::FoundSymbol& function, bool dry_run) {
  const std::string name(function.name);
  Place place{name, function.address, function.size, parts_of(symbols, name)};
  return seat_of(object, symbols, std::move(place), dry_run);
}

Result<Seat*> seat_of(const elf::NamedObject& object, const elf::Symbols& symbols, Place place,
                      bool dry_run) {
  // Linked into the program, the runtime cannot be told from it.
  const auto mine = elf::object_at(reinterpret_cast<const void*>(&cannot));
  if (mine && mine->extent.contains(place.address) && !object.is_program) {
    return fail(EINVAL, "function '%s' is the runtime's own", place.name.c_str());
  }
  const std::string path = object.is_program ? "" : object.path;
  Lock lock(table().mutex);
  for (const auto& known : table().all) {
    if (known->address != place.address || known->is_gone) continue;
    const bool is_there = known->redirect.form != arch::RedirectForm::absent;
    if (known->object == path && (is_there || arch::intact(known->redirect))) return known.get();
    known->is_gone = true;  // another object took its place, and nobody was told
  }
  auto seat = std::make_unique<Seat>();
  seat->object = path;
  seat->name = place.name;
  seat->address = place.address;
  seat->size = place.size;
  seat->parts = std::move(place.parts);
  auto entry = analyse(object, symbols, *seat, place.verified);
  if (!entry) return cannot(place.name, entry.error());
  if (dry_run) return nullptr;
  arch::TextWriter writer = arch::TextWriter::open();
  if (Status ok = arch::prepare(table().pool, writer, *entry, seat->redirect); !ok) {
    return cannot(place.name, ok.error());
  }
  table().all.push_back(std::move(seat));
  return table().all.back().get();
}

Status commit(arch::TextWriter& writer, std::span<const Wish> wishes, arch::Witness& witness) {
  if (wishes.empty()) return {};
  Lock lock(table().mutex);
  std::vector<arch::Edit> edits;
  for (const Wish& wish : wishes) {
    Seat& seat = *wish.seat;
    const arch::CodeAddress hook = wish.rank == Rank::hook ? wish.target : seat.hook;
    const arch::CodeAddress version = wish.rank == Rank::version ? wish.target : seat.version;
    const arch::CodeAddress target = hook != 0 ? hook : version;
    const bool is_absent = seat.redirect.form == arch::RedirectForm::absent;
    if (target == (is_absent ? 0 : seat.redirect.target)) continue;
    arch::Edit edit;
    edit.redirect = &seat.redirect;
    edit.target = target;
    edit.change = is_absent     ? arch::Change::install
                  : target == 0 ? arch::Change::remove
                                : arch::Change::retarget;
    edits.push_back(edit);
  }
  if (!edits.empty()) {
    if (Status done = arch::commit(writer, edits, witness); !done) {
      if (arch::refusal_of(done.error()) != arch::Refusal::changed) return done;
      const auto changed = std::ranges::find_if(
          wishes, [](const Wish& wish) { return !arch::intact(wish.seat->redirect); });
      return changed == wishes.end() ? done : cannot(changed->seat->name, done.error());
    }
  } else if (!arch::serialise_cores()) {
    return fail(ENOTSUP, "there is no way to make the cores see new code");
  }
  for (const Wish& wish : wishes) {
    (wish.rank == Rank::hook ? wish.seat->hook : wish.seat->version) = wish.target;
    lead_on(*wish.seat);
  }
  return {};
}

Status add_way(arch::TextWriter& writer, Seat& seat, arch::CodeAddress* way) {
  Lock lock(table().mutex);
  arch::CodePool& pool = table().pool;
  if (!seat.onward) {
    auto slot = pool.allocate(near(seat), arch::jump_size);
    if (!slot) return pass(slot);
    arch::CodeAddress* cell = pool.allocate_cell(*slot);
    if (cell == nullptr) {
      pool.free(writer, *slot);
      return fail(ENOMEM, "no word left beside the trampolines");
    }
    std::byte code[arch::jump_size] = {};
    arch::write_cell_jump(slot->address, cell, code);
    if (Status ok = pool.publish(writer, *slot, code); !ok) {
      pool.free_cell(cell);
      pool.free(writer, *slot);
      return ok;
    }
    seat.onward = *slot;
    seat.ways.push_back(cell);
  }
  if (way != nullptr) seat.ways.push_back(way);
  for (arch::CodeAddress* each : seat.ways) {
    __atomic_store_n(each, seat.in_force(), __ATOMIC_RELEASE);
  }
  return {};
}

void undo_in_copy(std::uintptr_t address, std::span<std::byte> copy) {
  const auto put = [&](std::uintptr_t at, std::span<const std::byte> bytes) {
    for (std::size_t i = 0; i < bytes.size(); ++i) {
      if (at + i >= address && at + i - address < copy.size()) copy[at + i - address] = bytes[i];
    }
  };
  Lock lock(table().mutex);
  for (const auto& seat : table().all) {
    const arch::Redirect& redirect = seat->redirect;
    const arch::Entry& entry = redirect.entry;
    if (seat->is_gone) continue;
    if (redirect.form != arch::RedirectForm::absent) {
      put(entry.site, std::span(entry.original).first(entry.original_size));
    }
    if (redirect.padding_written) put(entry.padding, entry.padding_original);
  }
}

Status straighten(arch::TextWriter& writer, Seat& seat, arch::Witness& witness) {
  Lock lock(table().mutex);
  arch::Edit edit;
  edit.redirect = &seat.redirect;
  edit.change = arch::Change::straighten;
  return arch::commit(writer, {&edit, 1}, witness);
}

std::vector<arch::CodeSlot> forget(Seat* seat) {
  Lock lock(table().mutex);
  seat->is_gone = true;
  if (seat->onward) return {};  // hooks' records and threads in their wrappers know it
  std::vector<arch::CodeSlot> left;
  for (const arch::CodeSlot& slot : {seat->redirect.copy, seat->redirect.landing}) {
    if (slot) left.push_back(slot);
  }
  std::erase_if(table().all, [&](const auto& known) { return known.get() == seat; });
  return left;
}

}  // namespace molt::entries
