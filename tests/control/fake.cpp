#include "fake.hpp"

#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <condition_variable>
#include <list>
#include <map>
#include <mutex>
#include <sstream>

namespace {

using namespace molt;

struct World {
  std::mutex mutex;
  std::condition_variable changed;
  std::list<module::ModuleDetail> modules;
  std::map<std::string, std::string> contents;  // of what was loaded from a file
  std::vector<module::ResidentInfo> residents;
  std::vector<hooks::HookInfo> hooks;
  std::vector<livepatch::PatchInfo> patches;
  const module::Observer* observer = nullptr;
  bool is_locked = false;
  std::string poisoned;
  int under_way = 0;
  std::string last_set;
  std::function<void(const module::LoadRequest&)> on_load;
  std::function<void(const module::UnloadRequest&)> on_unload;
  std::function<void()> on_get_param;
};
World& world() {
  static World* w = new World;
  return *w;
}
using Lock = std::unique_lock<std::mutex>;

module::ModuleDetail* find(std::string_view name) {
  for (module::ModuleDetail& d : world().modules) {
    if (d.module.name == name) return &d;
  }
  return nullptr;
}

tl::unexpected<Error> no_module(std::string_view name) {
  return fail(ENOENT, "no module %.*s", static_cast<int>(name.size()), name.data());
}

hooks::HookInfo* find_hook(std::string_view name) {
  for (hooks::HookInfo& h : world().hooks) {
    if (h.name == name) return &h;
  }
  return nullptr;
}

std::string content_of(int fd) {
  struct stat info {};
  if (fstat(fd, &info) != 0) return "";
  std::string text(static_cast<std::size_t>(info.st_size), '\0');
  const ssize_t n = pread(fd, text.data(), text.size(), 0);
  text.resize(n < 0 ? 0 : static_cast<std::size_t>(n));
  return text;
}

std::map<std::string, std::string> fields_of(int fd) {
  std::map<std::string, std::string> fields;
  std::istringstream in(content_of(fd));
  for (std::string word; in >> word;) {
    if (const auto equals = word.find('='); equals != std::string::npos) {
      fields[word.substr(0, equals)] = word.substr(equals + 1);
    }
  }
  return fields;
}

// An error of which it is known where it was made.
tl::unexpected<Error> failure_in(const std::map<std::string, std::string>& fields) {
  const auto site = fields.find("site");
  static const std::string init = "run_init";
  const char* at = site != fields.end() && site->second == init ? init.c_str() : "load";
  return fail({std::stoi(fields.at("fail")), at}, "%s: it fails", fields.at("name").c_str());
}

struct UnderWay {
  UnderWay() {
    Lock lock(world().mutex);
    ++world().under_way;
  }
  ~UnderWay() {
    Lock lock(world().mutex);
    --world().under_way;
    world().changed.notify_all();
  }
};

template <class... Args>
void tell(std::function<void(Args...)> World::*whom, const std::type_identity_t<Args>&... args) {
  std::function<void(Args...)> what;
  {
    Lock lock(world().mutex);
    what = world().*whom;
  }
  if (what) what(args...);
}

}  // namespace

