#include "builder/placement.hpp"

#include "builder/placement_state.hpp"
#include "elf/read.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <set>

namespace molt::builder {
namespace {

using State = Placement::State;

bool is_relocated(const void* context, std::uint64_t address) {
  return static_cast<const RunningFile::State*>(context)->relocation_at(address) != nullptr;
}

// Sections that the linker makes anew (exception frames), sorts, or leaves out.
bool is_comparable(const ObjectSection& section) {
  return section.is_allocated() && section.type != SHT_NOTE && section.type != SHT_GROUP &&
         section.type != SHT_INIT_ARRAY && section.type != SHT_FINI_ARRAY &&
         section.type != SHT_PREINIT_ARRAY && section.type != SHT_X86_64_UNWIND &&
         !section.name.starts_with(".eh_frame") && !section.name.starts_with(".gcc_except_table") &&
         !section.name.starts_with(".note");
}

// A part of a section as if it were one.
ObjectSection slice(const ObjectSection& whole, std::uint64_t begin, std::uint64_t bytes,
                    std::uint32_t& first_relocation) {
  ObjectSection part;
  part.name = whole.name;
  part.type = whole.type;
  part.flags = whole.flags;
  part.group = whole.group;
  part.size = bytes;
  part.bytes = whole.bytes.subspan(begin, bytes);
  const auto first = std::ranges::lower_bound(whole.relocations, begin, {}, &Relocation::offset);
  first_relocation = static_cast<std::uint32_t>(first - whole.relocations.begin());
  for (auto at = first; at != whole.relocations.end() && at->offset < begin + bytes; ++at) {
    part.relocations.push_back(*at);
    part.relocations.back().offset -= begin;
  }
  return part;
}

// The source's name as the compiler noted it.
std::string_view file_symbol(const Object& object) {
  for (const ObjectSymbol& symbol : object.symbols()) {
    if (symbol.type == STT_FILE) return symbol.name;
  }
  return {};
}

// What a reference turned out to lead to.
struct Meaning {
  enum class Kind { address, tls, dynamic, null, nothing, wrong };
  Kind kind = Kind::nothing;
  std::uint64_t value = 0;
  std::string_view name;  // dynamic
  std::string why;        // wrong
};

class Prover {
 public:
  explicit Prover(State& state) : state_(state), file_(*state.file) {}

  void prove_code();
  void prove_data();
  void judge_units();

 private:
  struct Proof {
    std::uint64_t base = 0;
    std::vector<Reference> references;
  };

  std::optional<Difference> compare_at(const ObjectSection& section, std::uint64_t address,
                                       std::vector<Reference>& references) const;
  std::vector<std::uint64_t> candidates_by_name(const UnitState& unit, std::uint32_t section) const;
  std::vector<std::uint64_t> candidates_by_bytes(const ObjectSection& section) const;
  std::optional<Difference> check_references(UnitState& unit, const ObjectSection& section,
                                             const std::vector<Reference>& references) const;
  void commit(UnitState& unit, const ObjectSection& section,
              const std::vector<Reference>& references);
  bool accept(UnitState& unit, std::uint32_t section, std::uint64_t base,
              std::vector<Reference> references);
  void prove_section(UnitState& unit, std::uint32_t section, bool by_bytes);
  void prove_pending();
  void prove_functions(UnitState& unit, std::uint32_t section);
  void set_base(UnitState& unit, std::uint32_t section, std::uint64_t base);

  Meaning meaning(const ObjectSection& section, const ObjectSymbol& symbol,
                  const Reference& reference) const;
  // What the references of one section say, before any of it is believed.
  struct Said {
    std::unordered_map<std::uint32_t, std::uint64_t> bases;  // of sections
    std::unordered_map<std::string_view, std::uint64_t> names;
  };
  std::string check(const UnitState& unit, const ObjectSection& from, const Relocation& relocation,
                    const Reference& reference, Said& said) const;
  std::string check_content(const UnitState& unit, const ObjectSymbol& symbol, std::int64_t offset,
                            std::uint64_t address) const;

  bool is_overridden(const UnitState& unit, const ObjectSymbol& symbol) const;
  bool is_overridden_section(const UnitState& unit, std::uint32_t section) const;
  void list_functions(UnitState& unit);
  void find_shared();
  void refuse(UnitState& unit);

