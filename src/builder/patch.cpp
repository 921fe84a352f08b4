// patch.cpp - the phases of build_patch(): read, compare, refuse, decide what is replaced, collect,
// write.

#include "builder/patch.hpp"

#include <algorithm>
#include <cctype>
#include <fstream>
#include <iterator>
#include <map>
#include <memory>
#include <set>
#include <utility>

#include <fmt/format.h>

#include "base/hash.hpp"
#include "builder/across.hpp"
#include "builder/closure.hpp"
#include "builder/compare.hpp"
#include "builder/debug_info.hpp"
#include "builder/edits.hpp"
#include "builder/entries.hpp"
#include "builder/object.hpp"
#include "builder/patch_writer.hpp"
#include "builder/source_terms.hpp"
#include "builder/static_locals.hpp"
#include "builder/studied.hpp"
#include "builder/unsafe.hpp"
#include "elf/image.hpp"

namespace molt::builder {
namespace {

struct Builder {
  std::span<const Unit> units;
  std::span<const Placement* const> placements;
  const PatchOptions& options;
  const Edits edits{options.diff};
  std::vector<std::unique_ptr<Studied>> studied{};
  std::vector<Refusal> refusals{};
  PatchReport report{};
  std::vector<std::optional<Entries>> entries{};  // of the placements

  void refuse(const Studied* of, const std::string& kind, const std::string& symbol,
              const std::string& text, const std::string& advice) {
    refusals.push_back({kind, of != nullptr ? of->unit->output : "", symbol, "", text, advice});
  }

  // --- read, compare ---

  bool study(std::size_t index) {
    const Unit& unit = units[index];
    auto s = std::make_unique<Studied>();
    s->index = index;
    s->unit = &unit;
    const auto read = [&](const std::string& path, std::optional<Object>& object, DebugInfo& info) {
      auto made = Object::read(path);
      if (!made) {
        refuse(s.get(), made.error().code == EILSEQ ? "lto" : "object", "", made.error().detail,
               "");
        return false;
      }
      object.emplace(std::move(*made));
      auto debug = DebugInfo::read(path);
      if (debug) info = std::move(*debug);
      return true;
    };
    if (!read(unit.new_objects.shadow, s->new_object, s->new_info)) return false;
    s->new_view = std::make_unique<View>(*s->new_object);
    if (!unit.is_new()) {
      if (!read(unit.old_objects.shadow, s->old_object, s->old_info)) return false;
      s->old_view = std::make_unique<View>(*s->old_object);
      const StaticLocals locals =
          pair_static_locals(*s->old_view, *s->new_view, s->old_info, s->new_info, unit, refusals);
      report.notes.insert(report.notes.end(), locals.notes.begin(), locals.notes.end());
      s->comparison =
          std::make_unique<Comparison>(*s->old_view, *s->new_view, locals.paired, locals.unpaired);
    }
    studied.push_back(std::move(s));
    return true;
  }

  // --- refuse what is unsafe ---

  // asm, __asm or __asm__, and what opens the text.
  static bool has_assembly(std::string_view text) {
    const auto is_of_name = [](char c) { return std::isalnum(static_cast<unsigned char>(c)) != 0; };
    for (std::size_t at = text.find("asm"); at != text.npos; at = text.find("asm", at + 1)) {
      const std::size_t end = at + 3;
      if ((at == 0 || !is_of_name(text[at - 1])) &&
          (end == text.size() || !is_of_name(text[end]))) {
        return text.find_first_of("(\"") != text.npos;
      }
    }
    return false;
  }

  void refuse_unsafe() {
    for (const auto& s : studied) {
      if (!s->comparison) continue;
      const UnitFacts facts = s->facts();
      if (!s->old_info.is_there || !s->new_info.is_there) {
        report.notes.push_back(
            fmt::format("{}: no debug information: changed layouts and prototypes are "
                        "not seen; build with -g",
                        s->unit->output));
      }
      refuse_layouts(facts, options, edits, refusals);
      refuse_data(facts, options, refusals);
      refuse_moved_variables(facts, options, refusals, report.notes);
      refuse_constructors(facts, options, refusals);
      refuse_functions(facts, refusals);
    }
    for (const EditedLine& line : edits.lines()) {
      const bool has_asm = has_assembly(line.text);
      if (line.added && has_asm) {
        report.notes.push_back(fmt::format("{}:{}: inline assembly, which nothing checks: {}",
                                           line.file, line.line, line.text));
      }
    }
  }