namespace fake {

void reset() {
  World& w = world();
  std::vector<std::string> names;
  {
    Lock lock(w.mutex);
    for (const auto& d : w.modules) names.push_back(d.module.name);
  }
  for (const std::string& name : names) vanish(name);
  Lock lock(w.mutex);
  w.contents.clear();
  w.residents.clear();
  w.hooks.clear();
  w.patches.clear();
  w.is_locked = false;
  w.poisoned.clear();
  w.last_set.clear();
  w.on_load = nullptr;
  w.on_unload = nullptr;
  w.on_get_param = nullptr;
}

void form(const std::string& name, molt_module_state state) {
  World& w = world();
  const module::Observer* observer;
  {
    Lock lock(w.mutex);
    module::ModuleDetail d;
    d.module.name = name;
    d.module.version = "1.0";
    d.module.size = 4096;
    d.module.address = 0x7f0000001000;
    d.module.state = state;
    d.module.enabled = true;
    d.license = "MIT";
    d.description = "a fake";
    d.parameters = {{"limit", "int", "7", "how many", true}, {"kind", "string", "a", "", false}};
    d.callbacks = {{"open", 0}};
    d.requests = {1, 0, log::current_requester()};
    w.modules.push_front(std::move(d));
    observer = w.observer;
    w.changed.notify_all();
  }
  if (observer) observer->formed(name);
}

void vanish(const std::string& name) {
  World& w = world();
  const module::Observer* observer;
  {
    Lock lock(w.mutex);
    if (auto* d = find(name)) d->module.state = MOLT_MODULE_STATE_GOING;
    observer = w.observer;
  }
  if (observer) observer->gone(name);
  Lock lock(w.mutex);
  w.modules.remove_if([&](const auto& d) { return d.module.name == name; });
  w.contents.erase(name);
  w.changed.notify_all();
}

void edit(const std::string& name, const std::function<void(module::ModuleDetail&)>& change) {
  Lock lock(world().mutex);
  if (auto* d = find(name)) change(*d);
}

void add_patch(const std::string& name, bool in_transition) {
  Lock lock(world().mutex);
  livepatch::PatchInfo patch;
  patch.name = name;
  patch.enabled = true;
  patch.transition = in_transition;
  patch.stack_order = static_cast<unsigned>(world().patches.size()) + 1;
  world().patches.push_back(std::move(patch));
}

void add_hook(const std::string& name) {
  hooks::HookInfo h;
  h.name = name;
  h.signature = "int(const char*)";
  h.rule = "first";
  h.on_exception = "fail-open";
  h.fingerprint = 0xfedcba9876543210;
  h.callbacks = {{"early", -1}, {"late", 0}};
  Lock lock(world().mutex);
  world().hooks.push_back(std::move(h));
}

void remove_hook(const std::string& name) {
  Lock lock(world().mutex);
  std::erase_if(world().hooks, [&](const auto& h) { return h.name == name; });
}

void add_resident(const std::string& name, unsigned id, bool pinned) {
  Lock lock(world().mutex);
  world().residents.push_back(
      {name, "1.0", pinned ? "a thread is inside" : "asked for", 4096, id, pinned});
}

void remove_residents() {
  Lock lock(world().mutex);
  world().residents.clear();
}

void poison(const std::string& why) {
  Lock lock(world().mutex);
  world().poisoned = why;
}

void on_load(std::function<void(const module::LoadRequest&)> what) {
  Lock lock(world().mutex);
  world().on_load = std::move(what);
}
void on_unload(std::function<void(const module::UnloadRequest&)> what) {
  Lock lock(world().mutex);
  world().on_unload = std::move(what);
}
void on_get_param(std::function<void()> what) {
  Lock lock(world().mutex);
  world().on_get_param = std::move(what);
}

std::string last_set() {
  Lock lock(world().mutex);
  return world().last_set;
}

}  // namespace fake

// --- what src/control asks ----------------------------------------------------------------------

