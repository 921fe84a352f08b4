#include "builder/debug_info.hpp"

#include <dwarf.h>
#include <elfutils/libdw.h>
#include <elfutils/libdwfl.h>
#include <errno.h>

#include <algorithm>
#include <memory>
#include <optional>

namespace molt::builder {
namespace {

constexpr int deepest_type = 12;

struct Reader {
  Dwfl_Module* module;
  DebugInfo& out;
  // Anonymous types by what gives them a name, and types of one name in one scope.
  std::map<std::string, int> seen{};

  struct Scope {
    std::string path;      // "ns::Class::"
    std::string function;  // mangled; "": none
    std::string block;
  };

  // --- attributes ---

  static std::optional<Dwarf_Attribute> attribute(Dwarf_Die* die, unsigned name,
                                                  bool integrate = true) {
    Dwarf_Attribute found;
    if ((integrate ? dwarf_attr_integrate(die, name, &found) : dwarf_attr(die, name, &found)) ==
        nullptr) {
      return std::nullopt;
    }
    return found;
  }
  static std::optional<Dwarf_Word> number(Dwarf_Die* die, unsigned name, bool integrate = true) {
    auto a = attribute(die, name, integrate);
    Dwarf_Word value;
    if (!a || dwarf_formudata(&*a, &value) != 0) return std::nullopt;
    return value;
  }
  static std::string text(Dwarf_Die* die, unsigned name) {
    auto a = attribute(die, name);
    const char* value = a ? dwarf_formstring(&*a) : nullptr;
    return value != nullptr ? value : "";
  }
  static std::string name_of(Dwarf_Die* die) {
    const char* name = dwarf_diename(die);
    return name != nullptr ? name : "";
  }
  static std::string linkage_name(Dwarf_Die* die) {
    std::string name = text(die, DW_AT_linkage_name);
    if (name.empty()) name = text(die, DW_AT_MIPS_linkage_name);
    return name.empty() ? name_of(die) : name;
  }
  static std::string file_of(Dwarf_Die* die) {
    if (const char* file = dwarf_decl_file(die); file != nullptr) return file;
    // clang counts the unit's own file as 0, which libdw takes for none.
    Dwarf_Die unit;
    Dwarf_Files* files;
    std::size_t count;
    if (number(die, DW_AT_decl_file) != 0 || dwarf_diecu(die, &unit, nullptr, nullptr) == nullptr ||
        dwarf_getsrcfiles(&unit, &files, &count) != 0 || count == 0) {
      return "";
    }
    const char* file = dwarf_filesrc(files, 0, nullptr, nullptr);
    return file != nullptr ? file : "";
  }
  static int line_of(Dwarf_Die* die) {
    int line = 0;
    dwarf_decl_line(die, &line);
    return line;
  }
  static bool flag(Dwarf_Die* die, unsigned name) {
    auto a = attribute(die, name, false);
    bool value = false;
    return a && dwarf_formflag(&*a, &value) == 0 && value;
  }
  static std::optional<Dwarf_Die> type_of(Dwarf_Die* die) {
    auto a = attribute(die, DW_AT_type);
    Dwarf_Die type;
    if (!a || dwarf_formref_die(&*a, &type) == nullptr) return std::nullopt;
    return type;
  }
  template <class F>
  static void for_children(Dwarf_Die* die, F&& f) {
    Dwarf_Die child;
    if (dwarf_child(die, &child) != 0) return;
    do {
      f(&child);
    } while (dwarf_siblingof(&child, &child) == 0);
  }

  // --- types ---

