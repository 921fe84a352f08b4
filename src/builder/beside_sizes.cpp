#include "builder/beside_sizes.hpp"

#include "builder/compare.hpp"
#include "builder/debug_info.hpp"
#include "builder/source_terms.hpp"
#include "builder/static_locals.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <set>

namespace molt::builder {
namespace {

using Records = std::map<std::string, Record>;

constexpr const char* by_hand = "keep the members by hand (--callbacks, molt_shadow_alloc)";

// Of a type that has it as a member, a larger one may have the same size: a union with bytes, a slot of a pool.
bool has_member_of(const DebugInfo& info, const TypeLayout& layout, const std::string& spelled) {
  return std::ranges::any_of(layout.members, [&](const TypeMember& member) {
    std::string type = member.type;
    for (int depth = 0; depth < 8; ++depth) {
      // By value, or in one without a name.
      const std::string text = " " + type + " ";
      for (std::size_t at = text.find(spelled); at != text.npos; at = text.find(spelled, at + 1)) {
        const char before = text[at - 1];
        const char behind = text[at + spelled.size()];
        if ((before == ' ' || before == '{') && (behind == ' ' || behind == '[')) return true;
      }
      const auto alias = info.types.find("typedef " + type.substr(0, type.find_first_of(" [")));
      if (alias == info.types.end() || alias->second.members.empty()) break;
      type = alias->second.members.front().type;
    }
    return false;
  });
}

}  // namespace

void refuse_who_knows_sizes(const std::vector<Beside>& types, const Records& made,
                            const Records& grown, const std::vector<std::string>& keep_old,
                            std::vector<Refusal>& refusals) {
  for (const Beside& one : types) {
    if (!one.makers.empty()) continue;
    refusals.push_back(
        {"layout_changed", one.file, "", "",
         fmt::format("no place is known where {} is made: one would get what lay beside "
                     "another that had its address",
                     one.type),
         by_hand});
  }
  for (const auto& [output, record] : grown) {
    const auto as_it_is = made.find(output);
    if (as_it_is == made.end()) continue;
    const std::string& path = as_it_is->second.shadow;
    auto object = Object::read(path);
    auto larger = Object::read(record.shadow);
    auto info = DebugInfo::read(path);
    auto larger_info = DebugInfo::read(record.shadow);
    if (!object || !larger || !info || !larger_info) {
      refusals.push_back(
          {"layout_changed", output, "", "",
           fmt::format("{} cannot be compared with one in which types are larger", output), ""});
      continue;
    }
    for (const Beside& one : types) {
      for (const auto& [key, layout] : info->types) {
        if ((layout.kind != "struct" && layout.kind != "union") ||
            !has_member_of(*info, layout, one.spelled))
          continue;
        refusals.push_back(
            {"layout_changed", output, "", "",
             fmt::format("{} has {} as a member: where one is made is not where the other is", key,
                         one.type),
             by_hand});
      }
    }
    const View view(*object);
    const View larger_view(*larger);
    for (std::uint32_t i = 1; i < object->sections().size(); ++i) {
      // gcc's copies too: make.constprop.0.
      const std::string name(view.name(i).substr(0, view.name(i).find('.')));
      const bool is_kept = std::ranges::find(keep_old, name) != keep_old.end();
      const bool makes = std::ranges::any_of(view.section(i).relocations, [&](const Relocation& r) {
        return view.symbol(r.symbol).name == "molt_beside_born";
      });
      if (!is_kept || !makes) continue;
      refusals.push_back({"layout_changed", output, "", "",
                          fmt::format("{} makes objects, and stays as it is (--keep-old): what lay "
                                      "beside others is not forgotten there",
                                      name),
                          by_hand});
    }
    Unit unit;
    unit.output = output;
    const StaticLocals locals =
        pair_static_locals(view, larger_view, *info, *larger_info, unit, refusals);
    const Comparison comparison(view, larger_view, locals.paired, locals.unpaired);
    std::set<std::string> names;
    for (const std::uint32_t section : comparison.changed) names.emplace(larger_view.name(section));
    for (const std::uint32_t section : comparison.data_changed)
      names.emplace(larger_view.name(section));
    for (const std::uint32_t section : comparison.added) names.emplace(larger_view.name(section));
    std::string all;
    for (const Beside& one : types) all += (all.empty() ? "" : ", ") + one.type;
    for (const std::string& name : names) {
      refusals.push_back({"layout_changed", output, name, place_of_function(*info, name),
                          fmt::format("{} knows how large {} is: it copies objects, or makes "
                                      "them in a way that is not understood",
                                      readable(name), all),
                          by_hand});
    }
  }
}

}  // namespace molt::builder