namespace molt::module {

Result<LoadReport> load(const LoadRequest& request) {
  const UnderWay scope;
  tell(&World::on_load, request);
  auto fields = fields_of(request.fd);
  const std::string name = fields["name"];
  if (name.empty()) return fail(ENOEXEC, "%s: not a module", request.path.c_str());
  if (loading_locked()) return fail(EPERM, "loading is locked");
  if (fields.count("fail")) return failure_in(fields);
  {
    Lock lock(world().mutex);
    if (find(name)) return fail(EEXIST, "%s: already loaded", name.c_str());
    world().contents[name] = content_of(request.fd);
  }
  if (!request.dry_run) {
    fake::form(name);
    log::line(name, "loaded from %s", request.path.c_str());
  }
  return LoadReport{name, "P", false, {}};
}

bool same_content(std::string_view name, int fd) {
  const std::string content = content_of(fd);
  Lock lock(world().mutex);
  const auto at = world().contents.find(std::string(name));
  return at != world().contents.end() && at->second == content;
}

Result<std::string> name_in_file(int fd) {
  auto fields = fields_of(fd);
  if (fields["name"].empty()) return fail(ENOEXEC, "not a module");
  return fields["name"];
}

Result<UnloadReport> unload(const UnloadRequest& request) {
  const UnderWay scope;
  tell(&World::on_unload, request);
  {
    Lock lock(world().mutex);
    if (!find(request.name)) return no_module(request.name);
  }
  if (request.cancelled && request.cancelled()) return fail(ECANCELED, "cancelled");
  if (!request.dry_run) fake::vanish(request.name);
  return UnloadReport{request.name, Fate::unmapped, "", 12};
}

Result<ReplaceReport> replace(const ReplaceRequest& request) {
  const UnderWay scope;
  auto fields = fields_of(request.fd);
  const std::string name = request.name.empty() ? fields["name"] : request.name;
  Lock lock(world().mutex);
  module::ModuleDetail* d = find(name);
  if (!d) return no_module(name);
  if (fields.count("fail")) return failure_in(fields);
  ReplaceReport report;
  report.name = name;
  report.from = d->module.version;
  report.to = d->module.version = fields["version"];
  report.state_bytes = 8;
  return report;
}

Status set_enabled(std::string_view name, bool enabled) {
  Lock lock(world().mutex);
  module::ModuleDetail* d = find(name);
  if (!d) return no_module(name);
  if (d->module.enabled == enabled) return fail(EINVAL, "it is so already");
  d->module.enabled = enabled;
  return {};
}

Result<audit::Report> audit_module(const AuditRequest& request) {
  Lock lock(world().mutex);
  if (!find(request.name)) return no_module(request.name);
  audit::Report report;
  audit::Finding finding;
  finding.place = audit::Place::heap;
  finding.looks = audit::Looks::callback;
  finding.address = 0x1234;
  finding.where = "[heap] block of 24 bytes, +8";
  finding.target = "on_timer+0x0";
  report.findings.push_back(finding);
  report.rounds = 2;
  report.stable = true;
  return report;
}

Status testify(int tid, std::uint64_t serial, threads::Testimony testimony) {
  if (serial == 0 || testimony.runs == 0) return fail(ESRCH, "the process has no thread %d", tid);
  return {};
}

Result<threads::Loans> take_loans() {
  threads::Loans loans;
  loans.missing = {4711};
  loans.desk = "molt-loans/fake";
  loans.taken = 2;
  return loans;
}

Result<BlockingReport> blocking(std::string_view name) {
  Lock lock(world().mutex);
  if (!find(name)) return no_module(name);
  Holder holder;
  holder.what = "thread";
  holder.where = "may return into on_tick+0x10";
  holder.function = "on_tick+0x10";
  holder.tid = 4711;
  holder.thread = "ticker";
  holder.address = 0x1234;
  holder.stack_address = 0x5678;
  holder.depth = 64;
  holder.asleep_ms = 20;
  holder.syscall = "futex";
  BlockingReport report{std::string(name), "live", "", {}};
  report.holders.push_back(holder);
  Holder others;
  others.what = "references";
  others.where = "2 held by others";
  report.holders.push_back(others);
  return report;
}

namespace {
std::atomic<int> g_gc_interval_s{0};
}  // namespace
void set_gc_interval(int seconds) { g_gc_interval_s.store(seconds, std::memory_order_relaxed); }
int gc_interval() { return g_gc_interval_s.load(std::memory_order_relaxed); }

GcReport gc(bool dry_run, bool) {
  Lock lock(world().mutex);
  GcReport report;
  for (const ResidentInfo& r : world().residents) {
    if (r.pinned) {
      report.kept.push_back({r.name, r.reason});
    } else {
      report.freed.push_back(r.name);
    }
  }
  if (!dry_run) std::erase_if(world().residents, [](const auto& r) { return !r.pinned; });
  return report;
}

void lock_loading() {
  Lock lock(world().mutex);
  world().is_locked = true;
}
Result<bool> close_if_empty(bool) {
  if (!list().empty()) return fail(EBUSY, "modules are loaded");
  return true;
}

void open_again() {}

bool loading_locked() {
  Lock lock(world().mutex);
  return world().is_locked;
}
std::string process_taint() { return "R"; }

std::vector<ModuleInfo> list() {
  Lock lock(world().mutex);
  std::vector<ModuleInfo> all;
  for (const ModuleDetail& d : world().modules) all.push_back(d.module);
  return all;
}

Result<ModuleDetail> info(std::string_view name, bool values) {
  if (values) tell(&World::on_get_param);
  Lock lock(world().mutex);
  const ModuleDetail* d = find(name);
  if (!d) return no_module(name);
  return *d;
}

std::vector<ResidentInfo> residents() {
  Lock lock(world().mutex);
  return world().residents;
}

const char* state_text(molt_module_state state) {
  constexpr const char* texts[] = {"live", "coming", "going", "unformed"};
  return texts[state];
}
const char* to_text(Fate fate) {
  constexpr const char* texts[] = {"unmapped", "resident", "pinned", "quarantined"};
  return texts[static_cast<int>(fate)];
}
std::string proc_line(const ModuleInfo& module) { return module.name + " 4096 0 - Live 0x0"; }

Result<std::string> get_param(std::string_view name, std::string_view param) {
  tell(&World::on_get_param);
  Lock lock(world().mutex);
  const ModuleDetail* d = find(name);
  if (!d) return no_module(name);
  for (const ParamInfo& p : d->parameters) {
    if (p.name == param) return p.value;
  }
  return fail(ENOENT, "no such parameter");
}

Status set_param(std::string_view name, std::string_view param, const char* value) {
  Lock lock(world().mutex);
  ModuleDetail* d = find(name);
  if (!d) return no_module(name);
  for (ParamInfo& p : d->parameters) {
    if (p.name != param) continue;
    if (std::string(value) == "refused") return fail(EACCES, "the module does not like it");
    p.value = value;
    world().last_set = p.name + "=" + value;
  }
  return {};
}

void set_observer(const Observer* observer) {
  Lock lock(world().mutex);
  world().observer = observer;
}

Status wait(std::string_view name, Until until, Deadline deadline, const Cancelled& cancelled) {
  Lock lock(world().mutex);
  for (;;) {
    const bool is_there = find(name) != nullptr;
    if (name.empty() ? world().under_way == 0 : is_there == (until == Until::live)) return {};
    if (deadline.passed()) return fail(ETIMEDOUT, "it did not come");
    if (cancelled && cancelled()) return fail(ECANCELED, "cancelled");
    world().changed.wait_for(lock, std::chrono::milliseconds(2));
  }
}

std::string operation() {
  Lock lock(world().mutex);
  return world().under_way ? "an operation" : "";
}
std::string last_unloaded() { return "z(P)"; }
std::string poisoned() {
  Lock lock(world().mutex);
  return world().poisoned;
}

}  // namespace molt::module

