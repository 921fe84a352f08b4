// content.cpp - the objects of this process, their attributes, and what these mean.
//
// Objects of modules are kept: a module is added when it forms and removed when it goes, and a handle
// to the old one shall not show the next one of that name. Residents and hooks are looked up. A
// resident's name has a number that no other ever gets. A hook is its name: the host may have many
// instances of it, and all of them are the one hook. So in neither case could a handle come to mean
// anything else, and nobody has to tell us of them.

#include "control/content.hpp"

#include <errno.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <charconv>
#include <mutex>

#include "base/program.hpp"
#include "hook/registry.hpp"
#include "livepatch/engine.hpp"

namespace molt::control {
namespace {

using Text = std::string;

// --- texts --------------------------------------------------------------------------------------

Text flag(bool on) { return on ? "1" : "0"; }

// As the kernel's boolean attributes take it: the first one or two letters count.
Result<bool> parse_flag(const Text& value) {
  const char first = value.empty() ? '\0' : value[0];
  const char second = value.size() < 2 ? '\0' : value[1];
  if (first == '1' || first == 'y' || first == 'Y') return true;
  if (first == '0' || first == 'n' || first == 'N') return false;
  if (first == 'o' || first == 'O') {
    if (second == 'n' || second == 'N') return true;
    if (second == 'f' || second == 'F') return false;
  }
  return fail(EINVAL, "`%s' is neither on (1 y Y on) nor off (0 n N off)", value.c_str());
}

std::vector<Text> split(const Text& list) {
  std::vector<Text> names;
  for (std::size_t at = 0; at <= list.size();) {
    const std::size_t comma = std::min(list.find(',', at), list.size());
    if (comma > at) names.push_back(list.substr(at, comma - at));
    at = comma + 1;
  }
  return names;
}

Text joined(const std::vector<Text>& names) {
  Text list;
  for (const Text& name : names) {
    if (!list.empty()) list += ',';
    list += name;
  }
  return list;
}

Text callbacks_text(const std::vector<hooks::CallbackInfo>& callbacks) {
  std::vector<Text> each;
  for (const hooks::CallbackInfo& c : callbacks) {
    each.push_back(c.module + ":" + std::to_string(c.order));
  }
  return joined(each);
}

// --- host/ --------------------------------------------------------------------------------------

template <Text (*text)()>
Result<Text> show(const Object&, const Text&) {
  return text();
}

Text pid_text() { return std::to_string(getpid()); }
Text locked_text() { return flag(module::loading_locked()); }
Text delay_text() { return std::to_string(delay_release_ms()); }
Text gc_interval_text() { return std::to_string(module::gc_interval()); }
Text live_text() { return std::to_string(object_counts().live); }
Text delayed_text() { return std::to_string(object_counts().delayed); }

Status store_locked(const Object&, const Text&, const Text& value) {
  if (value != "1") return fail(EINVAL, "loading can be locked (1); there is no way back");
  module::lock_loading();
  return {};
}

Result<int> number_up_to(int most, const Text& value) {
  int number = -1;
  const auto [end, error] = std::from_chars(value.data(), value.data() + value.size(), number);
  if (error != std::errc() || end != value.data() + value.size() || number < 0 || number > most) {
    return fail(EINVAL, "`%s' is no number from 0 to %d", value.c_str(), most);
  }
  return number;
}

Status store_delay(const Object&, const Text&, const Text& value) {
  constexpr int longest_ms = 60'000;
  const auto ms = number_up_to(longest_ms, value);
  if (!ms) return pass(ms);
  set_delay_release_ms(*ms);
  livepatch::set_delay_release_ms(*ms);
  return {};
}

Status store_gc_interval(const Object&, const Text&, const Text& value) {
  constexpr int longest_s = 86'400;
  const auto seconds = number_up_to(longest_s, value);
  if (!seconds) return pass(seconds);
  module::set_gc_interval(*seconds);
  return {};
}

Text redirect_text() { return flag(livepatch::redirecting()); }

Status store_redirect(const Object&, const Text&, const Text& value) {
  auto on = parse_flag(value);
  if (!on) return pass(on);
  return livepatch::set_redirecting(*on);
}

std::vector<Attribute> host_attributes(const Object&) {
  return {{"name", 0444, show<host_name>, nullptr},
          {"pid", 0444, show<pid_text>, nullptr},
          {"taint", 0444, show<module::process_taint>, nullptr},
          {"locked", 0644, show<locked_text>, store_locked},
          {"poisoned", 0444, show<module::poisoned>, nullptr},
          {"delay_release_ms", 0644, show<delay_text>, store_delay},
          {"redirect", 0644, show<redirect_text>, store_redirect},
          {"gc_interval_s", 0644, show<gc_interval_text>, store_gc_interval},
          {"last_unloaded", 0444, show<module::last_unloaded>, nullptr},
          {"objects", 0444, show<live_text>, nullptr},
          {"objects_delayed", 0444, show<delayed_text>, nullptr}};
}

// --- modules/NAME/ ------------------------------------------------------------------------------

Result<module::ModuleDetail> detail_of(const Object& object) {
  auto detail = module::info(object.subject(), false);
  if (detail || detail.error().code != ENOENT) return detail;
  // It is past its object's removal, or about to come to it.
  return fail(ENODEV, "module %s is gone", object.subject().c_str());
}

template <Text (*text)(const module::ModuleDetail&)>
Result<Text> show(const Object& object, const Text&) {
  auto detail = detail_of(object);
  if (!detail) return pass(detail);
  return text(*detail);
}

using Detail = module::ModuleDetail;
Text initstate(const Detail& d) { return module::state_text(d.module.state); }
Text refcnt(const Detail& d) { return std::to_string(d.module.refcount); }
Text taint(const Detail& d) { return d.module.taint; }
Text version(const Detail& d) { return d.module.version; }
Text srcversion(const Detail& d) { return d.srcversion; }
Text license(const Detail& d) { return d.license; }
Text coresize(const Detail& d) { return std::to_string(d.module.size); }
Text initsize(const Detail&) { return "0"; }  // nothing is given back after init
Text enabled(const Detail& d) { return flag(d.module.enabled); }
Text exceptions(const Detail& d) { return std::to_string(d.exceptions); }
Text callbacks(const Detail& d) { return callbacks_text(d.callbacks); }
Text requests(const Detail& d) {
  const log::Requester& first = d.requests.first;
  return "loads=" + std::to_string(d.requests.loads) +
         " joined=" + std::to_string(d.requests.joined) + " pid=" + std::to_string(first.pid) +
         " uid=" + std::to_string(first.uid) + " comm=" + first.comm;
}

Status store_enabled(const Object& object, const Text&, const Text& value) {
  auto on = parse_flag(value);
  if (!on) return pass(on);
  return module::set_enabled(object.subject(), *on);
}

std::vector<Attribute> module_attributes(const Object&) {
  return {{"initstate", 0444, show<initstate>, nullptr},
          {"refcnt", 0444, show<refcnt>, nullptr},
          {"taint", 0444, show<taint>, nullptr},
          {"version", 0444, show<version>, nullptr},
          {"srcversion", 0444, show<srcversion>, nullptr},
          {"license", 0444, show<license>, nullptr},
          {"coresize", 0444, show<coresize>, nullptr},
          {"initsize", 0444, show<initsize>, nullptr},
          {"enabled", 0644, show<enabled>, store_enabled},
          {"exceptions", 0444, show<exceptions>, nullptr},
          {"requests", 0444, show<requests>, nullptr},
          {"callbacks", 0444, show<callbacks>, nullptr}};
}

Result<Text> show_parameter(const Object& object, const Text& name) {
  return module::get_param(object.subject(), name);
}

Status store_parameter(const Object& object, const Text& name, const Text& value) {
  return module::set_param(object.subject(), name, value.c_str());
}

// Looked up, not kept: after a replacement they are those of the new version.
std::vector<Attribute> parameters(const Object& object) {
  std::vector<Attribute> all;
  auto detail = detail_of(object);
  if (!detail) return all;
  for (module::ParamInfo& p : detail->parameters) {
    all.push_back({std::move(p.name), p.writable ? 0644u : 0444u, show_parameter,
                   p.writable ? store_parameter : nullptr});
  }
  return all;
}

std::vector<Link> holders(const Object& object) {
  std::vector<Link> all;
  auto detail = detail_of(object);
  if (!detail) return all;
  for (const Text& holder : detail->module.holders) all.push_back({holder, "modules/" + holder});
  return all;
}

// --- resident/NAME,N/ ---------------------------------------------------------------------------

Text resident_name(const module::ResidentInfo& r) { return r.name + "," + std::to_string(r.id); }

std::vector<Text> resident_names() {
  std::vector<Text> names;
  for (const module::ResidentInfo& r : module::residents()) names.push_back(resident_name(r));
  return names;
}

Result<module::ResidentInfo> resident(const Object& object) {
  for (module::ResidentInfo& r : module::residents()) {
    if (resident_name(r) == object.subject()) return std::move(r);
  }
  return fail(ENODEV, "%s is gone", object.path().c_str());
}

bool resident_is_there(const Object& object) { return resident(object).has_value(); }

template <Text (*text)(const module::ResidentInfo&)>
Result<Text> show(const Object& object, const Text&) {
  auto r = resident(object);
  if (!r) return pass(r);
  return text(*r);
}

Text resident_state(const module::ResidentInfo& r) { return r.pinned ? "pinned" : "resident"; }
Text reason(const module::ResidentInfo& r) { return r.reason; }

std::vector<Attribute> resident_attributes(const Object&) {
  return {{"state", 0444, show<resident_state>, nullptr}, {"reason", 0444, show<reason>, nullptr}};
}

// --- hooks/NAME/ --------------------------------------------------------------------------------

std::vector<Text> hook_names() {
  std::vector<Text> names;
  for (hooks::HookInfo& h : hooks::list()) names.push_back(std::move(h.name));
  return names;
}

bool hook_is_there(const Object& object) { return hooks::find(object.subject()).has_value(); }

template <Text (*text)(const hooks::HookInfo&)>
Result<Text> show(const Object& object, const Text&) {
  auto info = hooks::find(object.subject());
  if (!info) return pass(info);
  return text(*info);
}

Text signature(const hooks::HookInfo& h) { return h.signature; }
Text rule(const hooks::HookInfo& h) { return h.rule; }
Text on_exception(const hooks::HookInfo& h) { return h.on_exception; }
Text attached(const hooks::HookInfo& h) { return callbacks_text(h.callbacks); }
Text order(const hooks::HookInfo& h) { return joined(h.order.modules); }

Status store_order(const Object& object, const Text&, const Text& value) {
  hooks::Order wanted;
  wanted.modules = split(value);
  wanted.given = !wanted.modules.empty();
  return hooks::set_order(object.subject(), wanted);
}

std::vector<Attribute> hook_attributes(const Object&) {
  return {{"signature", 0444, show<signature>, nullptr},
          {"rule", 0444, show<rule>, nullptr},
          {"on_exception", 0444, show<on_exception>, nullptr},
          {"callbacks", 0444, show<attached>, nullptr},
          {"order", 0644, show<order>, store_order}};
}

// --- patches/NAME/ and below ------------------------------------------------------------------------

// A subject is the patch's name; of an object in it "PATCH/OBJECT", of a function nothing.

Result<livepatch::PatchInfo> patch_of(const Object& object) {
  auto info = livepatch::find(object.subject().substr(0, object.subject().find('/')));
  if (info) return info;
  return fail(ENODEV, "patch %s is gone", object.subject().c_str());
}

template <Text (*text)(const livepatch::PatchInfo&)>
Result<Text> show(const Object& object, const Text&) {
  auto info = patch_of(object);
  if (!info) return pass(info);
  return text(*info);
}

Text patch_enabled(const livepatch::PatchInfo& p) { return flag(p.enabled); }
Text patch_transition(const livepatch::PatchInfo& p) { return flag(p.transition); }
Text patch_replace(const livepatch::PatchInfo& p) { return flag(p.replace); }
Text patch_immediate(const livepatch::PatchInfo& p) { return flag(p.immediate); }
Text stack_order(const livepatch::PatchInfo& p) { return std::to_string(p.stack_order); }

Status store_patch_enabled(const Object& object, const Text&, const Text& value) {
  auto on = parse_flag(value);
  if (!on) return pass(on);
  return livepatch::set_enabled(object.subject(), *on);
}

Status store_force(const Object& object, const Text&, const Text& value) {
  auto on = parse_flag(value);
  if (!on) return pass(on);
  return *on ? livepatch::force(object.subject()) : Status();
}

std::vector<Attribute> patch_attributes(const Object&) {
  return {{"enabled", 0644, show<patch_enabled>, store_patch_enabled},
          {"transition", 0444, show<patch_transition>, nullptr},
          {"force", 0200, nullptr, store_force},
          {"replace", 0444, show<patch_replace>, nullptr},
          {"immediate", 0444, show<patch_immediate>, nullptr},
          {"stack_order", 0444, show<stack_order>, nullptr}};
}

Result<Text> show_patched(const Object& object, const Text&) {
  auto info = patch_of(object);
  if (!info) return pass(info);
  const Text name = object.subject().substr(object.subject().find('/') + 1);
  for (const livepatch::ObjectInfo& o : info->objects) {
    if (o.name == name) return flag(o.patched);
  }
  return fail(ENODEV, "%s is gone", object.path().c_str());
}

std::vector<Attribute> patch_object_attributes(const Object&) {
  return {{"patched", 0444, show_patched, nullptr}};
}

// --- threads/TID/ -------------------------------------------------------------------------------------

std::vector<Text> thread_names() {
  std::vector<Text> names;
  for (int tid : livepatch::thread_ids()) names.push_back(std::to_string(tid));
  return names;
}

Result<int> patch_state_of(const Object& object) {
  int tid = 0;
  const Text& text = object.subject();
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), tid);
  if (error != std::errc() || end != text.data() + text.size() || tid <= 0) {
    return fail(ENODEV, "there is no thread %s", text.c_str());
  }
  return livepatch::thread_state(tid);
}