  // --- what is replaced ---

  bool is_referred_to(const View& view, std::uint32_t in, std::uint32_t section) const {
    for (const Relocation& r : view.section(in).relocations) {
      if (view.reference(in, r).section == section) return true;
    }
    return false;
  }

  // Who uses the function, of those that stay as they are.
  std::vector<std::uint32_t> unchanged_users(const Studied& s, std::uint32_t section,
                                             bool data) const {
    std::vector<std::uint32_t> users;
    const View& view = *s.new_view;
    for (std::uint32_t i = 1; i < view.object().sections().size(); ++i) {
      const ObjectSection& from = view.section(i);
      const bool counts = data ? from.is_allocated() && !from.is_code() && view.owner(i) != 0
                               : from.is_code() && !s.comparison->changed.contains(i) &&
                                     !s.comparison->added.contains(i);
      if (counts && i != section && is_referred_to(view, i, section)) users.push_back(i);
    }
    return users;
  }

  std::set<std::string> kept{};  // of options.keep_old

  // What a function that stays would need that is there no more: compilers use what they know of a callee (which
  // registers and variables it leaves alone, that it does not return), and copies of it take what they please.
  // "": nothing; whether it is such a copy.
  std::pair<std::string, bool> reliance(const Studied& s, std::uint32_t section) const {
    const std::uint32_t old = s.comparison->old_section(section);
    const View &before = *s.old_view, &now = *s.new_view;
    const std::string own(before.name(old));
    std::string changed;
    for (const Relocation& r : before.section(old).relocations) {
      const Referent ref = before.reference(old, r);
      if (ref.section == 0 || ref.section == old || ref.symbol == 0) continue;
      if (!before.section(ref.section).is_code()) continue;
      const std::string name(before.symbol(ref.symbol).name);
      if (is_cold(name) && name.starts_with(own + ".")) continue;
      const std::uint32_t y = now.object().find_symbol(name);
      const bool is_there = y != 0 && now.symbol(y).is_defined();
      if (!is_there && is_clone(name)) {
        return {fmt::format("it calls {}, a copy that the compiler makes no more", name), true};
      }
      for (const std::uint32_t a : s.comparison->added) {
        const std::string_view copy = now.name(a);
        if (!is_there && copy.starts_with(name + ".") && is_clone(copy) && !is_cold(copy)) {
          return {fmt::format("it calls {}, of which there is only a copy ({}) now", name, copy),
                  true};
        }
      }
      if (!is_there || !s.comparison->changed.contains(now.symbol(y).section)) continue;
      if (is_clone(name)) {
        return {fmt::format("it calls {}, a copy that may take something else now", name), true};
      }
      changed = fmt::format("it calls {}, which changed", name);
    }
    return {changed, false};
  }

  void keep_old(Studied& s) {
    auto& changed = s.comparison->changed;
    const auto drop = [&](const std::string& name) {
      for (const std::uint32_t i : std::vector(changed.begin(), changed.end())) {
        const std::string_view other = s.new_view->name(i);
        const std::string_view whole =
            is_cold(other) ? other.substr(0, other.find(".cold")) : other;
        if (!is_called(whole, name)) continue;
        changed.erase(i);
        s.kept.insert(i);
        kept.insert(name);
      }
    };
    for (const std::string& name : options.keep_old) {
      for (const std::uint32_t i : changed) {
        if (!is_called(s.new_view->name(i), name)) continue;
        const auto [what, is_copy] = reliance(s, i);
        if (is_copy) {
          refusals.push_back({"prototype_changed", s.unit->output, name, place_of(s, name),
                              fmt::format("{} is to stay as it is, but {}", name, what),
                              "let it be replaced, or change another function"});
        } else if (!what.empty()) {
          report.notes.push_back(
              fmt::format("{}: {} stays as it was compiled, with what was known of the old "
                          "functions then, but {}",
                          s.unit->output, name, what));
        }
      }
      drop(name);
    }
    for (const std::uint32_t i : std::vector(changed.begin(), changed.end())) {
      if (s.new_view->name(i) != "main") continue;
      const std::string what = reliance(s, i).first;
      if (what.empty() && is_ripple(s.facts(), "main", edits)) {
        report.notes.push_back(
            fmt::format("{}: main changed only because other functions were inlined elsewhere than "
                        "before; it stays as it is",
                        s.unit->output));
        drop("main");
        break;
      }
      refusals.push_back(
          {"always_on_stack", s.unit->output, "main", place_of(s, "main"),
           fmt::format("main is always on the stack: nobody would ever enter the new one{}",
                       what.empty() ? "" : "; " + what),
           "move the change into a function that main calls, or --keep-old=main if it "
           "changed only by inlining"});
    }
  }

