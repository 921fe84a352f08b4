// What placement.hpp promises to answer, from what placement.cpp has proven.
#include "builder/placement_state.hpp"

#include <fmt/format.h>

#include <algorithm>

namespace molt::builder {
namespace {

Place unknown(std::string why) {
  Place place;
  place.why = std::move(why);
  return place;
}

Place at(std::uint64_t address, std::uint64_t size = 0) {
  Place place;
  place.kind = Place::Kind::image;
  place.value = address;
  place.size = size;
  return place;
}

Place in_tls(std::uint64_t offset, std::uint64_t size = 0) {
  Place place;
  place.kind = Place::Kind::tls;
  place.value = offset;
  place.size = size;
  return place;
}

}  // namespace

// A name that another file, or another unit of this one, defines.
Place Placement::State::of_name(std::string_view name) const {
  const auto in_image = file->symbols.find(name);
  const bool is_global = in_image && in_image->bind != STB_LOCAL;
  const auto exported = [&] {
    // A program may have its own copy of a library's variable, or a function of its own that takes the place of
    // the library's in the library too, where that asks the loader: only the loader knows where it is.
    if (file->is_program || !is_global) return false;
    const auto is_asked_for = [&](const LoaderRelocation& relocation) {
      return relocation.symbol == name;
    };
    if (in_image->is_function() && std::ranges::none_of(file->relocations, is_asked_for))
      return false;
    const auto& dynamic = file->image->dynamic_symbols();
    return std::ranges::any_of(dynamic, [&](const elf::Symbol& symbol) {
      return symbol.exported() && symbol.visibility == STV_DEFAULT && symbol.name == name;
    });
  };
  const auto by_loader = [&](std::string_view version, std::string_view library,
                             std::uint8_t type) {
    Place place;
    place.kind = Place::Kind::dynamic;
    place.name = name;
    place.version = version;
    place.library = library;
    place.is_function = type == STT_FUNC || type == STT_GNU_IFUNC || type == STT_NOTYPE;
    place.is_thread_local = type == STT_TLS;
    const auto plt = plt_entries.find(name);
    if (plt != plt_entries.end()) place.value = plt->second;
    return place;
  };
  if (exported()) return by_loader(in_image->version, file->soname, in_image->type);

  if (const auto known = tls_globals.find(name); known != tls_globals.end()) {
    return in_tls(known->second);
  }
  if (const auto known = globals.find(name); known != globals.end()) {
    Place place = at(known->second);
    place.is_indirect = is_global && in_image->is_indirect();
    if (is_global) place.size = in_image->size;
    return place;
  }
  if (is_global) {
    if (in_image->is_thread_local()) return in_tls(in_image->address, in_image->size);
    Place place = at(in_image->address, in_image->size);
    place.is_indirect = in_image->is_indirect();
    return place;
  }
  if (const auto import = file->imports.find(name); import != file->imports.end()) {
    const auto library = file->find_in_libraries(name);
    // A weak import that no library has is null, and stays so.
    if (!library && import->second.is_weak) {
      Place place;
      place.kind = Place::Kind::null;
      return place;
    }
    const std::uint8_t type = library ? library->type : import->second.type;
    const std::string_view from =
        import->second.library.empty() && library ? library->library : import->second.library;
    return by_loader(import->second.version, from, type);
  }
  if (const auto library = file->find_in_libraries(name)) {
    return by_loader(library->version, library->library, library->type);
  }
  if (nulls.contains(name)) {
    Place place;
    place.kind = Place::Kind::null;
    return place;
  }
  return unknown(
      fmt::format("{} is neither in {} nor in the libraries that it needs", name, file->path));
}

Place Placement::State::of_symbol(const UnitState& unit, std::uint32_t index) const {
  const ObjectSymbol& symbol = unit.symbol(index);
  if (symbol.is_absolute) {
    Place place;
    place.kind = Place::Kind::absolute;
    place.value = symbol.value;
    return place;
  }
  if (!symbol.is_defined()) {
    Place place = of_name(symbol.name);
    if (place.kind == Place::Kind::unknown && symbol.bind == STB_WEAK)
      place.kind = Place::Kind::null;
    if (place.size == 0) place.size = symbol.size;
    return place;
  }
  const ObjectSection& section = unit.plain->section_of(symbol);
  const PlacedSection& placed = unit.sections[symbol.section];
  if (section.is_mergeable()) {
    return unknown(fmt::format("the linker merges section {}", section.name));
  }
  const bool is_public = !symbol.is_local();
  if (is_public && !file->is_program) {
    Place place = of_name(symbol.name);
    if (place.kind == Place::Kind::dynamic) {
      place.size = symbol.size;
      return place;
    }
  }
  // Code has to be there byte for byte. Data is where code that is proven refers to it, whatever a
  // differing initialiser elsewhere in its section.
  if (placed.base && (placed.is_proven || !section.is_code())) {
    const std::uint64_t value = *placed.base + symbol.value;
    Place place = section.is_thread_local() ? in_tls(value, symbol.size) : at(value, symbol.size);
    place.is_indirect = symbol.type == STT_GNU_IFUNC;
    return place;
  }
  if (const auto lone = unit.lone_functions.find(index); lone != unit.lone_functions.end()) {
    return at(lone->second, symbol.size);
  }
  if (is_public) {
    Place place = of_name(symbol.name);
    place.size = symbol.size;
    return place;
  }
  if (placed.candidates.size() > 1) {
    return unknown(fmt::format("{} has {} places in {} that cannot be told apart", symbol.name,
                               placed.candidates.size(), file->path));
  }
  return unknown(fmt::format("nothing in {} refers to {}", file->path,
                             symbol.name.empty() ? section.name : symbol.name));
}

const RunningFile& Placement::image() const { return *state_->running; }
const std::vector<Refusal>& Placement::refusals() const { return state_->refusals; }
bool Placement::contains(std::size_t unit) const { return state_->units[unit].is_contained; }

std::span<const PlacedFunction> Placement::functions(std::size_t unit) const {
  return state_->units[unit].functions;
}

const PlacedFunction* Placement::function(std::size_t unit, std::string_view name) const {
  const UnitState& in = state_->units[unit];
  const auto found = in.function_by_name.find(name);
  return found == in.function_by_name.end() ? nullptr : &in.functions[found->second];
}

Place Placement::symbol(std::size_t unit, Flavour flavour, std::uint32_t index) const {
  const UnitState& in = state_->units[unit];
  if (!in.plain) return unknown("the unit has no old object");
  if (flavour == Flavour::plain) {
    if (index >= in.plain->symbols().size()) return unknown("no such symbol");
    if (in.symbol(index).is_section()) {
      return section(unit, flavour, in.symbol(index).section, in.symbol(index).value);
    }
    return state_->of_symbol(in, index);
  }
  if (!in.shadow || index >= in.shadow->symbols().size()) return unknown("no such symbol");
  const ObjectSymbol& shadow = in.shadow->symbols()[index];
  if (shadow.is_section()) return section(unit, flavour, shadow.section, shadow.value);
  const auto theirs = in.shadow_by_name.find(shadow.name);
  const auto ours = in.plain_by_name.find(shadow.name);
  if (theirs == in.shadow_by_name.end() || ours == in.plain_by_name.end()) {
    return unknown(
        fmt::format("the plain object of {} has no symbol {}", in.unit->output, shadow.name));
  }
  // Static symbols of one name come in one order in both objects.
  const auto ordinal =
      static_cast<std::size_t>(std::ranges::find(theirs->second, index) - theirs->second.begin());
  if (theirs->second.size() != ours->second.size() || ordinal >= ours->second.size()) {
    return unknown(fmt::format("plain and shadow object of {} disagree about {}", in.unit->output,
                               shadow.name));
  }
  return state_->of_symbol(in, ours->second[ordinal]);
}

Place Placement::section(std::size_t unit, Flavour flavour, std::uint32_t index,
                         std::uint64_t offset) const {
  const UnitState& in = state_->units[unit];
  if (!in.plain) return unknown("the unit has no old object");
  if (flavour == Flavour::plain) {
    if (index >= in.sections.size()) return unknown("no such section");
    const PlacedSection& placed = in.sections[index];
    const ObjectSection& of = in.plain->sections()[index];
    if (of.is_mergeable()) return unknown(fmt::format("the linker merges section {}", of.name));
    if (!placed.base || (of.is_code() && !placed.is_proven)) {
      return unknown(fmt::format("section {} of {} was not found in {}", of.name, in.unit->output,
                                 state_->file->path));
    }
    return of.is_thread_local() ? in_tls(*placed.base + offset) : at(*placed.base + offset);
  }
  if (!in.shadow || index >= in.shadow->sections().size()) return unknown("no such section");
  const ObjectSection& of = in.shadow->sections()[index];
  if (of.is_mergeable()) return unknown(fmt::format("the linker merges section {}", of.name));
  // The last symbol that begins at or before the byte.
  std::uint32_t best = 0;
  for (std::uint32_t candidate : of.symbols) {
    const ObjectSymbol& symbol = in.shadow->symbols()[candidate];
    if (symbol.value > offset) break;
    if (symbol.type == STT_OBJECT || symbol.type == STT_TLS || symbol.is_function() ||
        symbol.is_common) {
      best = candidate;
    }
  }
  if (best == 0) {
    return unknown(fmt::format("section {} of the shadow has no symbol at {:#x}", of.name, offset));
  }
  Place place = symbol(unit, flavour, best);
  const std::uint64_t beyond = offset - in.shadow->symbols()[best].value;
  if (beyond != 0 && place.kind == Place::Kind::dynamic) {
    return unknown(
        fmt::format("a part of {} is wanted, which the dynamic loader places", place.name));
  }
  if (place.kind == Place::Kind::image || place.kind == Place::Kind::tls) place.value += beyond;
  return place;
}

Place Placement::named(std::size_t unit, std::string_view name) const {
  if (unit < state_->units.size()) {
    const UnitState& in = state_->units[unit];
    if (in.plain) {
      const auto own = in.plain_by_name.find(name);
      if (own != in.plain_by_name.end()) {
        if (own->second.size() > 1) {
          return unknown(fmt::format("{} has several symbols {}", in.unit->output, name));
        }
        return state_->of_symbol(in, own->second[0]);
      }
    }
  }
  return state_->of_name(name);
}

Place Placement::exported(std::string_view name) const {
  const auto& dynamic = state_->file->image->dynamic_symbols();
  for (std::size_t i = 1; i < dynamic.size(); ++i) {
    const elf::Symbol symbol = dynamic[i];
    if (!symbol.exported() || symbol.name != name) continue;
    Place place;
    place.kind = Place::Kind::dynamic;
    place.name = name;
    place.library = state_->file->soname;
    place.is_function = symbol.type == STT_FUNC || symbol.type == STT_GNU_IFUNC;
    place.is_thread_local = symbol.type == STT_TLS;
    return place;
  }
  return unknown(fmt::format("{} does not export {}", state_->file->path, name));
}

Placement::Placement(std::unique_ptr<State> state) : state_(std::move(state)) {}
Placement::Placement(Placement&&) noexcept = default;
Placement& Placement::operator=(Placement&&) noexcept = default;
Placement::~Placement() = default;

const char* to_text(Place::Kind kind) {
  switch (kind) {
    case Place::Kind::unknown:
      return "unknown";
    case Place::Kind::image:
      return "image";
    case Place::Kind::tls:
      return "tls";
    case Place::Kind::dynamic:
      return "dynamic";
    case Place::Kind::absolute:
      return "absolute";
    case Place::Kind::null:
      return "null";
  }
  return "?";
}

const char* to_text(PlacedFunction::Match match) {
  switch (match) {
    case PlacedFunction::Match::proven:
      return "proven";
    case PlacedFunction::Match::discarded:
      return "discarded";
    case PlacedFunction::Match::absent:
      return "absent";
    case PlacedFunction::Match::differs:
      return "differs";
  }
  return "?";
}

}  // namespace molt::builder