bool thread_is_there(const Object& object) { return patch_state_of(object).has_value(); }

Result<Text> show_patch_state(const Object& object, const Text&) {
  auto state = patch_state_of(object);
  if (!state) return fail(ENODEV, "%s is gone", object.path().c_str());
  return std::to_string(*state);
}

std::vector<Attribute> thread_attributes(const Object&) {
  return {{"patch_state", 0444, show_patch_state, nullptr}};
}

// --- the tree -----------------------------------------------------------------------------------

constexpr Type plain_type{nullptr, nullptr, nullptr, delete_object};
constexpr Type host_type{host_attributes, nullptr, nullptr, delete_object};
constexpr Type module_type{module_attributes, nullptr, nullptr, delete_object};
constexpr Type parameters_type{parameters, nullptr, nullptr, delete_object};
constexpr Type holders_type{nullptr, holders, nullptr, delete_object};
constexpr Type resident_type{resident_attributes, nullptr, resident_is_there, delete_object};
constexpr Type patch_type{patch_attributes, nullptr, nullptr, delete_object};
constexpr Type patch_object_type{patch_object_attributes, nullptr, nullptr, delete_object};
constexpr Type thread_type{thread_attributes, nullptr, thread_is_there, delete_object};
constexpr Type hook_type{hook_attributes, nullptr, hook_is_there, delete_object};

