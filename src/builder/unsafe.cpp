#include "builder/unsafe.hpp"

#include <algorithm>
#include <array>
#include <cctype>
#include <set>
#include <string_view>

#include <fmt/format.h>

#include "builder/source_terms.hpp"

namespace molt::builder {
namespace {

std::string at(const std::string& file, int line) {
  return file.empty() ? "" : fmt::format("{}:{}", file, line);
}

bool is_accepted(const PatchOptions& options, const std::string& name) {
  return std::ranges::any_of(options.accept,
                             [&](const std::string& given) { return is_called(name, given); });
}

// clang describes what a unit uses: a base or member of a type that is only named there has no size.
bool is_same_type(const std::string& a, const std::string& b) {
  if (a == b) return true;
  const auto& [less, more] =
      std::minmax(a, b, [](const auto& x, const auto& y) { return x.size() < y.size(); });
  return more.starts_with(less + " (") && more.ends_with(" bytes)");
}

// The first member that differs, in words.
std::string difference(const TypeLayout& a, const TypeLayout& b) {
  if (a.kind == "typedef") {
    const std::string &before = a.members[0].type, &after = b.members[0].type;
    return before == after ? "" : fmt::format("{} -> {}", before, after);
  }
  if (a.kind == "enumerator") {
    const std::int64_t before = a.members[0].offset, after = b.members[0].offset;
    return before == after ? "" : fmt::format("value {} -> {}", before, after);
  }
  const bool is_enum = a.kind == "enum";
  const auto place = [&](const TypeMember& m) {
    return is_enum ? fmt::format("value {}", m.offset) : fmt::format("at byte {}", m.offset / 8);
  };
  for (const TypeMember& m : a.members) {
    const auto twin = std::find_if(b.members.begin(), b.members.end(),
                                   [&](const TypeMember& n) { return n.name == m.name; });
    if (twin == b.members.end()) return fmt::format("member {} has gone", m.name);
    if (!is_same_type(m.type, twin->type))
      return fmt::format("member {}: {} -> {}", m.name, m.type, twin->type);
    if (twin->offset != m.offset) {
      return fmt::format("member {}: {} -> {}", m.name, place(m), place(*twin));
    }
  }
  for (const TypeMember& m : b.members) {
    const bool is_new = std::none_of(a.members.begin(), a.members.end(),
                                     [&](const TypeMember& n) { return n.name == m.name; });
    // A further name for a further value harms nobody.
    if (is_new && !is_enum) return fmt::format("member {} is new, {}", m.name, place(m));
  }
  return "";
}

// Are there only new members, in what was padding? What objects that exist have there, who made them knows.
bool is_in_padding(const TypeLayout& a, const TypeLayout& b) {
  if (a.kind != "struct" || a.size != b.size) return false;
  return std::all_of(a.members.begin(), a.members.end(), [&](const TypeMember& m) {
    return std::any_of(b.members.begin(), b.members.end(), [&](const TypeMember& n) {
      return n.name == m.name && is_same_type(m.type, n.type) && n.offset == m.offset;
    });
  });
}

int last_line(const TypeLayout& layout) {
  int last = layout.line;
  for (const TypeMember& m : layout.members) last = std::max(last, m.line);
  return last;
}

bool has_word(std::string_view text, std::string_view word) {
  const auto is_of_name = [](char c) {
    return std::isalnum(static_cast<unsigned char>(c)) != 0 || c == '_';
  };
  for (std::size_t at = text.find(word); at != text.npos; at = text.find(word, at + 1)) {
    const std::size_t end = at + word.size();
    if ((at == 0 || !is_of_name(text[at - 1])) && (end == text.size() || !is_of_name(text[end]))) {
      return true;
    }
  }
  return false;
}

// The diff edits the definition, and nothing else that it adds names a member that is new there: the rest
// of it may well do with the type as it was.
bool is_separate(const TypeLayout& a, const TypeLayout& b, const Edits& edits) {
  if (!edits.touches(b.file, b.line, last_line(b), true) &&
      !edits.touches(a.file, a.line, last_line(a), false)) {
    return false;
  }
  return std::ranges::all_of(b.members, [&](const TypeMember& m) {
    if (std::ranges::find(a.members, m.name, &TypeMember::name) != a.members.end()) return true;
    return std::ranges::none_of(edits.lines(), [&](const EditedLine& e) {
      const bool is_inside = b.file.ends_with(e.file) && e.line >= b.line && e.line <= last_line(b);
      return e.added && !is_inside && has_word(e.text, m.name);
    });
  });
}

// The diff adds members to a struct of C, and does nothing to those that are there: they can lie beside (beside.hpp).
bool only_adds(const TypeLayout& a, const TypeLayout& b) {
  const bool is_of_c =
      a.name.find("::") == a.name.npos && (a.file.ends_with(".c") || a.file.ends_with(".h"));
  return a.kind == "struct" && is_of_c && b.members.size() > a.members.size() &&
         std::ranges::all_of(a.members, [&](const TypeMember& m) {
           const auto same = std::ranges::find(b.members, m.name, &TypeMember::name);
           return same != b.members.end() && is_same_type(m.type, same->type);
         });
}

constexpr const char* state_advice =
    "keep it as it is and attach what is new by a shadow variable (molt_shadow_alloc), or convert "
    "what exists in a callback (--callbacks)";

}  // namespace

void refuse_layouts(const UnitFacts& facts, const PatchOptions& options, const Edits& edits,
                    std::vector<Refusal>& refusals) {
  for (const auto& [key, before] : facts.old_info->types) {
    const auto found = facts.new_info->types.find(key);
    if (found == facts.new_info->types.end()) continue;
    const TypeLayout& after = found->second;
    std::string what;
    if (before.size != after.size) what = fmt::format("{} -> {} bytes", before.size, after.size);
    if (const std::string member = difference(before, after); !member.empty()) {
      what += (what.empty() ? "" : "; ") + member;
    }
    if (what.empty() || is_accepted(options, before.name)) continue;
    // A header's types are in every unit.
    const bool is_known =
        std::any_of(refusals.begin(), refusals.end(), [&before = before](const Refusal& r) {
          return r.kind == "layout_changed" && r.symbol == before.name;
        });
    if (is_known) continue;
    if (before.kind == "enumerator") {
      refusals.push_back(
          {"layout_changed", facts.unit->output, before.name, at(after.file, after.line),
           fmt::format("{} {}: {}; what was stored has the old one", before.kind, before.name,
                       what),
           fmt::format("add new ones behind the others; --accept={} if it is stored nowhere",
                       before.name)});
      continue;
    }
    const bool is_padding = is_in_padding(before, after);
    refusals.push_back(
        {"layout_changed", facts.unit->output, before.name, at(after.file, after.line),
         fmt::format("{} {}: {}{}; objects of the old layout may exist", before.kind, before.name,
                     what, is_padding ? ", in what was padding" : ""),
         fmt::format(
             "{}; --accept={} if {}{}{}", state_advice, before.name,
             is_padding ? "all are cleared when they are made, and 0 is right for those that exist"
                        : "none can exist",
             is_separate(before, after, edits)
                 ? fmt::format("; --leave-out={} if the fix is not in the type", before.name)
                 : "",
             only_adds(before, after)
                 ? fmt::format("; --beside={} if 0 is right for those that exist", before.name)
                 : "")});
  }
}

namespace {

// The function that the data names a place inside of; "": none.
std::string labels_of(const View& view, std::uint32_t section) {
  for (const Relocation& r : view.section(section).relocations) {
    const Referent ref = view.reference(section, r);
    if (ref.symbol != 0 && ref.offset != 0 && view.symbol(ref.symbol).is_function()) {
      return std::string(view.symbol(ref.symbol).name);
    }
  }
  return "";
}

}  // namespace

void refuse_data(const UnitFacts& facts, const PatchOptions& options,
                 std::vector<Refusal>& refusals) {
  const View& now = facts.comparison->new_view();
  const View& before = facts.comparison->old_view();
  const auto called = [&](std::uint32_t section) {
    const std::uint32_t owner = now.owner(section);
    return owner != 0 ? plain_name(*facts.new_info, now, owner) : std::string(now.name(section));
  };
  const auto add = [&](std::uint32_t section, const std::string& kind, const std::string& text,
                       const std::string& advice) {
    const std::string name(now.name(section));
    if (is_accepted(options, name) || is_accepted(options, called(section))) return;
    const bool is_of_class = name.starts_with("_ZTV") || name.starts_with("_ZTI");
    refusals.push_back({kind, facts.unit->output, name,
                        is_of_class ? place_of_class(*facts.new_info, name)
                                    : place_of_variable(*facts.new_info, section, 0, name),
                        text, advice});
  };
  for (std::uint32_t i : facts.comparison->data_changed) {
    const std::string name(now.name(i));
    const ObjectSection& a = before.section(facts.comparison->old_section(i));
    const ObjectSection& b = now.section(i);
    // The compiler's own references, one copy in each object.
    if (name.starts_with("DW.ref.")) continue;
    const std::string variable = readable(called(i));
    if (a.size != b.size) {
      add(i, "data_resized", fmt::format("variable {}: {} -> {} bytes", variable, a.size, b.size),
          state_advice);
      continue;
    }
    const std::string change =
        value_change(*facts.new_info, before, facts.comparison->old_section(i), now, i);
    if (const std::string function = labels_of(now, i); change.empty() && !function.empty()) {
      add(i, "data_changed",
          fmt::format("variable {} holds labels of {}, which changed: they lead into the old one",
                      variable, readable(function)),
          "make the table const");
      continue;
    }
    add(i, "data_changed",
        fmt::format("variable {}: its initial value changed ({}), and the program has long had its "
                    "own value",
                    variable, change.empty() ? "what it points to" : change),
        fmt::format("set it in a post_patch callback (--callbacks), or --accept={} if only new "
                    "processes need it",
                    variable));
  }
  // Tables that the linker puts together, and the program goes through from __start_X to __stop_X.
  const auto is_gathered = [](const ObjectSection& s) {
    const auto is_of_name = [](char c) {
      return std::isalnum(static_cast<unsigned char>(c)) != 0 || c == '_';
    };
    return s.is_allocated() && !s.is_code() && s.size != 0 && !s.name.empty() &&
           std::isdigit(static_cast<unsigned char>(s.name[0])) == 0 &&
           std::ranges::all_of(s.name, is_of_name) &&
           !s.name.starts_with("__patchable_function_entries");
  };
  const auto refuse_gathered = [&](std::string_view name, const char* what) {
    if (is_accepted(options, std::string(name))) return;
    refusals.push_back({"data_changed", facts.unit->output, std::string(name), "",
                        fmt::format("section {} {}: who goes through all that units have put there "
                                    "finds what was there when "
                                    "the program was linked",
                                    name, what),
                        fmt::format("do it in a post_patch callback (--callbacks), or --accept={} "
                                    "if nobody goes through it",
                                    name)});
  };
  for (std::uint32_t i = 1; i < now.object().sections().size(); ++i) {
    if (!is_gathered(now.section(i))) continue;
    if (before.object().find_section(std::string(now.section(i).name)) == 0) {
      refuse_gathered(now.section(i).name, "is new");
    } else if (facts.comparison->old_section(i) == 0 || !facts.comparison->same(i)) {
      refuse_gathered(now.section(i).name, "changed");
    }
  }
  for (std::uint32_t i = 1; i < before.object().sections().size(); ++i) {
    if (!is_gathered(before.section(i))) continue;
    if (now.object().find_section(std::string(before.section(i).name)) == 0) {
      refuse_gathered(before.section(i).name, "has gone");
    }
  }
  // Tables of virtual functions: objects that exist point to the old one.
  for (std::uint32_t i = 1; i < now.object().sections().size(); ++i) {
    const std::string name(now.name(i));
    const bool is_of_class = name.starts_with("_ZTV") || name.starts_with("_ZTI");
    if (!is_of_class || facts.comparison->old_section(i) == 0 || facts.comparison->same(i)) {
      continue;
    }
    const std::string change = table_change(before, facts.comparison->old_section(i), now, i);
    const std::string what = readable(name);
    add(i, "vtable_changed",
        fmt::format("{} changed ({}), and objects that exist have the old one", what, change),
        "make the new function a plain one");
  }
}

namespace {

bool is_state(const View& view, const ObjectSymbol& symbol) {
  return symbol.is_defined() && (symbol.type == STT_OBJECT || symbol.type == STT_TLS) &&
         !view.is_constant(symbol.section) && !view.section(symbol.section).is_mergeable() &&
         !symbol.name.starts_with("DW.ref.");
}

// `kept`: the old symbols of the others.
std::map<std::string, std::uint32_t> fresh_variables(const View& now, const UnitFacts& facts,
                                                     std::set<std::uint32_t>& kept) {
  std::map<std::string, std::uint32_t> fresh;
  for (std::uint32_t y = 1; y < now.object().symbols().size(); ++y) {
    const ObjectSymbol& symbol = now.symbol(y);
    if (!is_state(now, symbol)) continue;
    const std::uint32_t old = facts.comparison != nullptr ? facts.comparison->old_symbol(y) : 0;
    if (old != 0) {
      kept.insert(old);
    } else {
      fresh.emplace(plain_name(*facts.new_info, now, y), y);
    }
  }
  return fresh;
}

}  // namespace

VariableChanges variable_changes(const View& now, const UnitFacts& facts) {
  VariableChanges changes;
  std::set<std::uint32_t> kept;
  changes.fresh = fresh_variables(now, facts, kept);
  // Of a header's there may be one in each unit.
  std::erase_if(changes.fresh, [&](const auto& one) {
    const ObjectSymbol& symbol = now.symbol(one.second);
    return symbol.bind == STB_WEAK || symbol.bind == STB_GNU_UNIQUE ||
           !now.section(symbol.section).group.empty();
  });
  if (facts.comparison == nullptr) return changes;
  const View& before = facts.comparison->old_view();
  for (std::uint32_t y = 1; y < before.object().symbols().size(); ++y) {
    if (!is_state(before, before.symbol(y)) || kept.contains(y)) continue;
    changes.lost.insert(plain_name(*facts.old_info, before, y));
  }
  return changes;
}

void refuse_moved_variables(const UnitFacts& facts, const PatchOptions& options,
                            std::vector<Refusal>& refusals, std::vector<std::string>& notes) {
  const View& now = facts.comparison->new_view();
  const View& before = facts.comparison->old_view();
  std::set<std::uint32_t> kept;
  const std::map<std::string, std::uint32_t> fresh = fresh_variables(now, facts, kept);
  for (std::uint32_t y = 1; y < before.object().symbols().size(); ++y) {
    const ObjectSymbol& symbol = before.symbol(y);
    if (!is_state(before, symbol) || kept.contains(y)) continue;
    const std::string name = plain_name(*facts.old_info, before, y);
    const auto at = fresh.find(name);
    if (at == fresh.end()) {
      notes.push_back(fmt::format("{}: variable {} is used no more", facts.unit->output, name));
      continue;
    }
    const std::string moved(now.symbol(at->second).name);
    const bool is_told = std::any_of(refusals.begin(), refusals.end(),
                                     [&](const Refusal& r) { return r.symbol == moved; });
    if (is_told || is_accepted(options, name)) continue;
    refusals.push_back(
        {"variable_moved", facts.unit->output, moved,
         place_of_symbol(*facts.new_info, now, at->second),
         fmt::format("{} was {} before the diff: the new one would begin anew, and what the "
                     "old one holds would be lost",
                     moved, symbol.name),
         fmt::format("leave it where it is, or --accept={} if that may be", name)});
  }
  // The same place with another meaning.
  for (const StaticLocal& v : facts.new_info->variables) {
    for (const StaticLocal& old : facts.old_info->variables) {
      if (v.name != old.name || v.type == old.type) continue;
      const bool is_pair = std::any_of(now.section(v.section).symbols.begin(),
                                       now.section(v.section).symbols.end(), [&](std::uint32_t y) {
                                         const std::uint32_t twin = facts.comparison->old_symbol(y);
                                         return now.symbol(y).value == v.offset && twin != 0 &&
                                                before.symbol(twin).section == old.section &&
                                                before.symbol(twin).value == old.offset;
                                       });
      if (!is_pair || now.is_constant(v.section) || is_accepted(options, v.name)) continue;
      refusals.push_back(
          {"variable_type_changed", facts.unit->output, v.name, at(v.file, v.line),
           fmt::format("variable {}: {} -> {}, and it holds a value of the old type", v.name,
                       old.type, v.type),
           fmt::format("give the new one another name, or --accept={} if they mean the same",
                       v.name)});
    }
  }
}

void refuse_constructors(const UnitFacts& facts, const PatchOptions& options,
                         std::vector<Refusal>& refusals) {
  const View& now = facts.comparison->new_view();
  const View& before = facts.comparison->old_view();
  const auto is_table = [](std::string_view name) {
    return name.starts_with(".init_array") || name.starts_with(".ctors") ||
           name.starts_with(".fini_array") || name.starts_with(".dtors") ||
           name.starts_with(".preinit_array");
  };
  const char* advice = "do what it does in a pre_patch or post_patch callback (--callbacks)";
  std::set<std::uint32_t> run_before;  // main
  for (std::uint32_t i = 1; i < now.object().sections().size(); ++i) {
    const ObjectSection& s = now.section(i);
    if (!is_table(s.name) || s.size == 0) continue;
    const std::uint32_t old = facts.comparison->old_section(i);
    std::string name(s.name);
    const bool is_of_end = s.name.starts_with(".fini_array") || s.name.starts_with(".dtors");
    for (const Relocation& r : s.relocations) {
      const Referent ref = now.reference(i, r);
      name = now.symbol(ref.symbol).name;
      if (!is_of_end) run_before.insert(ref.section);
    }
    if (old == 0) {
      refusals.push_back({"constructor_added", facts.unit->output, name, "",
                          fmt::format("{} would have to run before main, which runs already", name),
                          advice});
    } else if (before.section(old).size != s.size || !facts.comparison->same(i)) {
      refusals.push_back({"constructor_added", facts.unit->output, name, "",
                          fmt::format("the functions that run before main changed ({}: {} -> {})",
                                      s.name, before.section(old).size / 8, s.size / 8),
                          advice});
    }
  }
  for (std::uint32_t i : facts.comparison->changed) {
    const std::string name(now.name(i));
    const bool is_of_compiler = name.starts_with("_GLOBAL__sub_I_") ||
                                name.starts_with("_GLOBAL__sub_D_") ||
                                name.starts_with("_Z41__static_initialization_and_destruction_0");
    if (!is_of_compiler && !run_before.contains(i)) continue;
    const bool is_kept = std::ranges::any_of(
        options.keep_old, [&](const std::string& given) { return is_called(name, given); });
    if (is_kept) continue;
    refusals.push_back(
        {"constructor_changed", facts.unit->output, name, place_of_function(*facts.new_info, name),
         is_of_compiler
             ? "what initialises variables before main changed, and has run already"
             : fmt::format("{} runs before main: it changed, and has run already", readable(name)),
         fmt::format("{}, and --keep-old={}", advice, name)});
  }
}

namespace {

// "_ZZ3fooiENKUliE0_clEi", a lambda of foo(int), and whatever has one in its name: the name with the
// number left out, and the number.
bool split_lambda(std::string_view name, std::string& rest, std::string& number) {
  // clang's, "3$_0", are numbered through the whole unit.
  if (const std::size_t dollar = name.find("$_");
      name.starts_with("_Z") && dollar != std::string_view::npos) {
    const std::size_t end = std::min(name.find_first_not_of("0123456789", dollar + 2), name.size());
    const std::size_t begin = name.find_last_not_of("0123456789", dollar - 1) + 1;
    rest = std::string(name.substr(0, begin)) + "$_" + std::string(name.substr(end));
    number = name.substr(dollar + 2, end - dollar - 2);
    return true;
  }
  for (std::string_view mark : {"EUl", "MUl", "NKUl", "NUl"}) {
    const std::size_t at = name.find(mark);
    if (!name.starts_with("_Z") || at == std::string_view::npos) continue;
    for (std::size_t e = name.find('E', at + mark.size()); e != std::string_view::npos;
         e = name.find('E', e + 1)) {
      const std::size_t end = name.find_first_not_of("0123456789", e + 1);
      if (end == std::string_view::npos || name[end] != '_') continue;
      rest = std::string(name.substr(0, e + 1)) + std::string(name.substr(end));
      number = name.substr(e + 1, end - e - 1);
      return true;
    }
  }
  return false;
}

// By what they are lambdas of.
std::map<std::string, std::set<std::string>> lambdas_of(const View& view) {
  std::map<std::string, std::set<std::string>> all;
  for (const ObjectSymbol& s : view.object().symbols()) {
    std::string rest, number;
    if (!s.is_defined() || !s.is_function() || is_clone(s.name)) continue;
    if (split_lambda(s.name, rest, number)) all[rest].insert(std::string(s.name));
  }
  return all;
}

bool is_coroutine_body(std::string_view name) {
  return name.ends_with(".actor") || name.ends_with(".resume") || name.ends_with(".destroy") ||
         name.ends_with(".cleanup");
}

}  // namespace

namespace {

// Closures that exist were made by the old function. Nobody calls one again if no code of its own was made of
// it: then it was inlined where it stood.
bool may_live(const View& before, const std::string& function) {
  const std::string outer = function.empty() ? "" : readable(function) + "::";
  return std::ranges::any_of(before.object().symbols(), [&](const ObjectSymbol& s) {
    if (!s.is_defined() || !s.is_function() || !s.name.starts_with("_Z")) return false;
    const std::string name = readable(s.name);
    return std::ranges::any_of(std::array{"{lambda", "$_", "'lambda"}, [&](const char* mark) {
      return name.find(outer + mark) != name.npos;
    });
  });
}

std::string captures(const TypeLayout& closure) {
  std::string text;
  for (const TypeMember& m : closure.members) {
    // gcc puts two underscores in front.
    const std::string name = m.name.starts_with("__") ? m.name.substr(2) : m.name;
    text += fmt::format("{}{}: {}", text.empty() ? "" : ", ", name, m.type);
  }
  return text.empty() ? "nothing" : text;
}

void refuse_captures(const UnitFacts& facts, std::vector<Refusal>& refusals) {
  for (const auto& [function, olds] : facts.old_info->closures) {
    const auto found = facts.new_info->closures.find(function);
    if (found == facts.new_info->closures.end()) continue;
    const auto& news = found->second;
    for (std::size_t i = 0; i < std::min(olds.size(), news.size()); ++i) {
      if (olds[i].size == news[i].size && difference(olds[i], news[i]).empty()) continue;
      if (!may_live(facts.comparison->old_view(), function)) break;
      refusals.push_back(
          {"lambda_changed", facts.unit->output, function, at(news[i].file, news[i].line),
           fmt::format(
               "what a lambda of {} captures changed ({} -> {}): closures that exist have the old "
               "one's",
               function.empty() ? facts.unit->source : readable(function), captures(olds[i]),
               captures(news[i])),
           "let it capture what it did, and add new lambdas behind the others, or as functions"});
      break;
    }
  }
}

}  // namespace

void refuse_functions(const UnitFacts& facts, std::vector<Refusal>& refusals) {
  refuse_captures(facts, refusals);
  const View& now = facts.comparison->new_view();
  const View& before = facts.comparison->old_view();
  // Lambdas are numbered: one that is put in front of others takes their names.
  const auto old_lambdas = lambdas_of(before), new_lambdas = lambdas_of(now);
  for (const auto& [function, names] : new_lambdas) {
    const auto old = old_lambdas.find(function);
    if (old == old_lambdas.end()) continue;
    bool is_extension =
        std::includes(names.begin(), names.end(), old->second.begin(), old->second.end());
    for (const std::string& name : old->second) {
      const std::uint32_t y = now.object().find_symbol(name);
      is_extension = is_extension && y != 0 && facts.comparison->same(now.symbol(y).section);
    }
    if (names == old->second || is_extension) continue;
    refusals.push_back(
        {"lambda_changed", facts.unit->output, function,
         place_of_function(*facts.new_info, *names.begin()),
         fmt::format("of lambdas such as {} there are others than before ({} -> {}): closures that "
                     "exist would call the wrong one",
                     readable(*old->second.begin()), old->second.size(), names.size()),
         "add new lambdas behind the others, or as functions"});
  }
  // Hand-written code, as a rule: several functions in one section, or none at its begin.
  const auto refuse_section = [&](std::uint32_t i) {
    std::string functions;
    for (std::uint32_t y : now.section(i).symbols) {
      if (!now.symbol(y).is_function()) continue;
      functions += (functions.empty() ? "" : ", ") + readable(now.symbol(y).name);
    }
    refusals.push_back(
        {"assembly_changed", facts.unit->output, std::string(now.section(i).name), "",
         fmt::format("section {} changed, and is not one function from its begin on ({})",
                     now.section(i).name, functions.empty() ? "it names none" : functions),
         "patch the function that calls it"});
  };
  std::set<std::string> coroutines;
  for (std::uint32_t i : facts.comparison->changed) {
    const std::string name(now.name(i));
    if (const std::string coroutine = coroutine_of(name);
        is_coroutine_body(name) && coroutines.insert(coroutine).second) {
      refusals.push_back(
          {"coroutine_changed", facts.unit->output, coroutine,
           place_of_function(*facts.new_info, coroutine),
           fmt::format("the body of coroutine {} changed: suspended ones have frames of "
                       "the old one",
                       readable(coroutine)),
           "change what it calls instead"});
    }
    if (now.owner(i) == 0 && now.section(i).size != 0) refuse_section(i);
  }
  for (const ObjectSymbol& s : now.object().symbols()) {
    const bool is_chosen = s.is_defined() && s.type == STT_GNU_IFUNC;
    if (!is_chosen || !facts.comparison->changed.contains(s.section)) continue;
    const std::string resolver(now.name(s.section));
    refusals.push_back(
        {"indirect_function", facts.unit->output, std::string(s.name),
         place_of_function(*facts.new_info, resolver),
         fmt::format("what chooses {} when the program starts changed, and has run already",
                     readable(s.name)),
         fmt::format("change the functions that it chooses from, or --keep-old={}",
                     readable(resolver))});
  }
  // It had another shape before: nobody would be led to what is in it.
  for (std::uint32_t i : facts.comparison->added) {
    const bool is_old = std::ranges::any_of(now.section(i).symbols, [&](std::uint32_t y) {
      return now.symbol(y).is_function() && facts.comparison->old_symbol(y) != 0;
    });
    if (is_old) refuse_section(i);
  }
}

bool is_ripple(const UnitFacts& facts, const std::string& function, const Edits& edits) {
  if (edits.empty() || edits.has_directives()) return false;
  const auto old_one = facts.old_info->functions.find(function);
  const auto new_one = facts.new_info->functions.find(function);
  if (old_one == facts.old_info->functions.end() || new_one == facts.new_info->functions.end() ||
      old_one->second.spans.empty() || new_one->second.spans.empty()) {
    return false;
  }
  // Others were inlined there than before: what else may have changed it is not this.
  const auto inlined = [](const FunctionInfo& info) {
    std::multiset<std::string> names;
    for (const SourceSpan& span : info.spans) names.insert(span.function);
    return names;
  };
  if (inlined(old_one->second) == inlined(new_one->second)) return false;
  // What is edited outside of functions may change any that reads it.
  const auto is_of_function = [&](const EditedLine& e) {
    const DebugInfo& info = e.added ? *facts.new_info : *facts.old_info;
    if (Edits::is_harmless(e.text)) return true;
    const std::string_view path = e.file;
    const bool is_header = path.find(".h") != path.npos;
    if (!is_header && !Edits::is_file_of(info.files, path)) return true;  // another unit's
    return std::ranges::any_of(info.bodies, [&](const SourceSpan& body) {
      return e.line >= body.first && e.line <= body.last && Edits::is_file_of({body.file}, path);
    });
  };
  if (!std::ranges::all_of(edits.lines(), is_of_function)) return false;
  // Where the code of a span is not known it may be anywhere.
  const auto is_edited = [&](const FunctionInfo& info, bool added) {
    return std::any_of(info.spans.begin(), info.spans.end(), [&](const SourceSpan& span) {
      return !span.has_code || edits.touches(span.file, span.first, span.last, added);
    });
  };
  return !is_edited(old_one->second, false) && !is_edited(new_one->second, true);
}

std::string prototype_change(const UnitFacts& facts, const std::string& function) {
  const auto old_one = facts.old_info->functions.find(function);
  const auto new_one = facts.new_info->functions.find(function);
  if (old_one == facts.old_info->functions.end() || new_one == facts.new_info->functions.end() ||
      old_one->second.prototype == new_one->second.prototype) {
    return "";
  }
  return old_one->second.prototype + " -> " + new_one->second.prototype;
}

}  // namespace molt::builder