  static std::string place_of(const Studied& s, const std::string& function) {
    return place_of_function(s.new_info, function);
  }

  // Why the function cannot be entered through its old address, of all running files that have it.
  std::optional<Entries::Problem> entry_problem(const Studied& s, const std::string& name) {
    for (std::size_t p = 0; p < placements.size(); ++p) {
      const PlacedFunction* f = placements[p]->function(s.index, name);
      if (f == nullptr || f->address == 0 || f->size == 0) continue;
      if (entries.size() <= p) entries.resize(placements.size());
      if (!entries[p]) entries[p].emplace(*placements[p], units.size());
      if (auto problem = entries[p]->problem(*f)) return problem;
    }
    return std::nullopt;
  }

  // Whether the old function must not be led to the new one: it takes something else now, or its entry
  // has no room. Then all who call it are replaced, and call the new one.
  bool is_private(Studied& s, std::uint32_t section) {
    const ObjectSymbol& symbol = s.new_view->symbol(s.new_view->owner(section));
    const std::string name(symbol.name);
    const std::string prototype = prototype_change(s.facts(), name);
    const bool has_clone_mark = is_clone(name) || name == "main";
    const auto problem =
        prototype.empty() && !has_clone_mark ? entry_problem(s, name) : std::nullopt;
    if (prototype.empty() && !problem) return false;
    const std::string why = problem ? problem->why : prototype;
    const std::string kind = problem ? "entry" : "prototype_changed";
    const std::string advice = problem ? "change the functions that call it instead"
                                       : "give the new function another name";
    if (problem && (!problem->too_short || !symbol.is_local())) {
      refusals.push_back({kind, s.unit->output, name, place_of(s, name),
                          fmt::format("{} cannot be led to the new one: {}", name, why), advice});
      return false;
    }
    if (!symbol.is_local()) refuse_foreign_callers(s, name, prototype);
    if (const auto users = unchanged_users(s, section, true); !users.empty()) {
      refusals.push_back({kind, s.unit->output, name, place_of(s, name),
                          fmt::format("{}: {}, and its address is stored in {}", name, why,
                                      s.new_view->name(users.front())),
                          advice});
    }
    return true;
  }

  void decide() {
    for (const auto& s : studied) {
      if (s->comparison) keep_old(*s);
    }
    for (bool again = true; again;) {
      again = false;
      for (const auto& s : studied) again |= s->comparison && set_apart(*s);
    }
    for (const auto& s : studied) {
      if (s->comparison) choose(*s);
    }
  }

  // The functions that take something else now; who calls one has changed too.
  bool set_apart(Studied& s) {
    bool is_any = false;
    for (const std::uint32_t i :
         std::vector(s.comparison->changed.begin(), s.comparison->changed.end())) {
      if (!s.looked_at.insert(i).second || s.new_view->owner(i) == 0 || !is_private(s, i)) continue;
      s.apart.insert(i);
      is_any = true;
      const ObjectSymbol& symbol = s.new_view->symbol(s.new_view->owner(i));
      for (const std::uint32_t user : unchanged_users(s, i, false)) add_user(s, user, symbol);
      if (symbol.is_local()) continue;
      for (const auto& other : studied) {
        if (other.get() != &s) add_users(s, *other, symbol);
      }
    }
    return is_any;
  }

  void refuse_user(const Studied& s, const ObjectSymbol& symbol, const std::string& why) {
    const std::string name(symbol.name);
    const std::string change = prototype_change(s.facts(), name);
    refusals.push_back(
        {"prototype_changed", s.unit->output, name, place_of(s, name),
         fmt::format("{}: {}, and {}", name,
                     change.empty() ? "its entry has no room for a jump" : change, why),
         "give the new function another name"});
  }