  State& state_;
  const RunningFile::State& file_;
  std::uint64_t got_ = 0;
  bool moved_ = false;  // a base became known in this round
};

std::optional<Difference> Prover::compare_at(const ObjectSection& section, std::uint64_t address,
                                             std::vector<Reference>& references) const {
  const auto bytes = file_.image->at_address(address, section.size);
  if (!bytes) return Difference{0, "no such bytes in the file"};
  const Linked linked{*bytes, address, got_, file_.is_program, &file_, is_relocated};
  return compare(section, linked, references);
}

// Where the section would be if the image's function of a name were this section's. The name with
// the fewest answers decides.
std::vector<std::uint64_t> Prover::candidates_by_name(const UnitState& unit,
                                                      std::uint32_t index) const {
  std::vector<std::uint64_t> best;
  std::size_t asked = 0;
  for (std::uint32_t symbol_index : unit.plain->sections()[index].symbols) {
    const ObjectSymbol& symbol = unit.symbol(symbol_index);
    if (symbol.type == STT_NOTYPE && symbol.is_local()) continue;
    if (is_overridden(unit, symbol)) continue;
    std::set<std::uint64_t> bases;
    for (const elf::FoundSymbol& found : file_.symbols.find_all(symbol.name)) {
      if (found.is_thread_local()) continue;
      bases.insert(found.address - symbol.value);
    }
    if (!symbol.is_local()) {
      const auto known = state_.globals.find(symbol.name);
      if (known != state_.globals.end()) bases.insert(known->second - symbol.value);
    }
    if (bases.empty()) continue;
    if (best.empty() || bases.size() < best.size()) best.assign(bases.begin(), bases.end());
    if (best.size() == 1 || ++asked == 8) break;
  }
  return best;
}

// Where the longest run of bytes that no relocation touches occurs in the image's code.
std::vector<std::uint64_t> Prover::candidates_by_bytes(const ObjectSection& section) const {
  constexpr std::uint64_t run_max = 64;
  constexpr std::uint64_t run_min = 8;
  constexpr std::size_t hits_max = 64;
  std::uint64_t begin = 0;
  std::uint64_t best_begin = 0;
  std::uint64_t best = 0;
  const auto consider = [&](std::uint64_t end) {
    if (end > begin && end - begin > best) {
      best = end - begin;
      best_begin = begin;
    }
  };
  for (const Relocation& relocation : section.relocations) {
    // Relaxation rewrites up to four bytes before the field and twelve behind its start.
    const bool is_relaxable =
        relocation.type == R_X86_64_TLSGD || relocation.type == R_X86_64_TLSLD;
    consider(relocation.offset > 4 ? relocation.offset - 4 : 0);
    begin = relocation.offset + (is_relaxable ? 12 : 8);
  }
  consider(section.size);
  if (best < run_min) return {};
  const auto needle = section.bytes.subspan(best_begin, std::min(best, run_max));
  std::vector<std::uint64_t> found;
  for (const Elf64_Phdr& segment : file_.image->segments()) {
    if (segment.p_type != PT_LOAD || (segment.p_flags & PF_X) == 0) continue;
    const auto bytes = elf::part(file_.file, segment.p_offset, segment.p_filesz);
    if (!bytes) continue;
    const std::byte* at = bytes->data();
    const std::byte* end = at + bytes->size();
    while (at < end && found.size() < hits_max) {
      const void* hit =
          ::memmem(at, static_cast<std::size_t>(end - at), needle.data(), needle.size());
      if (hit == nullptr) break;
      at = static_cast<const std::byte*>(hit);
      const std::uint64_t address =
          segment.p_vaddr + static_cast<std::uint64_t>(at - bytes->data());
      if (address >= best_begin && (address - best_begin) % section.alignment == 0) {
        found.push_back(address - best_begin);
      }
      ++at;
    }
  }
  return found;
}

Meaning Prover::meaning(const ObjectSection& section, const ObjectSymbol& symbol,
                        const Reference& reference) const {
  using Kind = Meaning::Kind;
  const auto value = static_cast<std::uint64_t>(reference.value);
  const auto word = [this](std::uint64_t address) {
    const auto bytes = file_.image->at_address(address, 8);
    return bytes ? elf::read<std::uint64_t>(*bytes, 0) : std::nullopt;
  };
  const Relocation& relocation = section.relocations[reference.relocation];
  switch (reference.kind) {
    case Reference::Kind::address:
      if (value == 0 && symbol.is_undefined()) return {Kind::null, 0, {}, {}};
      return {Kind::address, value, {}, {}};
    case Reference::Kind::tls_offset:
      return {Kind::tls, value + file_.tls_bytes, {}, {}};
    case Reference::Kind::tls_block:
      return {Kind::tls, value, {}, {}};
    case Reference::Kind::slot: {
      const LoaderRelocation* at = file_.relocation_at(value);
      if (at == nullptr) {
        const auto content = word(value);
        if (!content) return {Kind::wrong, 0, {}, "a GOT entry outside of the file"};
        if (*content == 0) return {Kind::null, 0, {}, {}};
        return {Kind::address, *content, {}, {}};
      }
      if (!at->symbol.empty()) return {Kind::dynamic, 0, at->symbol, {}};
      return {Kind::address, static_cast<std::uint64_t>(at->addend), {}, {}};
    }
    case Reference::Kind::tls_slot: {
      const LoaderRelocation* at = file_.relocation_at(value);
      if (at == nullptr) {
        const auto content = word(value);
        if (!content) return {Kind::wrong, 0, {}, "a GOT entry outside of the file"};
        return {Kind::tls, *content + file_.tls_bytes, {}, {}};
      }
      if (!at->symbol.empty()) return {Kind::dynamic, 0, at->symbol, {}};
      return {Kind::tls, static_cast<std::uint64_t>(at->addend), {}, {}};
    }
    case Reference::Kind::tls_pair: {
      const LoaderRelocation* at = file_.relocation_at(value);
      const LoaderRelocation* offset = file_.relocation_at(value + 8);
      if (at != nullptr && !at->symbol.empty()) return {Kind::dynamic, 0, at->symbol, {}};
      if (at != nullptr && at->type == R_X86_64_TLSDESC) {
        return {Kind::tls, static_cast<std::uint64_t>(at->addend), {}, {}};
      }
      if (offset != nullptr) return {Kind::dynamic, 0, offset->symbol, {}};
      const auto content = word(value + 8);
      if (!content) return {Kind::wrong, 0, {}, "a GOT entry outside of the file"};
      return {Kind::tls, *content, {}, {}};
    }
    case Reference::Kind::loader: {
      const LoaderRelocation* at = file_.relocation_at(value);
      if (at == nullptr) return {Kind::wrong, 0, {}, "a relocation that is not there"};
      if (!at->symbol.empty()) return {Kind::dynamic, 0, at->symbol, {}};
      if (at->type == R_X86_64_DTPMOD64 || at->type == R_X86_64_TPOFF64) return {};
      return {Kind::address, static_cast<std::uint64_t>(at->addend - relocation.addend), {}, {}};
    }
  }
  return {};
}

// Strings and constants that the linker has merged: is what lies there what the object has?
std::string Prover::check_content(const UnitState& unit, const ObjectSymbol& symbol,
                                  std::int64_t offset, std::uint64_t address) const {
  const ObjectSection& section = unit.plain->section_of(symbol);
  const auto at = static_cast<std::uint64_t>(offset);
  if (at >= section.bytes.size()) return "";
  // A name may stand for the rest of a constant only.
  std::uint64_t bytes = section.entry_size == 0 ? 0 : section.entry_size - at % section.entry_size;
  if (section.has_strings()) {
    const std::uint64_t unit_bytes = std::max<std::uint64_t>(section.entry_size, 1);
    bytes = 0;
    bool is_end = false;
    while (!is_end && at + bytes + unit_bytes <= section.bytes.size()) {
      is_end = std::ranges::all_of(section.bytes.subspan(at + bytes, unit_bytes),
                                   [](std::byte b) { return b == std::byte{0}; });
      bytes += unit_bytes;
    }
  }
  if (!elf::within(at, bytes, section.bytes.size())) return "";
  const auto there = file_.image->at_address(address, bytes);
  if (there && std::ranges::equal(*there, section.bytes.subspan(at, bytes))) return "";
  if (!section.has_strings() || section.entry_size != 1) return "it refers to another constant";
  const auto text = [](std::span<const std::byte> from) {
    std::string shown;
    for (std::byte b : from.first(std::min<std::size_t>(from.size(), 48))) {
      const char c = static_cast<char>(b);
      if (c == '\0') break;
      shown += c >= ' ' && c <= '~' ? c : '?';
    }
    return shown;
  };
  return fmt::format("it refers to the text \"{}\", in this build \"{}\"",
                     there ? text(*there) : "", text(section.bytes.subspan(at, bytes)));
}

// "" or why this reference cannot be that of the image.
std::string Prover::check(const UnitState& unit, const ObjectSection& from,
                          const Relocation& relocation, const Reference& reference,
                          Said& said) const {
  const ObjectSymbol& symbol = unit.symbol(relocation.symbol);
  const Meaning means = meaning(from, symbol, reference);
  const auto name_of = [&](const ObjectSymbol& of) {
    return of.is_section() ? unit.plain->section_of(of).name : of.name;
  };
  if (means.kind == Meaning::Kind::wrong) return means.why;
  if (means.kind == Meaning::Kind::dynamic) {
    if (symbol.is_section() || symbol.is_local() || means.name == symbol.name) return "";
    return fmt::format("it refers to {}, in this build to {}", means.name, symbol.name);
  }
  if (means.kind == Meaning::Kind::nothing || means.kind == Meaning::Kind::null) return "";

  if (means.kind == Meaning::Kind::tls) {
    if (!symbol.is_defined()) {
      const auto known = state_.tls_globals.find(symbol.name);
      const auto first = said.names.emplace(symbol.name, means.value).first;
      if ((known == state_.tls_globals.end() || known->second == means.value) &&
          first->second == means.value) {
        return "";
      }
      return fmt::format("it refers to another thread-local variable than {}", symbol.name);
    }
    if (symbol.is_local() && !from.group.empty()) return "";
    const auto& section = unit.sections[symbol.section];
    const std::uint64_t base = means.value - (symbol.is_section() ? 0 : symbol.value);
    const auto first = said.bases.emplace(symbol.section, base).first;
    if ((!section.base || *section.base == base) && first->second == base) return "";
    return fmt::format("it refers to another thread-local variable than {}", name_of(symbol));
  }

  const std::string_view plt = file_.plt_target(means.value);
  if (!plt.empty()) {
    if (plt == symbol.name) return "";
    return fmt::format("it calls {}, in this build {}", plt, name_of(symbol));
  }
  if (!symbol.is_defined()) {
    if (symbol.is_absolute) return "";
    const auto known = state_.globals.find(symbol.name);
    const auto first = said.names.emplace(symbol.name, means.value).first;
    const std::uint64_t other = known != state_.globals.end() ? known->second : first->second;
    if (other != means.value || first->second != means.value) {
      return fmt::format("it refers to {:#x} for {}, others to {:#x}", means.value, symbol.name,
                         other != means.value ? other : first->second);
    }
    return file_.is_mapped(means.value)
               ? ""
               : fmt::format("it refers to {:#x} for {}, which is outside of the program",
                             means.value, symbol.name);
  }
  const ObjectSection& target = unit.plain->section_of(symbol);
  if (target.is_mergeable()) {
    if (!symbol.is_section()) {
      return check_content(unit, symbol, static_cast<std::int64_t>(symbol.value), means.value);
    }
    // Of a section symbol the addend selects the piece; the linker has put the piece's address in.
    if (is_pc_relative(relocation.type)) return "";
    return check_content(unit, symbol, relocation.addend,
                         means.value + static_cast<std::uint64_t>(relocation.addend));
  }
  // Another unit's copy of this COMDAT function refers to that unit's own static symbols.
  if (!from.group.empty() && symbol.is_local()) return "";
  const std::uint64_t base = means.value - (symbol.is_section() ? 0 : symbol.value);
  // Of what may be another unit's copy nothing is known.
  if (!target.group.empty() || symbol.bind == STB_WEAK) return "";
  const auto& section = unit.sections[symbol.section];
  const std::uint64_t first = said.bases.emplace(symbol.section, base).first->second;
  const std::uint64_t known = section.base.value_or(first);
  if (known != base || first != base) {
    return fmt::format("it refers to {:#x} for {}, which is at {:#x}", means.value, name_of(symbol),
                       (known != base ? known : first) + (means.value - base));
  }
  return "";
}

std::optional<Difference> Prover::check_references(UnitState& unit, const ObjectSection& section,
                                                   const std::vector<Reference>& references) const {
  Said said;
  for (const Reference& reference : references) {
    const Relocation& relocation = section.relocations[reference.relocation];
    std::string why = check(unit, section, relocation, reference, said);
    if (!why.empty()) return Difference{relocation.offset, std::move(why)};
  }
  return std::nullopt;
}

void Prover::set_base(UnitState& unit, std::uint32_t index, std::uint64_t base) {
  PlacedSection& section = unit.sections[index];
  if (section.base) return;
  section.base = base;
  moved_ = true;
}

// What proven bytes refer to is known from now on.
void Prover::commit(UnitState& unit, const ObjectSection& section,
                    const std::vector<Reference>& references) {
  for (const Reference& reference : references) {
    const Relocation& relocation = section.relocations[reference.relocation];
    const ObjectSymbol& symbol = unit.symbol(relocation.symbol);
    const Meaning means = meaning(section, symbol, reference);
    if (means.kind == Meaning::Kind::null) state_.nulls.insert(symbol.name);
    const bool is_tls = means.kind == Meaning::Kind::tls;
    if (!is_tls && means.kind != Meaning::Kind::address) continue;
    if (!is_tls && !file_.plt_target(means.value).empty()) {
      state_.plt_entries.emplace(file_.plt_target(means.value), means.value);
      continue;
    }
    if (!symbol.is_defined()) {
      if (symbol.is_absolute) continue;
      moved_ |=
          (is_tls ? state_.tls_globals : state_.globals).emplace(symbol.name, means.value).second;
      continue;
    }
    const ObjectSection& target = unit.plain->section_of(symbol);
    if (target.is_mergeable()) continue;
    if (!section.group.empty() && symbol.is_local()) continue;
    if (!symbol.is_local()) {
      moved_ |=
          (is_tls ? state_.tls_globals : state_.globals).emplace(symbol.name, means.value).second;
    }
    // What may be another unit's copy has to be compared before it is believed.
    if (!target.group.empty() || symbol.bind == STB_WEAK) continue;
    set_base(unit, symbol.section, means.value - (symbol.is_section() ? 0 : symbol.value));
  }
}

bool Prover::accept(UnitState& unit, std::uint32_t index, std::uint64_t base,
                    std::vector<Reference> references) {
  const ObjectSection& section = unit.plain->sections()[index];
  PlacedSection& placed = unit.sections[index];
  if (auto difference = check_references(unit, section, references)) {
    placed.difference = std::move(difference);
    return false;
  }
  placed.base = base;
  placed.is_proven = true;
  placed.difference.reset();
  placed.candidates.clear();
  moved_ = true;
  for (std::uint32_t symbol_index : section.symbols) {
    const ObjectSymbol& symbol = unit.symbol(symbol_index);
    if (!symbol.is_local()) state_.globals.emplace(symbol.name, base + symbol.value);
  }
  commit(unit, section, references);
  placed.references = std::move(references);
  return true;
}

void Prover::prove_section(UnitState& unit, std::uint32_t index, bool by_bytes) {
  const ObjectSection& section = unit.plain->sections()[index];
  PlacedSection& placed = unit.sections[index];
  std::vector<std::uint64_t> candidates;
  if (placed.base) {
    candidates = {*placed.base};
  } else {
    candidates = by_bytes ? candidates_by_bytes(section) : candidates_by_name(unit, index);
  }
  std::vector<Proof> proofs;
  for (std::uint64_t candidate : candidates) {
    Proof proof{candidate, {}};
    auto difference = compare_at(section, candidate, proof.references);
    if (!difference) difference = check_references(unit, section, proof.references);
    if (!difference) {
      proofs.push_back(std::move(proof));
    } else if (!placed.difference || difference->offset > placed.difference->offset) {
      placed.difference = std::move(difference);
    }
  }
  if (proofs.size() == 1) {
    accept(unit, index, proofs[0].base, std::move(proofs[0].references));
  } else if (proofs.size() > 1) {
    placed.candidates.clear();
    for (const Proof& proof : proofs) placed.candidates.push_back(proof.base);
  }
}

// Of equal static functions of several units: what the others have proven meanwhile decides.
void Prover::prove_pending() {
  do {
    moved_ = false;
    for (UnitState& unit : state_.units) {
      for (std::uint32_t i = 1; i < unit.sections.size(); ++i) {
        PlacedSection& placed = unit.sections[i];
        if (placed.is_proven || placed.candidates.empty()) continue;
        const ObjectSection& section = unit.plain->sections()[i];
        if (placed.base) placed.candidates = {*placed.base};
        std::vector<Proof> proofs;
        for (std::uint64_t candidate : placed.candidates) {
          Proof proof{candidate, {}};
          if (compare_at(section, candidate, proof.references)) continue;
          if (check_references(unit, section, proof.references)) continue;
          proofs.push_back(std::move(proof));
        }
        placed.candidates.clear();
        for (const Proof& proof : proofs) placed.candidates.push_back(proof.base);
        if (proofs.size() == 1) accept(unit, i, proofs[0].base, std::move(proofs[0].references));
      }
    }
  } while (moved_);
}

// Each function by itself: where the section as a whole is not the image's, some of it may be, and
// the message names the one that is not.
void Prover::prove_functions(UnitState& unit, std::uint32_t index) {
  const ObjectSection& section = unit.plain->sections()[index];
  for (std::uint32_t symbol_index : section.symbols) {
    const ObjectSymbol& symbol = unit.symbol(symbol_index);
    if (!symbol.is_function() || symbol.size == 0) continue;
    if (!elf::within(symbol.value, symbol.size, section.bytes.size())) continue;
    std::uint32_t first = 0;
    const ObjectSection part = slice(section, symbol.value, symbol.size, first);
    for (const elf::FoundSymbol& found : file_.symbols.find_all(symbol.name)) {
      if (!found.is_function()) continue;
      std::vector<Reference> references;
      if (compare_at(part, found.address, references)) continue;
      if (check_references(unit, part, references)) continue;
      unit.lone_functions.emplace(symbol_index, found.address);
      commit(unit, part, references);
      break;
    }
  }
}

void Prover::prove_code() {
  for (const LoaderRelocation& relocation : file_.relocations) {
    if (relocation.type == R_X86_64_JUMP_SLOT) {
      // .got.plt begins with three words that are the loader's.
      got_ = relocation.address - 24;
      break;
    }
  }
  if (const auto got = file_.symbols.find("_GLOBAL_OFFSET_TABLE_")) got_ = got->address;

  const auto for_each_open = [this](auto&& f) {
    for (UnitState& unit : state_.units) {
      if (!unit.plain) continue;
      for (std::uint32_t i = 1; i < unit.sections.size(); ++i) {
        const ObjectSection& section = unit.plain->sections()[i];
        if (!section.is_code() || !is_comparable(section) || section.size == 0) continue;
        if (!unit.sections[i].is_proven && unit.sections[i].candidates.empty()) f(unit, i);
      }
    }
  };
  for_each_open([this](UnitState& unit, std::uint32_t i) { prove_section(unit, i, false); });
  prove_pending();
  // Once more, as long as what was proven meanwhile gives addresses to names that the image has not.
  const auto by_name = [&] {
    do {
      moved_ = false;
      for_each_open([this](UnitState& unit, std::uint32_t i) { prove_section(unit, i, false); });
    } while (moved_);
  };
  by_name();
  if (!file_.symbols.complete()) {
    for_each_open([this](UnitState& unit, std::uint32_t i) { prove_section(unit, i, true); });
    by_name();
  }
  prove_pending();
  for_each_open([this](UnitState& unit, std::uint32_t i) { prove_functions(unit, i); });
}

// Data has its place from the code that refers to it, or by its global names; what is there in the
// file is compared, and its pointers lead on.
void Prover::prove_data() {
  do {
    moved_ = false;
    for (UnitState& unit : state_.units) {
      if (!unit.plain) continue;
      for (std::uint32_t i = 1; i < unit.sections.size(); ++i) {
        const ObjectSection& section = unit.plain->sections()[i];
        PlacedSection& placed = unit.sections[i];
        if (placed.is_proven || section.is_code() || section.size == 0) continue;
        if (!is_comparable(section) || section.is_mergeable()) continue;
        if (!placed.base) {
          for (std::uint32_t symbol_index : section.symbols) {
            const ObjectSymbol& symbol = unit.symbol(symbol_index);
            const auto& known = section.is_thread_local() ? state_.tls_globals : state_.globals;
            if (symbol.is_local() || symbol.bind == STB_WEAK) continue;
            const auto found = known.find(symbol.name);
            if (found != known.end()) {
              placed.base = found->second - symbol.value;
            } else if (const auto in_image = file_.symbols.find(symbol.name);
                       in_image && in_image->bind != STB_LOCAL) {
              placed.base = in_image->address - symbol.value;
            } else {
              continue;
            }
            break;
          }
        }
        if (!placed.base) {
          if (!section.group.empty() && !section.symbols.empty()) {
            const auto found = state_.globals.find(unit.symbol(section.symbols[0]).name);
            if (found != state_.globals.end()) placed.base = found->second;
          }
          if (!placed.base) continue;
        }
        if (section.type == SHT_NOBITS || section.is_thread_local()) {
          placed.is_proven = true;
          moved_ = true;
          continue;
        }
        std::vector<Reference> references;
        auto difference = compare_at(section, *placed.base, references);
        if (!difference) difference = check_references(unit, section, references);
        if (difference) {
          placed.difference = std::move(difference);
          continue;
        }
        accept(unit, i, *placed.base, std::move(references));
      }
    }
  } while (moved_);
}

// A weak definition that another unit has a strong one of: the program's symbol is that one.
bool Prover::is_overridden(const UnitState& unit, const ObjectSymbol& symbol) const {
  if (symbol.bind != STB_WEAK || !symbol.is_defined()) return false;
  if (!unit.plain->section_of(symbol).group.empty()) return false;
  return std::ranges::any_of(state_.units, [&](const UnitState& other) {
    if (&other == &unit || !other.plain) return false;
    const auto found = other.plain_by_name.find(symbol.name);
    return found != other.plain_by_name.end() &&
           std::ranges::any_of(found->second, [&](std::uint32_t y) {
             return other.symbol(y).is_defined() && other.symbol(y).bind == STB_GLOBAL;
           });
  });
}

bool Prover::is_overridden_section(const UnitState& unit, std::uint32_t index) const {
  const auto& symbols = unit.plain->sections()[index].symbols;
  bool is_any = false;
  for (const std::uint32_t y : symbols) {
    if (!unit.symbol(y).is_function()) continue;
    if (!is_overridden(unit, unit.symbol(y))) return false;
    is_any = true;
  }
  return is_any;
}

void Prover::list_functions(UnitState& unit) {
  const auto symbols = unit.plain->symbols();
  for (std::uint32_t i = 1; i < symbols.size(); ++i) {
    const ObjectSymbol& symbol = symbols[i];
    if (!symbol.is_defined() || !symbol.is_function()) continue;
    const ObjectSection& section = unit.plain->section_of(symbol);
    const PlacedSection& placed = unit.sections[symbol.section];
    PlacedFunction function;
    function.symbol = i;
    function.size = symbol.size;
    function.name = symbol.name;
    const auto lone = unit.lone_functions.find(i);
    if (placed.is_proven) {
      function.match = PlacedFunction::Match::proven;
      function.address = *placed.base + symbol.value;
    } else if (lone != unit.lone_functions.end()) {
      function.match = PlacedFunction::Match::proven;
      function.address = lone->second;
    } else if (is_overridden(unit, symbol)) {
      function.match = PlacedFunction::Match::absent;
    } else if (!section.group.empty() || symbol.bind == STB_WEAK) {
      const auto kept = state_.globals.find(symbol.name);
      if (kept != state_.globals.end()) function.address = kept->second;
      const auto found = file_.symbols.find(symbol.name);
      if (function.address == 0 && found) function.address = found->address;
      function.match =
          function.address == 0 ? PlacedFunction::Match::absent : PlacedFunction::Match::discarded;
    } else if (placed.candidates.empty() && !placed.difference) {
      function.match = PlacedFunction::Match::absent;
    }
    unit.function_by_name.emplace(symbol.name, unit.functions.size());
    unit.functions.push_back(std::move(function));
  }
}

// Two functions at one address are one to whoever jumps there: the linker has folded them together.
// Two names for one function of one object are no such thing.
void Prover::find_shared() {
  // What of which object section begins at an address; a COMDAT function is the same in all units.
  std::unordered_map<std::uint64_t, std::set<std::string>> owners;
  for (const UnitState& unit : state_.units) {
    if (!unit.is_contained) continue;
    for (const PlacedFunction& function : unit.functions) {
      if (function.match != PlacedFunction::Match::proven || function.size == 0) continue;
      const ObjectSymbol& symbol = unit.symbol(function.symbol);
      const ObjectSection& section = unit.plain->section_of(symbol);
      owners[function.address].insert(
          !section.group.empty()
              ? std::string(section.group)
              : fmt::format("{}:{}:{:x}", file_symbol(*unit.plain), section.name, symbol.value));
    }
  }
  for (UnitState& unit : state_.units) {
    if (!unit.is_contained) continue;
    for (PlacedFunction& function : unit.functions) {
      if (function.match != PlacedFunction::Match::proven) continue;
      function.is_shared = owners[function.address].size() > 1;
      if (function.is_shared) continue;
      // Names that the object does not have there: folded with something outside of the build.
      const auto [begin, end] = file_.by_address.equal_range(function.address);
      for (auto at = begin; at != end && !function.is_shared; ++at) {
        const elf::FoundSymbol named = file_.symbols[at->second];
        if (!named.is_function() || named.size == 0) continue;
        const auto own = unit.plain_by_name.find(named.name);
        function.is_shared =
            own == unit.plain_by_name.end() && named.bind != STB_WEAK && named.version.empty();
      }
    }
  }
}

void Prover::refuse(UnitState& unit) {
  // Its machine code may well be there, and copies of it where it was inlined into other units.
  if (unit.plain->has_lto_code()) {
    Refusal refusal;
    refusal.kind = "lto";
    refusal.unit = unit.unit->output;
    refusal.text = fmt::format(
        "{} was compiled for link-time optimisation (-flto): functions of it may be inlined in "
        "other units of {}",
        unit.unit->output, file_.path);
    refusal.advice = "build program and patch without -flto";
    state_.refusals.push_back(std::move(refusal));
    return;
  }
  for (std::uint32_t i = 1; i < unit.sections.size(); ++i) {
    const PlacedSection& placed = unit.sections[i];
    const ObjectSection& section = unit.plain->sections()[i];
    if (placed.is_proven || !section.group.empty() || is_overridden_section(unit, i)) continue;
    if (!placed.difference) continue;
    Refusal refusal;
    refusal.unit = unit.unit->output;
    Difference difference = *placed.difference;
    std::string_view name = section.name;
    std::uint64_t offset = difference.offset;
    for (std::uint32_t symbol_index : section.symbols) {
      const ObjectSymbol& symbol = unit.symbol(symbol_index);
      if (symbol.value > difference.offset || symbol.size == 0) continue;
      name = symbol.name;
      offset = difference.offset - symbol.value;
    }
    refusal.symbol = name;
    const auto at = file_.symbols.find(name);
    const std::string address = at ? fmt::format(" ({:#x})", at->address + offset) : "";
    refusal.kind = "bytes_differ";
    refusal.text = fmt::format("{}+{:#x}{}: not the code of {}: {}", name, offset, address,
                               file_.path, difference.text);
    refusal.advice =
        fmt::format("build with the program's own sources, flags and compiler (here {})",
                    unit.plain->compiler());
    state_.refusals.push_back(std::move(refusal));
    return;
  }
}

// A tree builds more than one program, and the same source more than once: which objects are in this
// one?
void Prover::judge_units() {
  std::unordered_set<std::string_view> proven_names;
  // The same source compiled twice, for two programs, to the same code: one of them counts.
  std::set<std::string> twins;
  // Code of units that are in it whole. Where another unit has one function like it, and else nothing in
  // the image, that does not make it a part.
  std::unordered_set<std::uint64_t> taken;
  const auto code_of = [&](const UnitState& unit, const auto& visit) {
    for (std::uint32_t i = 1; i < unit.sections.size(); ++i) {
      const ObjectSection& section = unit.plain->sections()[i];
      if (section.is_code() && section.group.empty()) visit(section, unit.sections[i]);
    }
  };
  for (const UnitState& unit : state_.units) {
    if (!unit.plain) continue;
    bool is_whole = true;
    code_of(unit, [&](const ObjectSection& section, const PlacedSection& placed) {
      is_whole &= placed.is_proven || section.size == 0;
    });
    if (!is_whole) continue;
    code_of(unit, [&](const ObjectSection& section, const PlacedSection& placed) {
      if (section.size == 0) return;
      taken.insert(*placed.base);
      for (const std::uint32_t symbol : section.symbols) {
        taken.insert(*placed.base + unit.symbol(symbol).value);
      }
    });
  }
  for (UnitState& unit : state_.units) {
    if (!unit.plain) continue;
    list_functions(unit);
    std::string places;
    std::uint64_t proven = 0;
    std::uint64_t own = 0;
    std::uint64_t all = 0;
    bool has_data = false;
    for (std::uint32_t i = 1; i < unit.sections.size(); ++i) {
      has_data |= unit.sections[i].is_proven && unit.plain->sections()[i].type != SHT_NOBITS;
    }
    code_of(unit, [&](const ObjectSection& section, const PlacedSection& placed) {
      all += section.size;
      if (!placed.is_proven || section.size == 0) return;
      proven += section.size;
      if (!taken.contains(*placed.base)) own += section.size;
      places += fmt::format(" {}@{:x}", section.name, *placed.base);
    });
    for (const auto& [symbol, address] : unit.lone_functions) {
      const std::uint64_t size = unit.symbol(symbol).size;
      proven += size;
      if (!taken.contains(address)) own += size;
    }
    if (proven < all) proven = own;
    unit.is_contained = all == 0 ? has_data : proven * 2 >= all;
    if (!places.empty() && unit.is_contained) {
      unit.is_contained = twins.insert(std::string(file_symbol(*unit.plain)) + places).second;
    }
    if (!unit.is_contained) continue;
    for (const PlacedFunction& function : unit.functions) {
      if (function.match == PlacedFunction::Match::proven &&
          !unit.symbol(function.symbol).is_local()) {
        proven_names.insert(unit.symbol(function.symbol).name);
      }
    }
  }
  find_shared();

  for (UnitState& unit : state_.units) {
    if (!unit.plain || !unit.unit->is_changed()) continue;
    if (unit.is_contained) {
      refuse(unit);
      continue;
    }
    // Another program's, unless the image has its functions and no other unit has.
    std::size_t globals = 0;
    std::size_t in_image = 0;
    for (const PlacedFunction& function : unit.functions) {
      const ObjectSymbol& symbol = unit.symbol(function.symbol);
      if (symbol.is_local() || symbol.bind == STB_WEAK) continue;
      ++globals;
      const bool is_there = file_.symbols.find(symbol.name).has_value();
      in_image += is_there && !proven_names.contains(symbol.name) ? 1 : 0;
    }
    if (globals != 0 && in_image * 2 >= globals) refuse(unit);
  }
}

}  // namespace

Result<Placement> Placement::compute(const RunningFile& image, std::span<const Unit> units) {
  auto state = std::make_unique<State>();
  state->running = &image;
  state->file = &image.state();
  state->units.resize(units.size());
  for (std::size_t i = 0; i < units.size(); ++i) {
    UnitState& unit = state->units[i];
    unit.unit = &units[i];
    if (units[i].is_new()) continue;
    auto plain = Object::read(units[i].old_objects.plain);
    if (!plain) {
      const bool is_lto = plain.error().code == EILSEQ;
      if (!is_lto) return pass(plain);
      if (!units[i].is_changed()) continue;
      Refusal refusal;
      refusal.kind = "lto";
      refusal.unit = units[i].output;
      refusal.text = plain.error().detail;
      refusal.advice = "build program and patch without -flto";
      state->refusals.push_back(std::move(refusal));
      continue;
    }
    unit.plain = std::move(*plain);
    unit.sections.resize(unit.plain->sections().size());
    const auto symbols = unit.plain->symbols();
    for (std::uint32_t k = 1; k < symbols.size(); ++k) {
      if (symbols[k].name.empty() || symbols[k].type == STT_FILE) continue;
      unit.plain_by_name[symbols[k].name].push_back(k);
    }
  }
  Prover prover(*state);
  prover.prove_code();
  prover.prove_data();
  prover.judge_units();

  for (UnitState& unit : state->units) {
    if (unit.unit->old_objects.shadow.empty() || !unit.is_contained || !unit.unit->is_changed()) {
      continue;
    }
    auto shadow = Object::read(unit.unit->old_objects.shadow);
    if (!shadow) return pass(shadow);
    unit.shadow = std::move(*shadow);
    const auto symbols = unit.shadow->symbols();
    for (std::uint32_t k = 1; k < symbols.size(); ++k) {
      if (symbols[k].name.empty() || symbols[k].type == STT_FILE) continue;
      unit.shadow_by_name[symbols[k].name].push_back(k);
    }
  }
  return Placement(std::move(state));
}

}  // namespace molt::builder