Text module_path(const Text& name) { return "modules/" + name; }

void add_module(Tree& tree, const Text& name) {
  tree.add(module_type, module_path(name), name);
  tree.add(holders_type, module_path(name) + "/holders", name);
  tree.add(parameters_type, module_path(name) + "/parameters", name);
}

std::vector<Text> modules_to_show() {
  std::vector<Text> names;
  for (const module::ModuleInfo& m : module::list()) {
    if (m.state == MOLT_MODULE_STATE_LIVE || m.state == MOLT_MODULE_STATE_COMING) {
      names.push_back(m.name);
    }
  }
  return names;
}

bool is_to_show(const Text& name) {
  const std::vector<Text> names = modules_to_show();
  return std::find(names.begin(), names.end(), name) != names.end();
}

void module_formed(const Text& name) { add_module(tree(), name); }

void module_gone(const Text& name) {
  tree().remove(module_path(name));
  // It may have been the older of two versions.
  if (is_to_show(name)) add_module(tree(), name);
}

Text patch_path(const Text& name) { return "patches/" + name; }

// Objects and functions of a patch change while it is installed: nops come and go.
std::vector<Text> patch_object_paths(const livepatch::PatchInfo& patch) {
  std::vector<Text> paths;
  for (const livepatch::ObjectInfo& object : patch.objects) {
    const Text path = patch_path(patch.name) + "/" + path_name(object.name);
    paths.push_back(path);
    for (const livepatch::FunctionInfo& function : object.functions) {
      paths.push_back(path + "/" + path_name(function.name) + "," +
                      std::to_string(function.position));
    }
  }
  return paths;
}