  void add_user(Studied& of, std::uint32_t user, const ObjectSymbol& called) {
    const std::string name(of.new_view->name(user));
    if (name == "main" || of.kept.contains(user)) {
      refuse_user(of, called, fmt::format("{}, which stays as it is, calls it", name));
    } else {
      of.comparison->changed.insert(user);
    }
  }

  // Of another unit that changed too, though perhaps not where it calls the function.
  void add_users(const Studied& s, Studied& other, const ObjectSymbol& called) {
    const View& view = *other.new_view;
    for (std::uint32_t i = 1; i < view.object().sections().size(); ++i) {
      const ObjectSection& from = view.section(i);
      const bool refers =
          from.is_allocated() && std::ranges::any_of(from.relocations, [&](const Relocation& r) {
            const ObjectSymbol& y = view.symbol(r.symbol);
            return y.is_undefined() && y.name == called.name;
          });
      if (!refers) continue;
      if (!is_wherever(placements, s, other)) {
        return refuse_user(s, called,
                           fmt::format("{} calls it from another file", other.unit->output));
      }
      if (from.is_code()) {
        const bool is_known = !other.comparison || other.comparison->changed.contains(i) ||
                              other.comparison->added.contains(i);
        if (!is_known) add_user(other, i, called);
      } else if (view.owner(i) != 0 && other.comparison && other.comparison->old_section(i) != 0) {
        refuse_user(s, called, fmt::format("its address is stored in {}", view.name(i)));
      }
    }
  }

  // gcc makes one of functions that are equal. Those that were one, and of which one changed, have one entry;
  // those that have become one have two.
  void choose_joined(Studied& s) {
    const View &before = *s.old_view, &now = *s.new_view;
    struct Led {
      std::uint32_t symbol, section;
      bool is_led;
    };
    std::map<std::pair<std::uint32_t, std::uint64_t>, std::vector<Led>> entries_before;
    for (std::uint32_t y = 1; y < now.object().symbols().size(); ++y) {
      const ObjectSymbol& symbol = now.symbol(y);
      const std::uint32_t old = s.comparison->old_symbol(y);
      if (!symbol.is_defined() || symbol.type != STT_FUNC || symbol.size == 0 || old == 0) continue;
      const std::uint32_t owner = now.owner(symbol.section);
      if (owner == 0 || symbol.value != now.symbol(owner).value) continue;
      const ObjectSymbol& was = before.symbol(old);
      const bool is_joined = s.comparison->old_section(symbol.section) != was.section;
      const bool is_led = is_joined || s.replaced.contains(symbol.section);
      entries_before[{was.section, was.value}].push_back({y, symbol.section, is_led});
      if (!is_joined) continue;
      const std::string name(symbol.name);
      s.joined.insert(y);
      const std::string prototype = prototype_change(s.facts(), name);
      const auto problem = entry_problem(s, name);
      if (prototype.empty() && !problem) continue;
      refusals.push_back({"entry", s.unit->output, name, place_of(s, name),
                          fmt::format("{} cannot be led to the new one: {}", readable(name),
                                      problem ? problem->why : prototype),
                          "change the functions that call it instead"});
    }
    for (const auto& [entry, all] : entries_before) {
      const auto led = std::ranges::find(all, true, &Led::is_led);
      const auto other = led == all.end() ? led : std::ranges::find_if(all, [&](const Led& one) {
        return one.section != led->section;
      });
      if (other == all.end()) continue;
      const std::string name(now.symbol(led->symbol).name);
      refusals.push_back(
          {"shared_function", s.unit->output, name, place_of(s, name),
           fmt::format("{} and {} are one function in the running program (the compiler found them "
                       "equal), and are two now: who calls the one would get the other",
                       readable(name), readable(now.symbol(other->symbol).name)),
           "make the change in both, or in a new function that is called instead"});
    }
  }

