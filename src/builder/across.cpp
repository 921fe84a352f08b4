#include "builder/across.hpp"

#include <algorithm>
#include <map>
#include <set>
#include <utility>

#include <fmt/format.h>

#include "builder/source_terms.hpp"

namespace molt::builder {
namespace {

// What an object has for others, and what it wants of them.
struct Names {
  std::set<std::string, std::less<>> has, wants;
};
Names names_of(const Object& object) {
  Names names;
  for (const ObjectSymbol& y : object.symbols()) {
    if (y.name.empty() || y.is_local() || y.is_section()) continue;
    if (y.is_undefined()) names.wants.insert(std::string(y.name));
    const bool is_own =
        y.bind == STB_GLOBAL && y.is_defined() && object.section_of(y).group.empty();
    if (is_own || y.is_common) names.has.insert(std::string(y.name));
  }
  return names;
}

// By bytes, and by the names of what it refers to.
bool is_same_elsewhere(const View& now, std::uint32_t i, const View& before, std::uint32_t j) {
  const ObjectSection &a = now.section(i), &b = before.section(j);
  if (a.size != b.size || !std::ranges::equal(a.bytes, b.bytes) ||
      a.relocations.size() != b.relocations.size() || a.flags != b.flags) {
    return false;
  }
  for (std::size_t k = 0; k < a.relocations.size(); ++k) {
    const Relocation &ra = a.relocations[k], &rb = b.relocations[k];
    if (ra.type != rb.type || ra.offset != rb.offset) return false;
    const Referent to = now.reference(i, ra), was = before.reference(j, rb);
    const auto is_text = [](const View& view, const Referent& ref) {
      return ref.section != 0 && view.section(ref.section).is_mergeable();
    };
    if (is_text(now, to) && is_text(before, was)) {
      if (!std::ranges::equal(now.merged(to.section, to.offset),
                              before.merged(was.section, was.offset))) {
        return false;
      }
      continue;
    }
    if (to.symbol == 0 || was.symbol == 0 || to.offset != was.offset) return false;
    if (now.symbol(to.symbol).name != before.symbol(was.symbol).name) return false;
  }
  return true;
}

struct Across : AcrossRequest {
  // Of all units in the running files, as they are there.
  std::map<std::size_t, Names> names_before() const {
    std::map<std::size_t, Names> all;
    for (std::size_t u = 0; u < units.size(); ++u) {
      const bool is_here =
          !units[u].is_new() &&
          std::ranges::any_of(placements, [&](const auto* p) { return p->contains(u); });
      if (!is_here) continue;
      if (auto object = Object::read(units[u].old_objects.plain)) all[u] = names_of(*object);
    }
    return all;
  }

  const Studied* studied_of(std::size_t unit) const {
    const auto found = std::ranges::find_if(
        studied, [&](const auto& s) { return s->index == unit && s->comparison; });
    return found == studied.end() ? nullptr : found->get();
  }

  void refuse_bound(const Studied& s, const std::string& name, const std::string& why) {
    refusals.push_back({"bound_elsewhere", s.unit->output, name,
                        place_of_function(s.new_info, name),
                        fmt::format("{} {}", readable(name), why),
                        "give the new one another name, and change who calls it"});
  }

  // The name is new in `s`, and `from` had it.
  void take_over(Studied& s, std::uint32_t y, const Studied& from) {
    const ObjectSymbol& symbol = s.new_view->symbol(y);
    const std::string name(symbol.name);
    const std::uint32_t old = from.old_view->object().find_symbol(name);
    const std::string went =
        fmt::format("{} goes from {} to {}", readable(name), from.unit->output, s.unit->output);
    const bool is_same = is_same_elsewhere(*s.new_view, symbol.section, *from.old_view,
                                           from.old_view->symbol(old).section);
    if (!symbol.is_function()) {
      if (s.new_view->is_constant(symbol.section)) {
        if (is_same) return;
        refusals.push_back({"data_changed", s.unit->output, name,
                            place_of_symbol(s.new_info, *s.new_view, y), went + ", and changes",
                            "leave it where it is"});
      }
      return;  // refuse_moved_state()
    }
    const auto was = from.old_info.functions.find(name);
    const auto is = s.new_info.functions.find(name);
    if (was != from.old_info.functions.end() && is != s.new_info.functions.end() &&
        was->second.prototype != is->second.prototype) {
      refusals.push_back({"prototype_changed", s.unit->output, name,
                          place_of_function(s.new_info, name),
                          fmt::format("{}, and changes: {} -> {}", went, was->second.prototype,
                                      is->second.prototype),
                          "leave it where it is, or give the new one another name"});
      return;
    }
    if (!is_wherever(placements, s, from) || !is_wherever(placements, from, s)) {
      return refuse_bound(s, name, "goes from one running file to another");
    }
    if (const auto problem = entry_problem(from, name); problem && !is_same) {
      refusals.push_back(
          {"entry", s.unit->output, name, place_of_function(s.new_info, name),
           fmt::format("{}, and its entry cannot be led there: {}", went, problem->why),
           "leave it where it is"});
      return;
    }
    s.moved[y] = {from.index, old, is_same};
    if (!is_same) notes.push_back(went + ", and changes: its old entry is led to the new one");
  }