void show_patch(Tree& tree, const livepatch::PatchInfo& patch) {
  const Text top = patch_path(patch.name);
  if (!tree.has(top)) tree.add(patch_type, top, patch.name);
  const std::vector<Text> wanted = patch_object_paths(patch);
  for (const Text& path : tree.below(top)) {
    if (std::find(wanted.begin(), wanted.end(), path) == wanted.end()) tree.remove(path);
  }
  for (const livepatch::ObjectInfo& object : patch.objects) {
    const Text path = top + "/" + path_name(object.name);
    if (!tree.has(path)) tree.add(patch_object_type, path, patch.name + "/" + object.name);
  }
  for (const Text& path : wanted) {
    if (!tree.has(path)) tree.add(plain_type, path, "");
  }
}

void patch_changed(const Text& name) {
  if (auto patch = livepatch::find(name)) show_patch(tree(), *patch);
}

void patch_gone(const Text& name) { tree().remove(patch_path(name)); }

// Of one process. Never freed: its objects may be asked for until the process's last moment, and in
// the child of a fork the parent's may be locked for ever.
struct Content {
  explicit Content(const Content* parents_) : parents(parents_) {}
  const Content* const parents;  // for leak checkers, which shall not take it for lost

  Tree tree;
  std::mutex name_mutex;
  Text name;
};
std::atomic<Content*> current{nullptr};
std::atomic<const Content*> forgotten{nullptr};