  void choose(Studied& s) {
    for (const std::uint32_t i : s.comparison->changed) {
      const std::uint32_t owner = s.new_view->owner(i);
      if (owner == 0 || s.apart.contains(i)) continue;
      const std::string_view name = s.new_view->symbol(owner).name;
      if (name == "main" || is_cold(name)) continue;
      // A clone that all of its users bring along is theirs alone.
      if (is_clone(name) && unchanged_users(s, i, false).empty()) continue;
      s.replaced.insert(i);
      for (const std::uint32_t y : s.new_view->thunks(i)) {
        const std::string thunk(s.new_view->symbol(y).name);
        const auto problem = entry_problem(s, thunk);
        if (!problem) continue;
        refusals.push_back(
            {"entry", s.unit->output, thunk, place_of(s, std::string(name)),
             fmt::format("{} cannot be led to the new one: {}", readable(thunk), problem->why),
             "change the functions that it calls instead"});
      }
    }
    choose_joined(s);
  }

  // The objects of units that the diff leaves alone still call the function as it was.
  void refuse_foreign_callers(const Studied& s, const std::string& name,
                              const std::string& prototype) {
    for (std::size_t u = 0; u < units.size(); ++u) {
      if (units[u].is_changed() || units[u].is_new()) continue;
      auto object = Object::read(units[u].old_objects.plain);
      if (!object) continue;
      const auto symbols = object->symbols();
      const bool calls = std::any_of(symbols.begin(), symbols.end(), [&](const ObjectSymbol& y) {
        return y.is_undefined() && y.name == name;
      });
      if (!calls) continue;
      refusals.push_back(
          {"prototype_changed", s.unit->output, name, place_of(s, name),
           fmt::format("{}: {}, and {} calls it as before", name, prototype, units[u].output),
           "give the new function another name"});
      return;
    }
  }

  // A table of functions, a structure of settings: such are handed to somebody once, who keeps where they are.
  void note_kept_address(const Studied& s, std::uint32_t constant) {
    const View& view = *s.new_view;
    const auto is_structure = [&](const StaticLocal& v) {
      return v.section == constant && v.offset == 0 &&
             (v.type.starts_with("struct ") || v.type.starts_with("union "));
    };
    const bool is_handed_on = !view.section(constant).relocations.empty() ||
                              std::ranges::any_of(s.new_info.variables, is_structure) ||
                              std::ranges::any_of(s.new_info.locals, is_structure);
    if (!is_handed_on || view.name(constant).starts_with("_ZT")) return;
    report.notes.push_back(
        fmt::format("{}: constant {} changed: functions that read it are replaced, and who has "
                    "kept its address "
                    "goes on with the old one",
                    s.unit->output, readable(plain_name(s.new_info, view, view.owner(constant)))));
  }

  // Constants that other units read by name keep their old value there.
  void refuse_shared_constants(const Studied& s) {
    if (!s.comparison) return;
    const View& view = *s.new_view;
    for (std::uint32_t i = 1; i < view.object().sections().size(); ++i) {
      const std::uint32_t owner = view.owner(i);
      if (owner == 0 || !view.is_constant(i) || s.comparison->old_section(i) == 0 ||
          s.comparison->same(i)) {
        continue;
      }
      const ObjectSymbol& symbol = view.symbol(owner);
      note_kept_address(s, i);
      if (symbol.is_local() || symbol.bind == STB_WEAK || symbol.name.starts_with("_ZT")) continue;
      for (std::size_t u = 0; u < units.size(); ++u) {
        if (u == s.index || units[u].is_new()) continue;
        auto object = Object::read(units[u].old_objects.plain);
        if (!object) continue;
        const auto symbols = object->symbols();
        const bool reads = std::any_of(symbols.begin(), symbols.end(), [&](const ObjectSymbol& y) {
          return y.is_undefined() && y.name == symbol.name;
        });
        if (!reads) continue;
        refusals.push_back(
            {"data_changed", s.unit->output, std::string(symbol.name),
             place_of_symbol(s.new_info, view, owner),
             fmt::format(
                 "constant {} changed ({}), and {} reads it too", symbol.name,
                 value_change(s.new_info, *s.old_view, s.comparison->old_section(i), view, i),
                 units[u].output),
             "give the new one another name"});
        break;
      }
    }
  }

  // --- what the runtime has ---

  std::set<std::string> runtime{};  // names of its functions

  // A file that cannot be read has none: what is missing is refused by its name.
  void read_runtime() {
    if (options.runtime.empty()) return;
    std::ifstream in(options.runtime, std::ios::binary);
    const std::string text{std::istreambuf_iterator<char>(in), {}};
    const auto image = elf::Image::parse(std::as_bytes(std::span(text)), elf::Purpose::examine);
    if (!image) return;
    for (const elf::Symbol& symbol : image->dynamic_symbols()) {
      if (symbol.exported() && symbol.type == STT_FUNC) runtime.insert(std::string(symbol.name));
    }
  }