  void find_moved() {
    const auto before = names_before();
    std::set<std::string, std::less<>> gained;
    for (const auto& s : studied) {
      for (std::uint32_t y = 1; y < s->new_view->object().symbols().size(); ++y) {
        const ObjectSymbol& symbol = s->new_view->symbol(y);
        const bool is_own = symbol.is_defined() && symbol.bind == STB_GLOBAL &&
                            !symbol.name.empty() &&
                            s->new_view->section(symbol.section).group.empty();
        if (!is_own || (s->comparison && s->comparison->old_symbol(y) != 0)) continue;
        const std::string name(symbol.name);
        gained.insert(name);
        for (const auto& [u, names] : before) {
          if (u == s->index) continue;
          if (names.has.contains(name)) {
            const Studied* from = studied_of(u);
            const std::uint32_t there =
                from != nullptr ? from->new_view->object().find_symbol(name) : 0;
            const bool is_gone =
                from != nullptr && (there == 0 || !from->new_view->symbol(there).is_defined());
            if (is_gone) {
              take_over(*s, y, *from);
            } else {
              refuse_bound(*s, name,
                           fmt::format("is new in {}, and the running program has that of {}",
                                       s->unit->output, units[u].output));
            }
            break;
          }
        }
        const bool is_known = std::ranges::any_of(before, [&](const auto& one) {
          return one.first != s->index && one.second.has.contains(name);
        });
        const auto user = std::ranges::find_if(before, [&](const auto& one) {
          return one.first != s->index && one.second.wants.contains(name);
        });
        if (is_known || user == before.end()) continue;
        refuse_bound(
            *s, name,
            fmt::format(
                "is new in {}, and {} has called what had that name, or nothing, when the program "
                "was linked",
                s->unit->output, units[user->first].output));
      }
    }
    for (const auto& s : studied) {
      if (!s->comparison || !before.contains(s->index)) continue;
      const Names now = names_of(*s->new_object);
      for (const std::string& name : before.at(s->index).has) {
        const std::uint32_t y = s->new_object->find_symbol(name);
        const bool is_there = y != 0 && s->new_object->symbols()[y].is_defined();
        if (is_there || gained.contains(name)) continue;
        std::string user = now.wants.contains(name) ? s->unit->output : "";
        for (const auto& [u, names] : before) {
          const Studied* other = studied_of(u);
          const bool wants = other != nullptr ? names_of(*other->new_object).wants.contains(name)
                                              : names.wants.contains(name);
          if (u != s->index && wants) user = units[u].output;
        }
        if (user.empty()) continue;
        refuse_bound(
            *s, name,
            fmt::format("is taken out of {}, and {} still calls it: another's is meant now",
                        s->unit->output, user));
      }
    }
    refuse_moved_state();
  }

  // A variable that one unit has no more, and another has anew, static or not: it would begin anew there.
  void refuse_moved_state() {
    std::vector<std::pair<const Studied*, VariableChanges>> all;
    for (const auto& s : studied)
      all.emplace_back(s.get(), variable_changes(*s->new_view, s->facts()));
    for (const auto& [from, gone] : all) {
      for (const auto& [to, come] : all) {
        if (from == to) continue;
        for (const auto& [name, y] : come.fresh) {
          const bool is_accepted = std::ranges::any_of(
              options.accept,
              [&name = name](const std::string& given) { return is_called(name, given); });
          if (!gone.lost.contains(name) || is_accepted) continue;
          refusals.push_back(
              {"variable_moved", to->unit->output, std::string(to->new_view->symbol(y).name),
               place_of_symbol(to->new_info, *to->new_view, y),
               fmt::format("variable {} goes from {} to {}: the new one would begin anew, and what "
                           "the old one "
                           "holds would be lost",
                           name, from->unit->output, to->unit->output),
               fmt::format("leave it where it is, or --accept={} if that may be", name)});
        }
      }
    }
  }
};

}  // namespace

void find_moved(const AcrossRequest& request) { Across{request}.find_moved(); }

}  // namespace molt::builder
