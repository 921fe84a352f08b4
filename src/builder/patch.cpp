// patch.cpp - the phases of build_patch(): read, compare, refuse, decide what is replaced, collect,
// write.

#include "builder/patch.hpp"

#include <algorithm>
#include <fstream>
#include <iterator>
#include <map>
#include <memory>
#include <set>
#include <utility>

#include <fmt/format.h>

#include "base/hash.hpp"
#include "builder/closure.hpp"
#include "builder/compare.hpp"
#include "builder/debug_info.hpp"
#include "builder/edits.hpp"
#include "builder/entries.hpp"
#include "builder/object.hpp"
#include "builder/patch_writer.hpp"
#include "builder/source_terms.hpp"
#include "builder/static_locals.hpp"
#include "builder/unsafe.hpp"
#include "elf/image.hpp"

namespace molt::builder {
namespace {

// One unit that the diff changes, with all that is known of it.
struct Studied {
  std::size_t index = 0;
  const Unit* unit = nullptr;
  std::optional<Object> old_object, new_object;
  std::unique_ptr<View> old_view, new_view;
  DebugInfo old_info, new_info;
  std::unique_ptr<Comparison> comparison;
  std::set<std::uint32_t> replaced;
  std::set<std::uint32_t> again;  // callers of functions that take something else now

  UnitFacts facts() const { return {unit, comparison.get(), &old_info, &new_info}; }
};

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
      const bool has_asm = line.text.find("asm") != std::string::npos &&
                           line.text.find_first_of("(\"") != std::string::npos;
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

  void keep_old(Studied& s) {
    auto& changed = s.comparison->changed;
    const auto drop = [&](const std::string& name) {
      for (const std::uint32_t i : std::vector(changed.begin(), changed.end())) {
        const std::string_view other = s.new_view->name(i);
        const std::string_view whole =
            is_cold(other) ? other.substr(0, other.find(".cold")) : other;
        if (!is_called(whole, name)) continue;
        changed.erase(i);
        kept.insert(name);
      }
    };
    for (const std::string& name : options.keep_old) drop(name);
    for (const std::uint32_t i : std::vector(changed.begin(), changed.end())) {
      if (s.new_view->name(i) != "main") continue;
      if (is_ripple(s.facts(), "main", edits)) {
        report.notes.push_back(
            fmt::format("{}: main changed only because other functions were inlined elsewhere than "
                        "before; it stays as it is",
                        s.unit->output));
        drop("main");
        break;
      }
      refusals.push_back(
          {"always_on_stack", s.unit->output, "main", place_of(s, "main"),
           "main is always on the stack: nobody would ever enter the new one",
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

  void decide(Studied& s) {
    if (!s.comparison) return;
    keep_old(s);
    auto& changed = s.comparison->changed;
    std::set<std::uint32_t> looked_at, never;
    for (bool again = true; again;) {
      again = false;
      for (const std::uint32_t i : std::vector(changed.begin(), changed.end())) {
        if (!looked_at.insert(i).second || s.new_view->owner(i) == 0 || !is_private(s, i)) continue;
        never.insert(i);
        for (std::uint32_t user : unchanged_users(s, i, false)) changed.insert(user);
        again = true;
      }
    }
    for (const std::uint32_t i : changed) {
      const std::uint32_t owner = s.new_view->owner(i);
      if (owner == 0 || never.contains(i)) continue;
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
      if (symbol.is_local() || symbol.bind == STB_WEAK || symbol.name.starts_with("_ZT")) continue;
      for (std::size_t u = 0; u < units.size(); ++u) {
        if (units[u].is_changed() || units[u].is_new()) continue;
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
                        s->comparison.get(), &s->new_info, s->replaced});
    }
    const bool any = std::any_of(diffed.begin(), diffed.end(),
                                 [](const DiffedUnit& d) { return !d.replaced.empty(); });
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
    const bool has_additions = additions && !std::exchange(additions_taken, true);
    if (has_additions) {
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
    if (has_additions) include_additions(closure, diffed.back());
    std::set<std::uint64_t> done;  // one function of a header in several units
    for (const DiffedUnit& d : diffed) {
      for (const std::uint32_t i : d.replaced) {
        add_function(writer, target, placement, d, d.new_view->owner(i), closure, image_name, done);
        for (const std::uint32_t y : d.new_view->thunks(i)) {
          add_function(writer, target, placement, d, y, closure, image_name, done);
        }
      }
    }
    closure.finish();
  }

  void add_function(PatchWriter& writer, std::uint32_t target, const Placement& placement,
                    const DiffedUnit& d, std::uint32_t index, Closure& closure,
                    const std::string& image_name, std::set<std::uint64_t>& done) {
    const ObjectSymbol& symbol = d.new_view->symbol(index);
    const std::uint32_t section = symbol.section;
    const std::string name(symbol.name);
    const PlacedFunction* old = placement.function(d.index, name);
    if (old == nullptr) {
      // By one of its other names.
      for (std::uint32_t y : d.new_view->section(section).symbols) {
        if (old != nullptr || d.new_view->symbol(y).value != symbol.value) continue;
        old = placement.function(d.index, d.new_view->symbol(y).name);
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
    add_parts(writer, target, placement, d.index, name);
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
    for (const auto& s : studied) decide(*s);
    for (const std::string& name : options.keep_old) {
      report.notes.push_back(
          kept.contains(name)
              ? fmt::format("{} stays as it was, as the author says", name)
              : fmt::format("--keep-old={}: no function of that name changed", name));
    }
    for (const std::string& name : options.accept) {
      report.notes.push_back(fmt::format("a change of {} is harmless, says the author", name));
    }
    refuse_unsafe();
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