  // --- hand-written additions ---

  std::optional<Object> additions{};
  std::unique_ptr<View> additions_view{};
  Unit additions_unit{};
  bool additions_taken = false;

  void read_additions() {
    if (options.additions.empty()) return;
    additions_unit.output = options.additions.front();
    const auto wrong = [&](const std::string& text, const std::string& advice) {
      refusals.push_back({"additions", additions_unit.output, "", "", text, advice});
    };
    if (options.additions.size() > 1) return wrong("more than one file of callbacks", "use one");
    auto made = Object::read(options.additions.front());
    if (!made) return wrong(made.error().detail, "");
    additions.emplace(std::move(*made));
    additions_view = std::make_unique<View>(*additions);
    for (const ObjectSection& s : additions->sections()) {
      if (s.name.starts_with(".init_array") || s.name.starts_with(".ctors")) {
        wrong("it has constructors, and nothing runs them", "do it in pre_patch");
      }
    }
    if (additions->find_section(patch_file::callbacks_section) == 0 &&
        additions->find_section(patch_file::states_section) == 0) {
      wrong("it has neither callbacks nor states",
            "name them with MOLT_PATCH_CALLBACKS or MOLT_PATCH_STATE (molt/livepatch.h)");
    }
  }

  void include_additions(Closure& closure, const DiffedUnit& unit) const {
    for (std::string_view name : {patch_file::callbacks_section, patch_file::states_section}) {
      const std::uint32_t section = additions->find_section(name);
      if (section != 0) closure.include(unit, section);
    }
  }

  // --- collect ---

  static std::string base_name(const std::string& path) { return path.substr(path.rfind('/') + 1); }

  void add_parts(PatchWriter& writer, std::uint32_t target, const Placement& placement,
                 std::size_t unit, const std::string& name) {
    for (const PlacedFunction& f : placement.functions(unit)) {
      if (!f.name.starts_with(name + ".") || f.match != PlacedFunction::Match::proven) continue;
      const std::string_view rest = std::string_view(f.name).substr(name.size());
      if (!is_cold(rest) && rest.find(".part") != 0) continue;
      const auto bytes = placement.image().bytes(f.address, f.size);
      if (!bytes) continue;
      PatchWriter::Function part;
      part.target = target;
      part.name = f.name;
      part.is_part = true;
      part.old_address = f.address;
      part.old_size = f.size;
      part.old_bytes = *bytes;
      writer.add_function(part);
    }
  }

  void collect(PatchWriter& writer, const Placement& placement) {
    std::vector<DiffedUnit> diffed;
    for (const auto& s : studied) {
      const bool is_here = s->unit->is_new() || placement.contains(s->index);
      if (!is_here) continue;
      diffed.push_back({s->index, s->index, s->unit, s->new_view.get(), s->old_view.get(),
                        s->comparison.get(), &s->new_info, s->replaced, s->apart, s->joined,
                        s->moved});
    }
    const bool any = std::any_of(diffed.begin(), diffed.end(), [](const DiffedUnit& d) {
      return !d.replaced.empty() || !d.joined.empty() ||
             std::ranges::any_of(d.moved, [](const auto& one) { return !one.second.is_same; });
    });
    if (!any) return;
    const RunningFile& image = placement.image();
    const std::string image_name =
        image.soname().empty() ? base_name(image.path()) : image.soname();
    if (image.build_id().empty()) {
      refuse(
          nullptr, "no_build_id", image_name,
          fmt::format("{} has no build-id: nothing would tell it from another build", image.path()),
          "link it with -Wl,--build-id");
      return;
    }
    std::uint32_t flags = image.is_program() ? patch_file::target_is_program : 0u;
    if (!image.is_position_independent()) flags |= patch_file::target_is_low;
    const std::uint32_t target = writer.add_target(image_name, image.build_id(), flags);
    // They are of the first target that anything is replaced in.
    const bool is_first = additions && !std::exchange(additions_taken, true);
    if (is_first || (additions && options.has_copies)) {
      diffed.push_back({units.size(),
                        diffed.front().index,
                        &additions_unit,
                        additions_view.get(),
                        nullptr,
                        nullptr,
                        nullptr,
                        {}});
    }
    Closure closure(writer, target, placement, placements, diffed, runtime, refusals, report);
    if (is_first) include_additions(closure, diffed.back());
    std::set<std::uint64_t> done;  // one function of a header in several units
    for (const DiffedUnit& d : diffed) {
      const auto add = [&d = d, &closure, &done, &image_name, &placement, &writer, target, this](
                           std::uint32_t y, std::size_t of) {
        add_function(writer, target, placement, d, y, of, closure, image_name, done);
      };
      for (const std::uint32_t i : d.replaced) {
        add(d.new_view->owner(i), d.index);
        for (const std::uint32_t y : d.new_view->thunks(i)) add(y, d.index);
      }
      for (const std::uint32_t y : d.joined) add(y, d.index);
      for (const auto& [y, origin] : d.moved) {
        if (!origin.is_same) add(y, origin.unit);
      }
    }
    closure.finish();
  }