  static std::string type_text(std::optional<Dwarf_Die> die, int depth = 0) {
    if (!die) return "void";
    if (depth > deepest_type) return "...";
    const auto inner = [&] { return type_text(type_of(&*die), depth + 1); };
    const std::string name = name_of(&*die);
    switch (dwarf_tag(&*die)) {
      case DW_TAG_base_type:
      case DW_TAG_typedef:
      case DW_TAG_unspecified_type:
        return name;
      case DW_TAG_pointer_type:
        return inner() + "*";
      case DW_TAG_reference_type:
        return inner() + "&";
      case DW_TAG_rvalue_reference_type:
        return inner() + "&&";
      case DW_TAG_const_type:
        return inner() + " const";
      case DW_TAG_volatile_type:
        return inner() + " volatile";
      case DW_TAG_restrict_type:
        return inner();
      case DW_TAG_atomic_type:
        return inner() + " _Atomic";
      case DW_TAG_array_type: {
        std::string bounds;
        for_children(&*die, [&](Dwarf_Die* child) {
          if (dwarf_tag(child) != DW_TAG_subrange_type) return;
          auto count = number(child, DW_AT_count);
          if (auto upper = number(child, DW_AT_upper_bound); !count && upper) count = *upper + 1;
          bounds += "[" + (count ? std::to_string(*count) : std::string()) + "]";
        });
        return inner() + bounds;
      }
      case DW_TAG_subroutine_type:
        return prototype(&*die, depth + 1);
      case DW_TAG_structure_type:
      case DW_TAG_class_type:
      case DW_TAG_union_type:
      case DW_TAG_enumeration_type: {
        const int tag = dwarf_tag(&*die);
        const std::string kind = tag == DW_TAG_union_type         ? "union "
                                 : tag == DW_TAG_enumeration_type ? "enum "
                                                                  : "struct ";
        if (!name.empty()) return kind + name;
        std::string members;
        for_children(&*die, [&](Dwarf_Die* child) {
          if (dwarf_tag(child) == DW_TAG_member) {
            members += type_text(type_of(child), depth + 1) + " " + name_of(child) + "; ";
          } else if (dwarf_tag(child) == DW_TAG_enumerator) {
            members += name_of(child) + "=" +
                       std::to_string(number(child, DW_AT_const_value).value_or(0)) + " ";
          }
        });
        return kind + "{" + members + "}";
      }
      case DW_TAG_ptr_to_member_type:
        return inner() + " ::*";
      default:
        return name.empty() ? "?" : name;
    }
  }
  static std::string prototype(Dwarf_Die* die, int depth = 0) {
    std::string text = type_text(type_of(die), depth + 1) + " (";
    bool first = true;
    for_children(die, [&](Dwarf_Die* child) {
      const int tag = dwarf_tag(child);
      if (tag == DW_TAG_unspecified_parameters) text += first ? "..." : ", ...";
      if (tag != DW_TAG_formal_parameter) return;
      text += (first ? "" : ", ") + type_text(type_of(child), depth + 1);
      first = false;
    });
    return text + ")";
  }

  // What a lambda makes: it has no name, and can be called.
  static bool is_closure(Dwarf_Die* die) {
    bool is_called = false;
    for_children(die, [&](Dwarf_Die* child) {
      is_called |= dwarf_tag(child) == DW_TAG_subprogram && name_of(child) == "operator()";
    });
    return is_called;
  }

  void read_closure(Dwarf_Die* die, const std::string& function) {
    if (flag(die, DW_AT_declaration) || !is_closure(die)) return;
    out.closures[function].push_back(layout_of(die, ""));
  }

  void read_layout(Dwarf_Die* die, const std::string& path, const std::string& name) {
    if (flag(die, DW_AT_declaration)) return;
    TypeLayout layout = layout_of(die, path + name);
    std::string key = layout.kind + " " + layout.name;
    // Closures of one function have one name; types of a header are there once for each unit.
    if (!name.empty() && name.front() == '<') {
      const int n = ++seen[key];
      layout.name += "#" + std::to_string(n);
      key += "#" + std::to_string(n);
    }
    out.types.try_emplace(key, std::move(layout));
  }

  // Each by itself: what is stored as a number nobody else says.
  void read_enumerators(Dwarf_Die* die, const std::string& path) {
    for (const TypeMember& m : layout_of(die, "").members) {
      TypeLayout layout;
      layout.kind = "enumerator";
      layout.name = path + m.name;
      layout.file = file_of(die);
      layout.line = m.line != 0 ? m.line : line_of(die);
      layout.members.push_back({"", "", m.offset, layout.line});
      out.types.try_emplace(layout.kind + " " + layout.name, std::move(layout));
    }
  }

  // What pointers to it lead to, and what functions of it take, nobody else says.
  void read_typedef(Dwarf_Die* die, const std::string& path) {
    std::optional<Dwarf_Die> last = type_of(die);
    while (last && name_of(&*last).empty() && type_of(&*last)) last = type_of(&*last);
    const int tag = last ? dwarf_tag(&*last) : 0;
    const bool is_nameless = last && name_of(&*last).empty() &&
                             (tag == DW_TAG_structure_type || tag == DW_TAG_class_type ||
                              tag == DW_TAG_union_type || tag == DW_TAG_enumeration_type);
    TypeLayout layout;
    layout.kind = "typedef";
    layout.name = path + name_of(die);
    layout.file = file_of(die);
    layout.line = line_of(die);
    // Its members are compared by themselves.
    layout.members.push_back(
        {"", is_nameless ? "a type without a name" : type_text(type_of(die)), 0, 0});
    out.types.try_emplace(layout.kind + " " + layout.name, std::move(layout));
  }

