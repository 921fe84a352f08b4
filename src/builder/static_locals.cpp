#include "builder/static_locals.hpp"

#include <algorithm>
#include <map>
#include <string>

#include <fmt/format.h>

namespace molt::builder {
namespace {

struct Local {
  std::uint32_t symbol = 0;
  const StaticLocal* info = nullptr;
};

// Variables that may be static locals: the numbered ones, and what debug information calls so.
std::vector<Local> locals_of(const View& view, const DebugInfo& info) {
  std::vector<Local> found;
  const auto symbols = view.object().symbols();
  for (std::uint32_t y = 1; y < symbols.size(); ++y) {
    const ObjectSymbol& s = symbols[y];
    const bool is_variable = s.type == STT_OBJECT || s.type == STT_TLS;
    if (!s.is_defined() || !s.is_local() || !is_variable) continue;
    Local local{y, nullptr};
    for (const auto* list : {&info.locals, &info.variables}) {
      for (const StaticLocal& one : *list) {
        const bool is_counted = list == &info.locals || without_number(s.name) != s.name;
        if (is_counted && one.section == s.section && one.offset == s.value) local.info = &one;
      }
    }
    if (local.info != nullptr || without_number(s.name) != s.name) found.push_back(local);
  }
  return found;
}

// "all" of "all, bytes 4 to 7".
std::string_view whole(std::string_view name) { return name.substr(0, name.find(',')); }

// Nobody can tell them apart but by name, or they are parts of a variable that is laid out in another way now.
bool may_be_one(const StaticLocal& a, const StaticLocal& b) {
  return a.name == b.name || (whole(a.name) == whole(b.name) && a.type != b.type);
}

}  // namespace

StaticLocals pair_static_locals(const View& old_view, const View& new_view,
                                const DebugInfo& old_info, const DebugInfo& new_info,
                                const Unit& unit, std::vector<Refusal>& refusals) {
  StaticLocals locals;
  std::vector<Local> olds = locals_of(old_view, old_info), news = locals_of(new_view, new_info);
  const auto is_constant = [](const View& view, std::uint32_t symbol) {
    return view.is_constant(view.symbol(symbol).section);
  };
  const auto take = [&](std::vector<Local>& list, std::size_t index) {
    list.erase(list.begin() + static_cast<std::ptrdiff_t>(index));
  };
  // By everything, then by less: what is left of one name is paired where there is one of it.
  using Same = bool (*)(const StaticLocal&, const StaticLocal&);
  const Same rounds[] = {
      [](const StaticLocal& a, const StaticLocal& b) {
        return a.function == b.function && a.name == b.name && a.block == b.block &&
               a.type == b.type;
      },
      [](const StaticLocal& a, const StaticLocal& b) {
        return a.function == b.function && a.name == b.name && a.type == b.type;
      },
      [](const StaticLocal& a, const StaticLocal& b) {
        return a.name == b.name && a.type == b.type;
      },
  };
  for (std::size_t round = 0; round < std::size(rounds); ++round) {
    for (std::size_t n = 0; n < news.size();) {
      if (news[n].info == nullptr) {
        ++n;
        continue;
      }
      std::vector<std::size_t> matching;
      for (std::size_t o = 0; o < olds.size(); ++o) {
        if (olds[o].info != nullptr && rounds[round](*news[n].info, *olds[o].info)) {
          matching.push_back(o);
        }
      }
      const auto like = std::count_if(news.begin(), news.end(), [&](const Local& other) {
        return other.info != nullptr && rounds[round](*news[n].info, *other.info);
      });
      // The same block: in the order of the source. Else only one by one.
      const bool in_order = round == 0 && static_cast<std::size_t>(like) == matching.size();
      if (matching.empty() || (!in_order && (like != 1 || matching.size() != 1))) {
        ++n;
        continue;
      }
      const std::size_t o = matching.front();
      locals.paired[news[n].symbol] = olds[o].symbol;
      if (round == 2) {
        locals.notes.push_back(fmt::format("{}: the static variable {} of {} is that of {} before",
                                           unit.output, news[n].info->name, news[n].info->function,
                                           olds[o].info->function));
      }
      take(olds, o);
      take(news, n);
    }
  }
  for (const Local& local : news) {
    const ObjectSymbol& symbol = new_view.symbol(local.symbol);
    const std::string base(without_number(symbol.name));
    if (is_constant(new_view, local.symbol)) continue;  // by content
    std::vector<std::uint32_t> candidates;
    for (const Local& old : olds) {
      if (is_constant(old_view, old.symbol)) continue;
      const bool may_be = local.info != nullptr && old.info != nullptr
                              ? may_be_one(*local.info, *old.info)
                              : without_number(old_view.symbol(old.symbol).name) == base;
      if (may_be) candidates.push_back(old.symbol);
    }
    locals.unpaired.insert(local.symbol);
    if (candidates.empty()) continue;  // a new variable
    const auto like = std::count_if(news.begin(), news.end(), [&](const Local& other) {
      return without_number(new_view.symbol(other.symbol).name) == base;
    });
    if (local.info == nullptr && candidates.size() == 1 && like == 1) {
      locals.unpaired.erase(local.symbol);
      locals.paired[local.symbol] = candidates.front();
      continue;
    }
    const bool has_info = local.info != nullptr;
    refusals.push_back(
        {"static_local_unknown", unit.output, std::string(symbol.name),
         has_info ? fmt::format("{}:{}", local.info->file, local.info->line) : "",
         has_info
             ? fmt::format("the static variable {} of {} ({}) may be one of {} of that name that "
                           "have lost their place: its state would be lost",
                           local.info->name,
                           local.info->function.empty() ? unit.source : local.info->function,
                           local.info->type, candidates.size())
             : fmt::format("{} is numbered, and {} old variables have that name", symbol.name,
                           candidates.size()),
         has_info ? "leave it in its function and block, and with its type"
                  : "build with debug information (-g)"});
  }
  return locals;
}

}  // namespace molt::builder