  void add_function(PatchWriter& writer, std::uint32_t target, const Placement& placement,
                    const DiffedUnit& d, std::uint32_t index, std::size_t of, Closure& closure,
                    const std::string& image_name, std::set<std::uint64_t>& done) {
    const ObjectSymbol& symbol = d.new_view->symbol(index);
    const std::uint32_t section = symbol.section;
    const std::string name(symbol.name);
    const PlacedFunction* old = placement.function(of, name);
    if (old == nullptr) {
      // By one of its other names.
      for (std::uint32_t y : d.new_view->section(section).symbols) {
        if (old != nullptr || d.new_view->symbol(y).value != symbol.value) continue;
        old = placement.function(of, d.new_view->symbol(y).name);
      }
    }
    const auto absent = [&](const std::string& why) {
      report.notes.push_back(fmt::format("{}: {} is not in {}{}: nothing to replace",
                                         d.unit->output, name, image_name, why));
    };
    if (old == nullptr || old->match == PlacedFunction::Match::absent || old->address == 0) {
      return absent("");
    }
    if (old->match == PlacedFunction::Match::differs) return;  // Placement has refused it
    if (old->is_shared) {
      refusals.push_back(
          {"shared_function", d.unit->output, name,
           d.new_info != nullptr ? place_of_function(*d.new_info, name) : "",
           fmt::format("{} has its address ({:#x}) in common with other functions: the linker "
                       "has folded them",
                       name, old->address),
           "link without --icf"});
      return;
    }
    if (!done.insert(old->address).second) return;
    const auto bytes = placement.image().bytes(old->address, old->size);
    if (!bytes || old->size == 0) return absent(" (no code there)");
    PatchWriter::Function function;
    function.target = target;
    function.name = name;
    function.symbol = closure.symbol_of(d, section, index);
    function.old_address = old->address;
    function.old_size = old->size;
    function.old_bytes = *bytes;
    function.new_bytes = d.new_view->section(section).bytes;
    if (!d.new_view->thunks(section).empty()) {
      function.new_bytes = function.new_bytes.subspan(symbol.value, symbol.size);
    }
    writer.add_function(function);
    add_parts(writer, target, placement, of, name);
    report.functions.push_back(
        {name, d.unit->output, image_name, old->size, function.new_bytes.size()});
  }

  void add_info(PatchWriter& writer) const {
    namespace info = patch_file::info;
    writer.add_info(info::name, options.name);
    if (!options.version.empty()) writer.add_info(info::patch_version, options.version);
    if (!options.description.empty()) writer.add_info(info::description, options.description);
    for (const std::string& cve : options.cves) writer.add_info(info::cve, cve);
    if (!options.author.empty()) writer.add_info(info::author, options.author);
    for (const std::string& name : options.signed_off) writer.add_info(info::signed_off, name);
    if (!options.license.empty()) writer.add_info(info::license, options.license);
    if (options.replace) writer.add_info(info::flag, patch_file::flag_replace);
    writer.add_info(info::builder, "molt " MOLT_VERSION);
    std::set<std::string> compilers;
    for (const auto& s : studied) {
      const bool counts = s->unit->is_new() || !s->replaced.empty();
      if (counts && options.sources.empty()) writer.add_info(info::source, s->unit->source);
      compilers.insert(std::string(s->new_object->compiler()));
    }
    for (const std::string& source : options.sources) writer.add_info(info::source, source);
    for (const std::string& compiler : compilers) {
      if (!compiler.empty()) writer.add_info(info::compiler, compiler);
    }
    if (!options.diff.empty()) {
      writer.add_info("diff", content_hash(std::as_bytes(std::span(options.diff))));
    }
    for (const std::string& note : report.notes) writer.add_info(info::note, note);
  }