  static TypeLayout layout_of(Dwarf_Die* die, std::string name) {
    TypeLayout layout;
    const int tag = dwarf_tag(die);
    layout.kind = tag == DW_TAG_union_type         ? "union"
                  : tag == DW_TAG_enumeration_type ? "enum"
                                                   : "struct";
    layout.name = std::move(name);
    layout.file = file_of(die);
    layout.line = line_of(die);
    layout.size = number(die, DW_AT_byte_size).value_or(0);
    int anonymous = 0;
    for_children(die, [&](Dwarf_Die* child) {
      TypeMember member;
      member.name = name_of(child);
      member.line = line_of(child);
      switch (dwarf_tag(child)) {
        case DW_TAG_enumerator:
          member.offset = static_cast<std::int64_t>(number(child, DW_AT_const_value).value_or(0));
          if (auto a = attribute(child, DW_AT_const_value)) {
            Dwarf_Sword value;
            if (dwarf_formsdata(&*a, &value) == 0) member.offset = value;
          }
          break;
        case DW_TAG_inheritance:
          member.name = "base " + type_text(type_of(child));
          [[fallthrough]];
        case DW_TAG_member: {
          if (flag(child, DW_AT_external) || flag(child, DW_AT_declaration)) return;  // static
          auto type = type_of(child);
          member.type = type_text(type);
          Dwarf_Word bytes = 0;
          if (type && dwarf_aggregate_size(&*type, &bytes) == 0) {
            member.type += " (" + std::to_string(bytes) + " bytes)";
          }
          const auto at = number(child, DW_AT_data_member_location);
          const auto bits = number(child, DW_AT_data_bit_offset);
          member.offset = static_cast<std::int64_t>(at.value_or(0) * 8 + bits.value_or(0));
          if (auto width = number(child, DW_AT_bit_size))
            member.type += ":" + std::to_string(*width);
          break;
        }
        default:
          return;
      }
      if (member.name.empty()) member.name = "#" + std::to_string(++anonymous);
      layout.members.push_back(std::move(member));
    });
    return layout;
  }

  // --- variables and functions ---

  // The section that the operation's address lies in, and where.
  struct Located {
    Elf32_Word section = SHN_UNDEF;
    Dwarf_Addr offset = 0;
  };
  std::optional<Located> located(Dwarf_Attribute& location, const Dwarf_Op& op) const {
    Dwarf_Addr address = op.number;
    if (op.atom == DW_OP_addrx || op.atom == DW_OP_GNU_addr_index) {
      Dwarf_Attribute indexed;
      if (dwarf_getlocation_attr(&location, &op, &indexed) != 0 ||
          dwarf_formaddr(&indexed, &address) != 0) {
        return std::nullopt;
      }
    } else if (op.atom != DW_OP_addr) {
      return std::nullopt;
    }
    const int index = dwfl_module_relocate_address(module, &address);
    Located found;
    if (index < 0 || dwfl_module_relocation_info(module, static_cast<unsigned>(index),
                                                 &found.section) == nullptr) {
      return std::nullopt;
    }
    found.offset = address;
    return found;
  }

  // clang makes variables of their own of what a static struct has, and numbers them by what it left.
  void read_variable(Dwarf_Die* die, const Scope& scope) {
    auto location = attribute(die, DW_AT_location, false);
    Dwarf_Op* ops;
    std::size_t count;
    if (!location || dwarf_getlocation(&*location, &ops, &count) != 0) return;
    const bool is_whole = count == 1;
    Dwarf_Word at = 0;
    for (std::size_t i = 0; i < count; ++i) {
      const bool is_piece = i + 1 < count && ops[i + 1].atom == DW_OP_piece;
      if (ops[i].atom == DW_OP_piece) at += ops[i].number;
      const auto place =
          is_whole || is_piece ? located(*location, ops[i]) : std::optional<Located>();
      if (!place) continue;
      std::string name = name_of(die);
      if (!is_whole) {
        name +=
            ", bytes " + std::to_string(at) + " to " + std::to_string(at + ops[i + 1].number - 1);
      }
      add_variable(die, scope, *place, name);
    }
  }