Content& content() {
  Content* known = current.load(std::memory_order_acquire);
  if (known != nullptr) return *known;
  auto* fresh = new Content(forgotten.load(std::memory_order_relaxed));
  fresh->tree.add(plain_type, "", "");
  fresh->tree.add(host_type, "host", "");
  fresh->tree.add(plain_type, "modules", "");
  fresh->tree.add(plain_type, "resident", "", {&resident_type, resident_names});
  fresh->tree.add(plain_type, "hooks", "", {&hook_type, hook_names});
  fresh->tree.add(plain_type, "patches", "");
  fresh->tree.add(plain_type, "threads", "", {&thread_type, thread_names});
  if (!current.compare_exchange_strong(known, fresh, std::memory_order_acq_rel,
                                       std::memory_order_acquire)) {
    delete fresh;
    return *known;
  }
  // Modules that formed before anybody observed. One may go at this moment, unseen or seen too early:
  // look again.
  for (const Text& name : modules_to_show()) {
    add_module(fresh->tree, name);
    if (!is_to_show(name)) fresh->tree.remove(module_path(name));
  }
  for (const livepatch::PatchInfo& patch : livepatch::list()) show_patch(fresh->tree, patch);
  return *fresh;
}

}  // namespace

Tree& tree() { return content().tree; }

const module::Observer& tree_observer() {
  static constexpr module::Observer observer{module_formed, module_gone};
  return observer;
}

const livepatch::Observer& tree_patch_observer() {
  static constexpr livepatch::Observer observer{patch_changed, patch_gone};
  return observer;
}

void set_host_name(Text name) {
  Content& c = content();
  std::lock_guard lock(c.name_mutex);
  c.name = std::move(name);
}

Text host_name() {
  Content& c = content();
  std::lock_guard lock(c.name_mutex);
  return c.name.empty() ? Text(program_name()) : c.name;
}

void forget_tree() {
  const Content* parents = current.exchange(nullptr, std::memory_order_acq_rel);
  if (parents != nullptr) forgotten.store(parents, std::memory_order_relaxed);
}

}  // namespace molt::control
