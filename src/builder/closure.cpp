#include "builder/closure.hpp"

#include <algorithm>
#include <cstring>
#include <tuple>

#include <fmt/format.h>

#include "builder/source_terms.hpp"
#include "patchfile/patch_file.hpp"

namespace molt::builder {
namespace {

std::string text(std::string_view view) { return std::string(view); }

bool is_reference_to_personality(std::string_view name) { return name.starts_with("DW.ref."); }

// Tables that objects of the class have, or that say what it is.
bool is_of_class(std::string_view name) {
  return name.starts_with("_ZTV") || name.starts_with("_ZTI") || name.starts_with("_ZTT");
}

patch_file::Binding binding_of(Place::Kind kind) {
  switch (kind) {
    case Place::Kind::tls:
      return patch_file::Binding::tls;
    case Place::Kind::dynamic:
      return patch_file::Binding::dynamic;
    default:
      return patch_file::Binding::image;
  }
}

}  // namespace

Closure::Closure(PatchWriter& writer, std::uint32_t target, const Placement& placement,
                 std::span<const Placement* const> placements, std::span<const DiffedUnit> units,
                 const std::set<std::string>& runtime, std::vector<Refusal>& refusals,
                 PatchReport& report)
    : writer_(writer),
      target_(target),
      placement_(placement),
      placements_(placements),
      units_(units),
      runtime_(runtime),
      refusals_(refusals),
      report_(report) {}

void Closure::refuse(const DiffedUnit& unit, std::uint32_t in, const std::string& kind,
                     const std::string& symbol, const std::string& why, const std::string& advice) {
  if (!refused_.insert(kind + symbol).second) return;
  const std::uint32_t owner = unit.new_view->owner(in);
  refusals_.push_back({kind, unit.unit->output, symbol,
                       unit.new_info != nullptr && owner != 0
                           ? place_of_symbol(*unit.new_info, *unit.new_view, owner)
                           : "",
                       why, advice});
}

std::uint32_t Closure::include(const DiffedUnit& unit, std::uint32_t section) {
  const auto known = included_.find({unit.index, section});
  if (known != included_.end()) return known->second;
  const ObjectSection& from = unit.new_view->section(section);
  PatchWriter::Section made;
  made.name = text(from.name);
  made.content.assign(from.bytes.begin(), from.bytes.end());
  made.size = from.size;
  made.alignment = std::max<std::uint64_t>(from.alignment, 1);
  made.executable = from.is_code();
  made.writable = from.is_writable() && !unit.new_view->is_constant(section);
  made.target = target_;
  const std::uint32_t index = writer_.add_section(std::move(made));
  included_[{unit.index, section}] = index;
  (from.is_code() ? report_.code_bytes : report_.data_bytes) += from.size;
  queue_.push_back({&unit, section});
  // Its functions by their names: for debuggers, and for who reads the file.
  for (std::uint32_t y : from.symbols) {
    const ObjectSymbol& s = unit.new_view->symbol(y);
    if (s.is_section() || s.name.empty() || s.name.starts_with(".L") || s.size == 0) continue;
    const auto key = std::pair(index, s.value);
    if (places_.contains(key)) continue;
    places_[key] = writer_.define(text(s.name), index, s.value, s.size, s.type);
  }
  const bool is_new = unit.comparison == nullptr || unit.comparison->old_section(section) == 0;
  if (is_new && unit.new_view->owner(section) != 0 &&
      !is_reference_to_personality(unit.new_view->name(section))) {
    report_.additions.push_back(text(unit.new_view->name(section)));
  }
  return index;
}

std::uint32_t Closure::place_symbol(std::uint32_t written, std::uint64_t value) {
  const auto [at, is_new] = places_.try_emplace({written, value}, 0);
  if (is_new) at->second = writer_.define("", written, value, 0, STT_NOTYPE);
  return at->second;
}

// By the section's own symbol: a symbol for each string would take more room than the strings.
Closure::Bound Closure::place_in(std::uint32_t written, std::uint64_t value) {
  const auto [at, is_new] = section_symbols_.try_emplace(written, 0);
  if (is_new) at->second = writer_.define("", written, 0, 0, STT_SECTION);
  return {at->second, static_cast<std::int64_t>(value), true};
}

std::uint32_t Closure::symbol_of(const DiffedUnit& unit, std::uint32_t section,
                                 std::uint32_t symbol) {
  return place_symbol(include(unit, section), unit.new_view->symbol(symbol).value);
}

Closure::Bound Closure::own_copy(const DiffedUnit& unit, std::uint32_t section,
                                 std::uint64_t value) {
  return place_in(include(unit, section), value);
}

Closure::Bound Closure::bind_place(const DiffedUnit& unit, const std::string& name,
                                   const Place& place, std::uint32_t in) {
  const std::string user = text(unit.new_view->name(in));
  if (!place.is_known()) {
    refuse(unit, in, "symbol_absent", name,
           fmt::format("{} refers to {}, which the running {} does not have{}{}", user, name,
                       placement_.image().path(), place.why.empty() ? "" : ": ", place.why),
           "patch the running program's own sources, or bring what is missing along; if another "
           "program or library of the process has it, name that with --target too");
    return {};
  }
  if (place.is_indirect) {
    refuse(
        unit, in, "indirect_function", name,
        fmt::format("{} refers to {}, which is chosen when the program starts (ifunc)", user, name),
        "");
    return {};
  }
  if (place.kind == Place::Kind::absolute) return {writer_.absolute(name, place.value), 0, true};
  if (place.kind == Place::Kind::null) return {writer_.absolute(name, 0), 0, true};
  PatchWriter::Binding binding;
  binding.kind = binding_of(place.kind);
  binding.target = target_;
  binding.value = place.kind == Place::Kind::dynamic ? 0 : place.value;
  binding.version = place.version;
  binding.library = place.library;
  binding.is_function = place.is_function;
  const std::string& as =
      place.kind == Place::Kind::dynamic && !place.name.empty() ? place.name : name;
  return {writer_.bind(as, binding), 0, true};
}

Closure::Bound Closure::bind_undefined(const DiffedUnit& unit, const ObjectSymbol& symbol,
                                       std::uint32_t in) {
  const std::string name = text(symbol.name);
  // A function or variable that another unit of this patch brings.
  for (const DiffedUnit& other : units_) {
    const std::uint32_t y = other.new_view->object().find_symbol(name);
    if (y == 0) continue;
    const ObjectSymbol& defined = other.new_view->symbol(y);
    if (!defined.is_defined() || defined.is_local()) continue;
    const std::uint32_t old = other.comparison != nullptr ? other.comparison->old_symbol(y) : 0;
    if (other.moved.contains(y)) break;
    if (old == 0 || other.apart.contains(defined.section)) {
      return own_copy(other, defined.section, defined.value);
    }
    // A static one before the diff: its name says nothing about the program.
    if (other.old_view->symbol(old).is_local()) {
      return bind_place(unit, name, placement_.symbol(other.index, Flavour::shadow, old), in);
    }
  }
  Place place = placement_.named(unit.scope, name);
  // A module may use for the first time what the program exports, which it does not say that it needs.
  for (const Placement* other : placements_) {
    if (place.is_known()) break;
    if (other == &placement_) continue;
    if (Place exported = other->exported(name); exported.is_known()) place = std::move(exported);
  }
  // Shadow variables and the like: a program that was attached to does not say that it needs them.
  if (!place.is_known() && runtime_.contains(name)) {
    place = {};
    place.kind = Place::Kind::dynamic;
    place.version = patch_file::runtime_version;
    place.library = patch_file::runtime_library;
    place.is_function = true;
  }
  return bind_place(unit, name, place, in);
}

Closure::Bound Closure::bind_merged(const DiffedUnit& unit, const Referent& ref) {
  const ObjectSection& from = unit.new_view->section(ref.section);
  const auto content = unit.new_view->merged(ref.section, ref.offset);
  const std::uint64_t unit_size = std::max<std::uint64_t>(from.entry_size, 1);
  const std::uint64_t alignment =
      from.has_strings() ? unit_size : std::max<std::uint64_t>(from.alignment, 1);
  if (!has_pool_) {
    PatchWriter::Section section;
    section.name = ".rodata.molt";
    section.target = target_;
    pool_ = writer_.add_section(std::move(section));
    has_pool_ = true;
  }
  const std::string key(reinterpret_cast<const char*>(content.data()), content.size());
  const auto [at, is_new] = merged_.try_emplace({key, alignment}, 0);
  if (is_new) {
    at->second = writer_.append(pool_, content, alignment);
    report_.data_bytes += content.size();
  }
  // Into the constant, for those that are no strings.
  const std::uint64_t into =
      from.has_strings() ? 0 : static_cast<std::uint64_t>(ref.offset) % unit_size;
  return place_in(pool_, at->second + into);
}

// The symbol and addend that stand for what a relocation of the new object refers to.
Closure::Bound Closure::bind(const DiffedUnit& unit, std::uint32_t in, const Relocation& r) {
  const View& view = *unit.new_view;
  const Referent ref = view.reference(in, r);
  if (ref.section == 0) {
    Bound bound = bind_undefined(unit, view.symbol(r.symbol), in);
    bound.addend += r.addend;
    return bound;
  }
  const ObjectSection& target = view.section(ref.section);
  // As the object has it: relative to its symbol.
  const ObjectSymbol& given = view.symbol(r.symbol);
  const std::int64_t given_value = given.is_section() ? 0 : static_cast<std::int64_t>(given.value);
  if (target.is_mergeable()) {
    Bound bound = bind_merged(unit, ref);
    // ref.offset is where it is meant to be in the section.
    bound.addend += r.addend + given_value - ref.offset;
    return bound;
  }
  const auto copy = [&] {
    Bound bound = own_copy(unit, ref.section, 0);
    bound.addend = r.addend + given_value;
    return bound;
  };
  const std::uint32_t old_section =
      unit.comparison != nullptr ? unit.comparison->old_section(ref.section) : 0;
  const std::uint32_t old_symbol =
      unit.comparison != nullptr && ref.symbol != 0 ? unit.comparison->old_symbol(ref.symbol) : 0;
  // Bound to the old symbol's place; the distance from it is kept.
  const auto to_old = [&](const Place& place) {
    Bound bound = bind_place(unit, text(view.symbol(ref.symbol).name), place, in);
    bound.addend = r.addend;
    // A section symbol's addend counts from the section's begin, the named one's from itself.
    if (given.is_section() || r.symbol != ref.symbol) {
      bound.addend =
          r.addend + given_value - static_cast<std::int64_t>(view.symbol(ref.symbol).value);
    }
    return bound;
  };
  // Inline functions and variables, and the static ones in them, of which the unit had none: the program's, if
  // another unit has brought them. A second one would have a state of its own. Constants are compared by content.
  const bool is_vague = ref.symbol != 0 && !view.symbol(ref.symbol).is_local() &&
                        (view.symbol(ref.symbol).bind != STB_GLOBAL || !target.group.empty());
  if (old_symbol == 0 && is_vague &&
      (target.is_code() || !view.is_constant(ref.section) || is_of_class(view.name(ref.section)))) {
    const Place place = placement_.named(unit.scope, view.symbol(ref.symbol).name);
    const bool is_here = place.kind == Place::Kind::image || place.kind == Place::Kind::tls;
    const bool is_shared_state = place.kind == Place::Kind::dynamic && !target.is_code();
    if (is_here || is_shared_state) return to_old(place);
    // New ones are the first unit's for all.
    for (const DiffedUnit& other : units_) {
      if (other.index == unit.index) break;
      const std::uint32_t y = other.new_view->object().find_symbol(view.symbol(ref.symbol).name);
      const bool has_it = y != 0 && other.new_view->symbol(y).is_defined() &&
                          !other.new_view->symbol(y).is_local() &&
                          (other.comparison == nullptr || other.comparison->old_symbol(y) == 0);
      if (!has_it) continue;
      const ObjectSymbol& first = other.new_view->symbol(y);
      Bound bound = own_copy(other, first.section, 0);
      bound.addend = r.addend + given_value -
                     static_cast<std::int64_t>(view.symbol(ref.symbol).value) +
                     static_cast<std::int64_t>(first.value);
      return bound;
    }
  }
  if (target.is_code()) {
    if (const auto from = unit.moved.find(ref.symbol); from != unit.moved.end()) {
      return to_old(placement_.symbol(from->second.unit, Flavour::shadow, from->second.symbol));
    }
    if (unit.joined.contains(ref.symbol)) {
      return to_old(placement_.symbol(unit.index, Flavour::shadow, old_symbol));
    }
    if (included_.contains({unit.index, ref.section}) && !unit.replaced.contains(ref.section)) {
      return copy();
    }
    if (ref.symbol == 0 || old_symbol == 0) return copy();
    if (unit.replaced.contains(ref.section)) {
      // B2; but into the middle of it only its own parts lead.
      if (ref.offset != 0) return copy();
      return to_old(placement_.symbol(unit.index, Flavour::shadow, old_symbol));
    }
    if (unit.comparison->changed.contains(ref.section)) return copy();
    const Place place = placement_.symbol(unit.index, Flavour::shadow, old_symbol);
    return place.is_known() ? to_old(place) : copy();
  }
  const std::string name = text(view.name(ref.section));
  if (is_reference_to_personality(name)) return copy();
  if (view.is_constant(ref.section)) {
    if (ref.symbol == 0 || old_symbol == 0 || old_section == 0 ||
        !unit.comparison->same(ref.section)) {
      return copy();
    }
    const Place place = placement_.symbol(unit.index, Flavour::shadow, old_symbol);
    return place.is_known() ? to_old(place) : copy();
  }
  if (old_symbol != 0) return to_old(placement_.symbol(unit.index, Flavour::shadow, old_symbol));
  if (target.is_thread_local()) {
    refuse(
        unit, in, "new_thread_local", name,
        fmt::format("{} uses the thread-local variable {}, which is new: no running thread has it",
                    view.name(in), name),
        "use a shadow variable (molt_shadow_get_or_alloc) with the thread's own address");
    return {};
  }
  if (old_section != 0) {  // of nobody's own: the numbered ones that nothing pairs
    refuse(unit, in, "variable_unknown", name,
           fmt::format("{} uses {}, and nothing tells which of the old variables that is",
                       view.name(in), name),
           "build with debug information (-g)");
    return {};
  }
  return copy();
}

void Closure::relocate(const DiffedUnit& unit, std::uint32_t section) {
  const std::uint32_t into = included_.at({unit.index, section});
  for (const Relocation& r : unit.new_view->section(section).relocations) {
    if (r.type == R_X86_64_NONE) continue;
    if (patchfile::relocated_bytes(r.type) == 0) {
      refuse(
          unit, section, "relocation", text(unit.new_view->name(section)),
          fmt::format("{} refers to {} by a relocation of type {}, which patches cannot have",
                      unit.new_view->name(section), unit.new_view->symbol(r.symbol).name, r.type),
          "build it with the small code model, and thread-local variables of the GNU dialect");
      continue;
    }
    const Bound bound = bind(unit, section, r);
    if (bound.ok) writer_.relocate(into, r.offset, r.type, bound.symbol, bound.addend);
  }
}

// The records of what was included, each with a common record before the first that needs it.
void Closure::add_frames() {
  std::vector<std::byte> frames;
  struct Moved {
    const DiffedUnit* unit;
    std::uint32_t section;
    Relocation relocation;  // at its new place
  };
  std::vector<Moved> moved;
  std::map<std::pair<std::size_t, std::uint64_t>, std::uint64_t> commons;
  const auto take = [&](const DiffedUnit& unit, const ObjectSection& from, std::uint32_t section,
                        std::uint64_t begin, std::uint64_t size) {
    const std::uint64_t at = frames.size();
    const auto bytes = from.bytes.subspan(begin, size);
    frames.insert(frames.end(), bytes.begin(), bytes.end());
    for (const Relocation& r : from.relocations) {
      if (r.offset < begin || r.offset >= begin + size) continue;
      moved.push_back({&unit, section, r});
      moved.back().relocation.offset = at + r.offset - begin;
    }
    return at;
  };
  const auto put = [&](std::uint64_t at, std::uint64_t value) {
    const auto word = static_cast<std::uint32_t>(value);
    std::memcpy(frames.data() + at, &word, sizeof word);
  };
  std::set<std::tuple<std::size_t, std::uint32_t, std::uint64_t>> done;
  for (bool again = true; again;) {
    again = false;
    for (const DiffedUnit& unit : units_) {
      for (const View::Frame& frame : unit.new_view->frames()) {
        if (!included_.contains({unit.index, frame.function})) continue;
        if (!done.insert({unit.index, frame.frames, frame.offset}).second) continue;
        again = true;
        const ObjectSection& from = unit.new_view->section(frame.frames);
        const auto [common, is_new] = commons.try_emplace({unit.index, frame.common}, 0);
        if (is_new) {
          std::uint32_t length = 0;
          std::memcpy(&length, from.bytes.data() + frame.common, sizeof length);
          common->second = take(unit, from, frame.frames, frame.common, std::uint64_t{length} + 4);
        }
        const std::uint64_t at = take(unit, from, frame.frames, frame.offset, frame.size);
        put(at + 4, at + 4 - common->second);
        // Its table may need more functions: cleanups that were inlined nowhere.
        if (frame.table != 0) include(unit, frame.table);
      }
    }
    while (!queue_.empty()) {
      const auto [unit, section] = queue_.back();
      queue_.pop_back();
      relocate(*unit, section);
      again = true;
    }
  }
  if (frames.empty()) return;
  PatchWriter::Section section;
  section.name = ".eh_frame";
  section.content = std::move(frames);
  section.alignment = 8;
  section.target = target_;
  const std::uint32_t index = writer_.add_section(std::move(section));
  for (const Moved& m : moved) {
    const View& view = *m.unit->new_view;
    const ObjectSymbol& given = view.symbol(m.relocation.symbol);
    Bound bound;
    if (given.is_defined() && included_.contains({m.unit->index, given.section})) {
      bound = own_copy(*m.unit, given.section, 0);
      bound.addend =
          m.relocation.addend + (given.is_section() ? 0 : static_cast<std::int64_t>(given.value));
    } else {
      bound = bind(*m.unit, m.section, m.relocation);
    }
    if (!bound.ok) continue;
    writer_.relocate(index, m.relocation.offset, m.relocation.type, bound.symbol, bound.addend);
  }
  // The personality's address, where that was needed.
  while (!queue_.empty()) {
    const auto [unit, from] = queue_.back();
    queue_.pop_back();
    relocate(*unit, from);
  }
}

void Closure::finish() {
  while (!queue_.empty()) {
    const auto [unit, section] = queue_.back();
    queue_.pop_back();
    relocate(*unit, section);
  }
  add_frames();
}

}  // namespace molt::builder