  void add_variable(Dwarf_Die* die, const Scope& scope, const Located& place,
                    const std::string& name) {
    StaticLocal local{place.section,           place.offset, scope.function, scope.block, name,
                      type_text(type_of(die)), file_of(die), line_of(die)};
    auto& list = scope.function.empty() ? out.variables : out.locals;
    const bool is_known = std::any_of(list.begin(), list.end(), [&](const auto& s) {
      return s.section == local.section && s.offset == local.offset;
    });
    if (!is_known) list.push_back(std::move(local));
  }

  // One may be relative where the other is not.
  static bool is_same_path(std::string_view a, std::string_view b) {
    if (a.size() < b.size()) std::swap(a, b);
    while (b.starts_with("./")) b.remove_prefix(2);
    return a == b || (a.ends_with(b) && a[a.size() - b.size() - 1] == '/');
  }

  struct Piece {
    Dwarf_Die die;
    SourceSpan span;
  };
  static SourceSpan span_of(Dwarf_Die* die) {
    const int line = line_of(die);
    return {linkage_name(die), file_of(die), line, line, false};
  }
  static void find_pieces(Dwarf_Die* die, std::vector<Piece>& pieces) {
    for_children(die, [&](Dwarf_Die* child) {
      const int tag = dwarf_tag(child);
      if (tag == DW_TAG_inlined_subroutine) {
        Dwarf_Die origin = *child;
        if (auto a = attribute(child, DW_AT_abstract_origin, false))
          dwarf_formref_die(&*a, &origin);
        pieces.push_back({*child, span_of(&origin)});
      }
      if (tag == DW_TAG_inlined_subroutine || tag == DW_TAG_lexical_block)
        find_pieces(child, pieces);
    });
  }
  // Which lines the function's code comes from. Inner pieces come after the outer ones.
  static std::vector<SourceSpan> spans_of(Dwarf_Die* function, Dwarf_Die* unit) {
    std::vector<Piece> pieces{{*function, span_of(function)}};
    find_pieces(function, pieces);
    Dwarf_Lines* lines;
    std::size_t count;
    if (dwarf_getsrclines(unit, &lines, &count) == 0) {
      for (std::size_t i = 0; i < count; ++i) {
        Dwarf_Line* row = dwarf_onesrcline(lines, i);
        Dwarf_Addr address;
        int number;
        const char* file = dwarf_linesrc(row, nullptr, nullptr);
        if (dwarf_lineaddr(row, &address) != 0 || dwarf_lineno(row, &number) != 0 ||
            file == nullptr) {
          continue;
        }
        for (auto piece = pieces.rbegin(); piece != pieces.rend(); ++piece) {
          if (dwarf_haspc(&piece->die, address) != 1) continue;
          if (is_same_path(piece->span.file, file)) {
            piece->span.last = std::max(piece->span.last, number);
            piece->span.has_code = true;
          }
          break;
        }
      }
    }
    std::vector<SourceSpan> spans;
    for (const Piece& piece : pieces) spans.push_back(piece.span);
    return spans;
  }

  std::map<std::string, std::set<int>> declared{};  // lines, by file

  // From each function's line to the last line before the next one that code comes from. What a unit has no
  // code of is not among them.
  void read_bodies(Dwarf_Die* unit) {
    std::map<std::string, std::set<int>> with_code;
    Dwarf_Lines* lines;
    std::size_t count;
    if (dwarf_getsrclines(unit, &lines, &count) != 0) return;
    for (std::size_t i = 0; i < count; ++i) {
      Dwarf_Line* row = dwarf_onesrcline(lines, i);
      int number;
      const char* file = dwarf_linesrc(row, nullptr, nullptr);
      if (file != nullptr && dwarf_lineno(row, &number) == 0) with_code[file].insert(number);
    }
    for (const auto& [file, firsts] : declared) {
      for (auto first = firsts.begin(); first != firsts.end(); ++first) {
        const auto next = std::next(first);
        SourceSpan body{"", file, *first, *first, true};
        for (const auto& [of_rows, rows] : with_code) {
          if (!is_same_path(file, of_rows)) continue;
          auto end = next == firsts.end() ? rows.end() : rows.lower_bound(*next);
          if (end != rows.begin()) body.last = std::max(body.last, *--end);
        }
        out.bodies.push_back(std::move(body));
      }
    }
    Dwarf_Files* files;
    if (dwarf_getsrcfiles(unit, &files, &count) != 0) return;
    for (std::size_t i = 0; i < count; ++i) {
      if (const char* file = dwarf_filesrc(files, i, nullptr, nullptr)) out.files.insert(file);
    }
  }

