#include "builder/compare.hpp"

#include <algorithm>
#include <cctype>
#include <cstring>
#include <iterator>

#include "arch/x86_64/instruction.hpp"

namespace molt::builder {
namespace {

bool is_pc_relative(std::uint32_t type) {
  switch (type) {
    case R_X86_64_PC32:
    case R_X86_64_PLT32:
    case R_X86_64_GOTPCREL:
    case R_X86_64_GOTPCRELX:
    case R_X86_64_REX_GOTPCRELX:
    case R_X86_64_GOTTPOFF:
    case R_X86_64_TLSGD:
    case R_X86_64_TLSLD:
    case R_X86_64_PC64:
      return true;
    default:
      return false;
  }
}

template <class T>
std::optional<T> read(std::span<const std::byte> bytes, std::uint64_t at) {
  if (at > bytes.size() || bytes.size() - at < sizeof(T)) return std::nullopt;
  T value;
  std::memcpy(&value, bytes.data() + at, sizeof value);
  return value;
}

bool starts_with(std::string_view text, std::string_view begin) { return text.starts_with(begin); }

// Not the covariant ones (_ZTc), which are functions of their own.
bool is_adjusting_thunk(std::string_view name) {
  return starts_with(name, "_ZTh") || starts_with(name, "_ZTv");
}

// Sections that say something about others, and are not compared as data.
bool is_about_others(std::string_view name) {
  return starts_with(name, ".eh_frame") || starts_with(name, ".gcc_except_table") ||
         starts_with(name, ".note") || starts_with(name, ".comment") ||
         starts_with(name, "__patchable_function_entries") || starts_with(name, ".debug");
}

bool is_constructor_table(std::string_view name) {
  return starts_with(name, ".init_array") || starts_with(name, ".ctors") ||
         starts_with(name, ".fini_array") || starts_with(name, ".dtors") ||
         starts_with(name, ".preinit_array");
}

}  // namespace

bool is_cold(std::string_view name) {
  return name.ends_with(".cold") || name.find(".cold.") != std::string_view::npos;
}

bool is_clone(std::string_view name) {
  for (std::string_view mark :
       {".constprop", ".isra", ".part", ".llvm.", ".lto_priv", ".localalias"}) {
    if (name.find(mark) != std::string_view::npos) return true;
  }
  return is_cold(name);
}

std::string_view without_number(std::string_view name) {
  const std::size_t dot = name.rfind('.');
  if (dot == std::string_view::npos || dot + 1 == name.size() || dot == 0) return name;
  const bool is_number =
      std::all_of(name.begin() + static_cast<std::ptrdiff_t>(dot) + 1, name.end(),
                  [](unsigned char c) { return std::isdigit(c) != 0; });
  return is_number ? name.substr(0, dot) : name;
}

// --- View ---------------------------------------------------------------------------------------------

View::View(const Object& object) : object_(object), owners_(object.sections().size()) {
  find_owners();
  find_frames();
}

void View::find_owners() {
  for (std::uint32_t i = 1; i < object_.sections().size(); ++i) {
    const ObjectSection& s = section(i);
    if (!s.is_allocated() || s.is_mergeable() || is_about_others(s.name)) continue;
    std::uint32_t best = 0;
    bool is_one = true;
    for (std::uint32_t y : s.symbols) {
      const ObjectSymbol& symbol = object_.symbols()[y];
      if (symbol.is_section() || symbol.name.empty() || starts_with(symbol.name, ".L")) continue;
      if (symbol.value != 0) {
        // A second function or variable; labels without a size do not make one.
        const bool is_thunk = s.is_code() && is_adjusting_thunk(symbol.name);
        if (is_thunk) with_thunks_.insert(i);
        is_one = is_one && (symbol.size == 0 || is_thunk);
        continue;
      }
      // Of aliases the global one, then the one with a size, then the first by name.
      const auto rank = [&](std::uint32_t index) {
        const ObjectSymbol& one = object_.symbols()[index];
        return std::tuple(one.is_local(), one.size == 0, one.name);
      };
      if (best == 0 || rank(y) < rank(best)) best = y;
    }
    if (is_one) owners_[i] = best;
  }
}

std::vector<std::uint32_t> View::thunks(std::uint32_t index) const {
  std::vector<std::uint32_t> found;
  if (!with_thunks_.contains(index)) return found;
  std::ranges::copy_if(section(index).symbols, std::back_inserter(found), [this](std::uint32_t y) {
    return symbol(y).value != 0 && symbol(y).size != 0 && is_adjusting_thunk(symbol(y).name);
  });
  return found;
}

std::string_view View::name(std::uint32_t index) const {
  const std::uint32_t owner = owners_[index];
  return owner != 0 ? symbol(owner).name : section(index).name;
}

bool View::is_constant(std::uint32_t index) const {
  const ObjectSection& s = section(index);
  if (!s.is_allocated() || s.is_code() || s.is_thread_local()) return false;
  return !s.is_writable() || starts_with(s.name, ".data.rel.ro") || is_address_table(index);
}

// clang's, of the types that exception tables name (DW.stub): variables have sections of their own.
bool View::is_address_table(std::uint32_t index) const {
  const ObjectSection& s = section(index);
  return s.name == ".data" && s.size != 0 && s.relocations.size() * 8 == s.size &&
         std::ranges::all_of(s.symbols, [this](std::uint32_t y) {
           return symbol(y).is_section() || starts_with(symbol(y).name, ".L");
         });
}

std::int64_t View::to_end(std::uint32_t index, std::uint64_t field) const {
  const ObjectSection& s = section(index);
  if (!s.is_code()) return 0;
  auto [at, is_new] = ends_.try_emplace(index);
  if (is_new) {
    // For each byte, how far the end of its instruction is.
    at->second.resize(s.bytes.size(), 4);
    std::vector<std::uint64_t> starts{0};
    for (std::uint32_t y : s.symbols) {
      if (symbol(y).is_function()) starts.push_back(symbol(y).value);
    }
    std::sort(starts.begin(), starts.end());
    starts.push_back(s.bytes.size());
    for (std::size_t k = 0; k + 1 < starts.size(); ++k) {
      for (std::uint64_t pc = starts[k]; pc < starts[k + 1];) {
        arch::Instruction instruction;
        if (!arch::decode(pc, s.bytes.subspan(pc), instruction) || instruction.length == 0) break;
        for (std::uint64_t b = pc; b < pc + instruction.length && b < s.bytes.size(); ++b) {
          at->second[b] = static_cast<std::uint8_t>(pc + instruction.length - b);
        }
        pc += instruction.length;
      }
    }
  }
  return field < at->second.size() ? at->second[field] : 4;
}

Referent View::reference(std::uint32_t in, const Relocation& r) const {
  const ObjectSymbol& target = symbol(r.symbol);
  Referent ref;
  ref.offset = r.addend;
  if (is_pc_relative(r.type)) {
    if (section(in).is_code()) {
      ref.offset += to_end(in, r.offset);
    } else if (target.is_defined() && (section(target.section).is_mergeable())) {
      // A table of distances from its own begin.
      ref.offset -= static_cast<std::int64_t>(r.offset);
    }
  }
  if (!target.is_defined()) {
    ref.symbol = r.symbol;
    return ref;
  }
  ref.section = target.section;
  const bool is_place =
      target.is_section() || (target.is_local() && starts_with(target.name, ".L"));
  if (is_place) {
    if (!target.is_section()) ref.offset += static_cast<std::int64_t>(target.value);
    // The section of one function or variable: a place in it, whatever the offset.
    ref.symbol = owners_[target.section];
    const bool is_many = ref.symbol == 0 || with_thunks_.contains(target.section);
    if (is_many && !section(target.section).is_mergeable()) {
      for (std::uint32_t y : section(target.section).symbols) {
        const ObjectSymbol& s = symbol(y);
        const auto at = static_cast<std::uint64_t>(ref.offset);
        if (s.is_section() || s.name.empty() || starts_with(s.name, ".L")) continue;
        if (at >= s.value && at - s.value < std::max<std::uint64_t>(s.size, 1)) {
          ref.symbol = y;
          ref.offset -= static_cast<std::int64_t>(s.value);
          break;
        }
      }
    }
    return ref;
  }
  ref.symbol = r.symbol;
  if (section(target.section).is_mergeable()) {
    ref.symbol = 0;
    ref.offset += static_cast<std::int64_t>(target.value);
  }
  return ref;
}

std::span<const std::byte> View::merged(std::uint32_t index, std::int64_t offset) const {
  const ObjectSection& s = section(index);
  const auto unit = std::max<std::uint64_t>(s.entry_size, 1);
  if (offset < 0 || static_cast<std::uint64_t>(offset) >= s.bytes.size()) return {};
  auto at = static_cast<std::uint64_t>(offset);
  if (!s.has_strings()) {
    at -= at % unit;
    return s.bytes.subspan(at, std::min(unit, s.bytes.size() - at));
  }
  for (std::uint64_t end = at; end + unit <= s.bytes.size(); end += unit) {
    const auto one = s.bytes.subspan(end, unit);
    if (std::ranges::all_of(one, [](std::byte b) { return b == std::byte{}; })) {
      return s.bytes.subspan(at, end + unit - at);
    }
  }
  return s.bytes.subspan(at);
}

void View::find_frames() {
  std::map<std::uint32_t, std::set<std::uint64_t>> table_begins;
  for (std::uint32_t i = 1; i < object_.sections().size(); ++i) {
    const ObjectSection& s = section(i);
    if (s.name != ".eh_frame") continue;
    std::size_t next_relocation = 0;
    for (std::uint64_t at = 0;;) {
      const auto length = read<std::uint32_t>(s.bytes, at);
      const auto id = read<std::uint32_t>(s.bytes, at + 4);
      if (!length || *length == 0 || !id || *length > s.bytes.size() - at - 4) break;
      const std::uint64_t size = *length + 4;
      if (*id != 0) {
        Frame frame;
        frame.frames = i;
        frame.offset = at;
        frame.size = size;
        frame.common = at + 4 - *id;
        for (; next_relocation < s.relocations.size(); ++next_relocation) {
          const Relocation& r = s.relocations[next_relocation];
          if (r.offset >= at + size) break;
          if (r.offset < at) continue;
          const ObjectSymbol& target = symbol(r.symbol);
          const auto value =
              static_cast<std::uint64_t>(static_cast<std::int64_t>(target.value) + r.addend);
          if (r.offset == at + 8) {
            frame.function = target.section;
            frame.begin = value;
          } else if (target.is_defined()) {
            frame.table = target.section;
            frame.table_begin = value;
            table_begins[target.section].insert(value);
          }
        }
        if (frame.function != 0) frames_.push_back(frame);
      }
      at += size;
    }
  }
  for (Frame& frame : frames_) {
    if (frame.table == 0) continue;
    const auto& begins = table_begins[frame.table];
    const auto next = begins.upper_bound(frame.table_begin);
    frame.table_end = next != begins.end() ? *next : section(frame.table).size;
  }
}

std::vector<const View::Frame*> View::frames_of(std::uint32_t function_section) const {
  std::vector<const Frame*> found;
  for (const Frame& frame : frames_) {
    if (frame.function == function_section) found.push_back(&frame);
  }
  return found;
}

// --- Comparison ------------------------------------------------------------------------------------------

Comparison::Comparison(const View& old_view, const View& new_view,
                       const std::map<std::uint32_t, std::uint32_t>& paired,
                       const std::set<std::uint32_t>& unpaired)
    : old_(old_view), new_(new_view) {
  pair_symbols(paired, unpaired);
  for (const auto& [n, o] : sections_) compare({n, o});
  settle();
  for (std::uint32_t i = 1; i < new_.object().sections().size(); ++i) {
    const ObjectSection& s = new_.section(i);
    if (!s.is_allocated() || s.size == 0 || is_about_others(s.name)) continue;
    if (s.is_code()) {
      if (old_section(i) == 0) {
        added.insert(i);
      } else if (!same(i)) {
        changed.insert(i);
      }
    } else if (s.is_writable() && !new_.is_constant(i) && !is_constructor_table(s.name)) {
      if (old_section(i) != 0 && !same(i)) data_changed.push_back(i);
    }
  }
  // A function without its cold part is none.
  for (std::uint32_t i : std::vector(changed.begin(), changed.end())) {
    const std::string_view name = new_.name(i);
    if (!is_cold(name)) continue;
    const std::uint32_t parent =
        new_.object().find_symbol(std::string(name.substr(0, name.find(".cold"))));
    if (parent == 0 || !new_.symbol(parent).is_defined()) continue;
    const std::uint32_t section = new_.symbol(parent).section;
    if (old_section(section) != 0) changed.insert(section);
  }
}

void Comparison::pair_symbols(const std::map<std::uint32_t, std::uint32_t>& paired,
                              const std::set<std::uint32_t>& unpaired) {
  std::map<std::string_view, std::uint32_t> by_name;
  const auto is_named = [](const ObjectSymbol& s) {
    return s.is_defined() && !s.is_section() && !s.name.empty() && !starts_with(s.name, ".L") &&
           s.type != STT_FILE;
  };
  for (std::uint32_t y = 1; y < old_.object().symbols().size(); ++y) {
    if (is_named(old_.symbol(y))) by_name.try_emplace(old_.symbol(y).name, y);
  }
  for (std::uint32_t y = 1; y < new_.object().symbols().size(); ++y) {
    const ObjectSymbol& s = new_.symbol(y);
    if (!is_named(s) || unpaired.contains(y)) continue;
    if (const auto at = paired.find(y); at != paired.end()) {
      symbols_[y] = at->second;
      continue;
    }
    // A number says nothing: constants with one are compared by content.
    if (s.is_local() && !s.is_function() && without_number(s.name) != s.name) continue;
    if (const auto at = by_name.find(s.name); at != by_name.end()) symbols_[y] = at->second;
  }
  for (std::uint32_t i = 1; i < new_.object().sections().size(); ++i) {
    const ObjectSection& s = new_.section(i);
    if (!s.is_allocated() || s.is_mergeable() || is_about_others(s.name)) continue;
    if (const std::uint32_t owner = new_.owner(i); owner != 0) {
      const std::uint32_t twin = old_symbol(owner);
      if (twin != 0 && old_.symbol(twin).is_defined() &&
          old_.owner(old_.symbol(twin).section) != 0) {
        sections_[i] = old_.symbol(twin).section;
      }
      continue;
    }
    // What nobody owns, or many do: tables of one function, hand-written code, constructor tables.
    const std::uint32_t twin = old_.object().find_section(std::string(s.name));
    if (twin != 0 && old_.owner(twin) == 0) sections_[i] = twin;
  }
}

std::uint32_t Comparison::old_symbol(std::uint32_t new_symbol) const {
  const auto at = symbols_.find(new_symbol);
  return at == symbols_.end() ? 0 : at->second;
}

std::uint32_t Comparison::old_section(std::uint32_t new_section) const {
  const auto at = sections_.find(new_section);
  return at == sections_.end() ? 0 : at->second;
}

bool Comparison::same(std::uint32_t new_section) const {
  const auto at = sections_.find(new_section);
  if (at == sections_.end()) return false;
  const auto node = nodes_.find({at->first, at->second});
  return node != nodes_.end() && node->second.equal;
}

void Comparison::compare(Pair first) {
  std::vector<Pair> todo{first};
  while (!todo.empty()) {
    const Pair pair = todo.back();
    todo.pop_back();
    if (nodes_.contains(pair)) continue;
    Node node;
    const ObjectSection& a = new_.section(pair.new_section);
    const ObjectSection& b = old_.section(pair.old_section);
    node.equal = a.type == b.type && a.flags == b.flags && a.size == b.size &&
                 std::ranges::equal(a.bytes, b.bytes) &&
                 a.relocations.size() == b.relocations.size();
    for (std::size_t i = 0; node.equal && i < a.relocations.size(); ++i) {
      node.equal = compare_reference(pair, a.relocations[i], b.relocations[i], node);
    }
    if (node.equal && a.is_code()) node.equal = compare_frames(pair, node);
    for (const Pair& need : node.needs) todo.push_back(need);
    nodes_.emplace(pair, std::move(node));
  }
}

bool Comparison::compare_reference(Pair pair, const Relocation& a, const Relocation& b,
                                   Node& node) {
  if (a.type != b.type || a.offset != b.offset) return false;
  const Referent n = new_.reference(pair.new_section, a), o = old_.reference(pair.old_section, b);
  if ((n.section == 0) != (o.section == 0)) return false;
  if (n.section == 0) {
    return n.offset == o.offset && new_.symbol(n.symbol).name == old_.symbol(o.symbol).name;
  }
  const ObjectSection& ns = new_.section(n.section);
  const ObjectSection& os = old_.section(o.section);
  if (ns.is_mergeable() != os.is_mergeable()) return false;
  if (ns.is_mergeable()) {
    const bool same_place =
        ns.has_strings() ||
        static_cast<std::uint64_t>(n.offset) % std::max<std::uint64_t>(ns.entry_size, 1) ==
            static_cast<std::uint64_t>(o.offset) % std::max<std::uint64_t>(os.entry_size, 1);
    return same_place &&
           std::ranges::equal(new_.merged(n.section, n.offset), old_.merged(o.section, o.offset));
  }
  if (n.offset != o.offset) return false;
  if (new_.is_constant(n.section)) {
    if (!old_.is_constant(o.section)) return false;
    // By name, or by content where there is none, or where it is a number.
    if (n.symbol != 0 && o.symbol != 0 && old_symbol(n.symbol) != o.symbol) {
      const bool is_numbered =
          old_symbol(n.symbol) == 0 &&
          without_number(new_.symbol(n.symbol).name) == without_number(old_.symbol(o.symbol).name);
      if (!is_numbered) return false;
    }
    if ((n.symbol == 0) != (o.symbol == 0)) return false;
    const Pair need{n.section, o.section};
    if (need != pair) node.needs.insert(need);
    return true;
  }
  // Data that names a place inside of a function, as tables of labels do: those of the function as it is now.
  const bool is_label = ns.is_code() && !new_.section(pair.new_section).is_code() && n.offset != 0;
  if (is_label) node.needs.insert({n.section, o.section});
  if (n.symbol != 0 && o.symbol != 0) return old_symbol(n.symbol) == o.symbol;
  return n.symbol == 0 && o.symbol == 0 && old_section(n.section) == o.section;
}

// Exception tables are elsewhere: the code alone does not show that a handler's type has changed.
bool Comparison::compare_frames(Pair pair, Node& node) {
  const auto a = new_.frames_of(pair.new_section);
  const auto b = old_.frames_of(pair.old_section);
  if (a.size() != b.size()) return false;
  for (std::size_t i = 0; i < a.size(); ++i) {
    if ((a[i]->table == 0) != (b[i]->table == 0)) return false;
    if (a[i]->table == 0) continue;
    if (!compare_range({a[i]->table, b[i]->table}, a[i]->table_begin, a[i]->table_end,
                       b[i]->table_begin, b[i]->table_end, node)) {
      return false;
    }
  }
  return true;
}

bool Comparison::compare_range(Pair pair, std::uint64_t a_begin, std::uint64_t a_end,
                               std::uint64_t b_begin, std::uint64_t b_end, Node& node) {
  const ObjectSection& a = new_.section(pair.new_section);
  const ObjectSection& b = old_.section(pair.old_section);
  if (a_end > a.bytes.size() || b_end > b.bytes.size() || a_end - a_begin != b_end - b_begin ||
      !std::ranges::equal(a.bytes.subspan(a_begin, a_end - a_begin),
                          b.bytes.subspan(b_begin, b_end - b_begin))) {
    return false;
  }
  const auto in = [](const ObjectSection& s, std::uint64_t begin, std::uint64_t end) {
    std::vector<Relocation> found;
    for (const Relocation& r : s.relocations) {
      if (r.offset >= begin && r.offset < end) {
        found.push_back(r);
        found.back().offset -= begin;
      }
    }
    return found;
  };
  const auto ra = in(a, a_begin, a_end), rb = in(b, b_begin, b_end);
  if (ra.size() != rb.size()) return false;
  for (std::size_t i = 0; i < ra.size(); ++i) {
    if (!compare_reference(pair, ra[i], rb[i], node)) return false;
  }
  return true;
}

// What needs something that differs, differs.
void Comparison::settle() {
  for (bool again = true; again;) {
    again = false;
    for (auto& [pair, node] : nodes_) {
      if (!node.equal) continue;
      for (const Pair& need : node.needs) {
        if (nodes_.at(need).equal) continue;
        node.equal = false;
        again = true;
        break;
      }
    }
  }
}

}  // namespace molt::builder