  // Is there anything that --accept may mean?
  bool is_accepted_thing(const std::string& given) const {
    const auto has_type = [&](const DebugInfo& info) {
      return std::ranges::any_of(
          info.types, [&](const auto& one) { return is_called(one.second.name, given); });
    };
    const auto has_variable = [&](const View* view, const DebugInfo& info) {
      if (view == nullptr) return false;
      for (std::uint32_t y = 1; y < view->object().symbols().size(); ++y) {
        const ObjectSymbol& symbol = view->symbol(y);
        if (!symbol.is_defined() || symbol.is_function() || symbol.name.empty()) continue;
        if (is_called(symbol.name, given) || plain_name(info, *view, y) == given) return true;
      }
      return view->object().find_section(given) != 0;
    };
    return std::ranges::any_of(studied, [&](const auto& s) {
      return has_type(s->old_info) || has_type(s->new_info) ||
             has_variable(s->old_view.get(), s->old_info) ||
             has_variable(s->new_view.get(), s->new_info);
    });
  }

  // Where debug information does not have the place, it is in the diff.
  tl::unexpected<std::vector<Refusal>> refused() {
    for (Refusal& one : refusals) {
      const auto of =
          std::ranges::find(studied, one.unit, [](const auto& s) { return s->unit->output; });
      if (one.where.empty() && !one.symbol.empty() && of != studied.end()) {
        one.where = place_of_function((*of)->new_info, one.symbol);
      }
      const auto unit = std::ranges::find(units, one.unit, &Unit::output);
      if (one.where.empty() && unit != units.end()) one.where = place_in_diff(edits, unit->source);
    }
    return tl::unexpected(std::move(refusals));
  }

  tl::expected<BuiltPatch, std::vector<Refusal>> run() {
    for (const Placement* placement : placements) {
      refusals.insert(refusals.end(), placement->refusals().begin(), placement->refusals().end());
    }
    for (std::size_t u = 0; u < units.size(); ++u) {
      if (!units[u].is_changed()) continue;
      const bool is_here =
          units[u].is_new() || std::any_of(placements.begin(), placements.end(),
                                           [&](const auto* p) { return p->contains(u); });
      if (is_here) study(u);
    }
    read_additions();
    read_runtime();
    decide();
    for (const std::string& name : options.keep_old) {
      report.notes.push_back(
          kept.contains(name)
              ? fmt::format("{} stays as it was, as the author says", name)
              : fmt::format("--keep-old={}: no function of that name changed", name));
    }
    for (const std::string& name : options.accept) {
      if (is_accepted_thing(name)) {
        report.notes.push_back(fmt::format("a change of {} is harmless, says the author", name));
      } else if (!studied.empty()) {
        refusals.push_back(
            {"unknown_name", studied.front()->unit->output, name, "",
             fmt::format("--accept={}: no type and no variable of that name is in what the diff "
                         "changes",
                         name),
             "name it as a refusal does"});
      }
    }
    refuse_unsafe();
    find_moved(
        {units, placements, options, studied, refusals, report.notes,
         [this](const Studied& s, const std::string& name) { return entry_problem(s, name); }});
    for (const auto& s : studied) refuse_shared_constants(*s);
    if (!refusals.empty()) return refused();

    PatchWriter writer;
    for (const Placement* placement : placements) collect(writer, *placement);
    if (!refusals.empty()) return refused();
    BuiltPatch built;
    if (writer.function_count() != 0) {
      add_info(writer);
      built.bytes = writer.bytes();
    }
    built.report = std::move(report);
    return built;
  }
};

}  // namespace

tl::expected<BuiltPatch, std::vector<Refusal>> build_patch(
    std::span<const Unit> units, std::span<const Placement* const> placements,
    const PatchOptions& options) {
  return Builder{units, placements, options}.run();
}

}  // namespace molt::builder