namespace molt::hooks {

Status set_order(std::string_view name, const Order& order) {
  Lock lock(world().mutex);
  if (!name.empty() && !find_hook(name)) return fail(ENOENT, "no such hook");
  for (HookInfo& h : world().hooks) {
    if (name.empty() || h.name == name) h.order = order;
  }
  return {};
}

std::vector<HookInfo> list() {
  Lock lock(world().mutex);
  return world().hooks;
}

Result<HookInfo> find(std::string_view name) {
  Lock lock(world().mutex);
  const HookInfo* h = find_hook(name);
  if (!h) return fail(ENOENT, "no such hook");
  return *h;
}

std::size_t count() {
  Lock lock(world().mutex);
  return world().hooks.size();
}

}  // namespace molt::hooks

namespace molt::livepatch {

std::vector<PatchInfo> list() {
  Lock lock(world().mutex);
  return world().patches;
}

Result<PatchInfo> find(std::string_view name) {
  for (PatchInfo& patch : list()) {
    if (patch.name == name) return std::move(patch);
  }
  return fail(ENOENT, "no patch %.*s is installed", static_cast<int>(name.size()), name.data());
}

std::optional<TransitionInfo> transition() {
  for (const PatchInfo& patch : list()) {
    if (!patch.transition) continue;
    TransitionInfo info;
    info.patch = patch.name;
    info.patching = patch.enabled;
    info.threads = 2;
    info.left = 1;
    info.done = 1;
    return info;
  }
  return std::nullopt;
}

std::vector<Blocker> blocking() {
  if (!transition()) return {};
  Blocker blocker;
  blocker.tid = 4712;
  blocker.thread = "sleeper";
  blocker.function = "parse";
  blocker.address = 0x4321;
  blocker.stack_address = 0x8765;
  blocker.depth = 128;
  blocker.syscall = "read";
  blocker.asleep_ms = 30;
  return {blocker};
}

Status set_enabled(std::string_view name, bool enabled) {
  Lock lock(world().mutex);
  for (PatchInfo& patch : world().patches) {
    if (patch.name != name) continue;
    if (patch.enabled == enabled) return fail(EINVAL, "it is so already");
    patch.enabled = enabled;
    return {};
  }
  return fail(ENOENT, "no such patch");
}

Status force(std::string_view name) {
  const auto patch = find(name);
  if (!patch) return pass(patch);
  if (!patch->transition) return fail(EINVAL, "it is not in transition");
  return {};
}

Status wait(Deadline, const Cancelled&) {
  if (transition()) return fail(ETIMEDOUT, "it is in transition");
  return {};
}

Result<int> thread_state(int) { return -1; }
std::vector<int> thread_ids() { return {}; }
std::vector<PinnedInfo> pinned() { return {}; }
History history() { return {}; }
Status set_redirecting(bool) { return {}; }
bool redirecting() { return true; }
void set_delay_release_ms(int) {}
void set_observer(const Observer*) {}

}  // namespace molt::livepatch