  void read_function(Dwarf_Die* die, const std::string& mangled, Dwarf_Die* unit) {
    if (!flag(die, DW_AT_declaration) && line_of(die) != 0)
      declared[file_of(die)].insert(line_of(die));
    Dwarf_Addr base, begin, end;
    if (dwarf_ranges(die, 0, &base, &begin, &end) <= 0) return;
    FunctionInfo info;
    info.name = mangled;
    Dwarf_Die origin = *die;
    if (auto a = attribute(die, DW_AT_abstract_origin, false)) dwarf_formref_die(&*a, &origin);
    info.prototype = prototype(&origin);
    info.file = file_of(die);
    info.line = line_of(die);
    if (mangled == "main") info.spans = spans_of(die, unit);
    out.functions.try_emplace(mangled, std::move(info));
  }

  void walk(Dwarf_Die* die, const Scope& scope, Dwarf_Die* unit) {
    int block = 0;
    std::map<Dwarf_Off, std::string> typedefs;  // names of anonymous types
    for_children(die, [&](Dwarf_Die* child) {
      if (dwarf_tag(child) != DW_TAG_typedef) return;
      if (auto type = type_of(child); type && name_of(&*type).empty()) {
        typedefs.try_emplace(dwarf_dieoffset(&*type), name_of(child));
      }
    });
    for_children(die, [&](Dwarf_Die* child) {
      Scope inner = scope;
      switch (dwarf_tag(child)) {
        case DW_TAG_structure_type:
        case DW_TAG_class_type:
        case DW_TAG_union_type:
        case DW_TAG_enumeration_type: {
          std::string name = name_of(child);
          if (name.empty()) {
            const auto at = typedefs.find(dwarf_dieoffset(child));
            if (at != typedefs.end()) name = at->second;
          }
          if (!name.empty())
            read_layout(child, scope.path, name);
          else if (dwarf_tag(child) == DW_TAG_enumeration_type)
            read_enumerators(child, scope.path);
          else
            read_closure(child, scope.function);
          inner.path += name + "::";
          walk(child, inner, unit);
          break;
        }
        case DW_TAG_typedef:
          read_typedef(child, scope.path);
          break;
        case DW_TAG_namespace:
          inner.path += name_of(child) + "::";
          walk(child, inner, unit);
          break;
        case DW_TAG_subprogram:
          inner.function = linkage_name(child);
          inner.block.clear();
          inner.path += inner.function + "::";
          read_function(child, inner.function, unit);
          walk(child, inner, unit);
          break;
        case DW_TAG_inlined_subroutine:
          // Its variables are those of the function that was inlined.
          inner.function = linkage_name(child);
          inner.block.clear();
          walk(child, inner, unit);
          break;
        case DW_TAG_lexical_block:
          inner.block += (inner.block.empty() ? "" : ".") + std::to_string(block++);
          walk(child, inner, unit);
          break;
        case DW_TAG_variable:
          read_variable(child, scope);
          break;
        default:
          break;
      }
    });
  }
};

}  // namespace

Result<DebugInfo> DebugInfo::read(const std::string& object_path) {
  static char* no_path = nullptr;
  static const Dwfl_Callbacks callbacks = {dwfl_build_id_find_elf, dwfl_standard_find_debuginfo,
                                           dwfl_offline_section_address, &no_path};
  struct End {
    void operator()(Dwfl* dwfl) const { dwfl_end(dwfl); }
  };
  const std::unique_ptr<Dwfl, End> dwfl(dwfl_begin(&callbacks));
  if (!dwfl) return fail(ENOMEM, "libdwfl: %s", dwfl_errmsg(-1));
  dwfl_report_begin(dwfl.get());
  Dwfl_Module* module = dwfl_report_offline(dwfl.get(), "", object_path.c_str(), -1);
  if (module == nullptr) return fail(ENOEXEC, "%.120s: %s", object_path.c_str(), dwfl_errmsg(-1));
  dwfl_report_end(dwfl.get(), nullptr, nullptr);
  DebugInfo info;
  Reader reader{module, info};
  Dwarf_Addr bias;
  if (dwfl_module_getdwarf(module, &bias) == nullptr) return info;
  Dwarf_Die* unit = nullptr;
  while ((unit = dwfl_module_nextcu(module, unit, &bias)) != nullptr) {
    info.is_there = true;
    reader.declared.clear();
    reader.walk(unit, {}, unit);
    if (info.functions.contains("main") && info.bodies.empty()) reader.read_bodies(unit);
  }
  return info;
}

}  // namespace molt::builder
