// methods.cpp - what each method of docs/protocol.md does.

#include "control/methods.hpp"

#include <errno.h>
#include <fcntl.h>
#include <molt/molt.h>
#include <time.h>
#include <unistd.h>

#include <algorithm>
#include <charconv>
#include <cstdio>
#include <cstdlib>

#include "base/barrier.hpp"
#include "base/fd.hpp"
#include "control/content.hpp"
#include "control/control.hpp"
#include "control/errors.hpp"
#include "hook/registry.hpp"
#include "livepatch/engine.hpp"
#include "module/manager.hpp"

namespace molt::control {
namespace {

tl::unexpected<Failure> refuse(Asked asked, const Error& error) {
  return tl::unexpected<Failure>({error, classify(asked, error)});
}

template <class T>
tl::unexpected<Failure> refuse(Asked asked, const Result<T>& failed) {
  return refuse(asked, failed.error());
}

hooks::Cancelled cancelled_by(const Caller& caller) {
  if (caller.cancelled == nullptr) return {};
  return [flag = caller.cancelled] { return flag->load(std::memory_order_relaxed); };
}

std::string hex(std::uint64_t value) {
  char text[24];
  std::snprintf(text, sizeof text, "0x%016llx", static_cast<unsigned long long>(value));
  return text;
}

// --- the process --------------------------------------------------------------------------------

// Fields 20 and 22 of /proc/self/stat: the number of threads; clock ticks from boot to start.
struct ProcessStat {
  long threads = 0;
  unsigned long long start_ticks = 0;
};

ProcessStat process_stat() {
  ProcessStat stat;
  const Fd fd(open("/proc/self/stat", O_RDONLY | O_CLOEXEC));
  char text[1024];
  const ssize_t n = fd ? read(fd.get(), text, sizeof text - 1) : -1;
  if (n <= 0) return stat;
  text[n] = '\0';
  // The process's name, before the last ')', may contain anything.
  const char* at = text + std::string_view(text).rfind(')') + 1;
  std::sscanf(at,
              " %*c %*d %*d %*d %*d %*d %*u %*u %*u %*u %*u %*u %*u %*d %*d %*d %*d %ld %*d %llu",
              &stat.threads, &stat.start_ticks);
  return stat;
}

std::int64_t ms_of(clockid_t clock) {
  timespec t{};
  clock_gettime(clock, &t);
  return t.tv_sec * 1000LL + t.tv_nsec / 1'000'000;
}

std::string program_path() {
  char path[4096];
  const ssize_t n = readlink("/proc/self/exe", path, sizeof path);
  return n > 0 ? std::string(path, static_cast<std::size_t>(n)) : "";
}

Reply get_info(Arguments& arguments, const Caller&) {
  if (Status ok = arguments.complete(); !ok) return refuse(Asked::request, ok);
  const ProcessStat stat = process_stat();
  const auto start_ms = static_cast<std::int64_t>(stat.start_ticks * 1000 /
                                                  static_cast<unsigned>(sysconf(_SC_CLK_TCK)));
  return Json{{"pid", getpid()},
              {"name", host_name()},
              {"exe", program_path()},
              {"version", MOLT_VERSION},
              {"abi", MOLT_ABI},
              {"started_ms", ms_of(CLOCK_REALTIME) - ms_of(CLOCK_BOOTTIME) + start_ms},
              {"taint", module::process_taint()},
              {"locked", module::loading_locked()},
              {"poisoned", module::poisoned()},
              {"membarrier", barrier_asymmetric()},
              {"modules", module::list().size()},
              {"hooks", hooks::count()},
              {"threads", stat.threads},
              {"operation", module::operation()}};
}

// --- modules ------------------------------------------------------------------------------------

bool is_listed(const std::string& name) {
  const auto all = module::list();
  return std::any_of(all.begin(), all.end(), [&](const auto& m) { return m.name == name; });
}

Json module_json(const module::ModuleInfo& m) {
  return {{"name", m.name},
          {"version", m.version},
          {"size", m.size},
          {"refcount", m.refcount},
          {"holders", m.holders},
          {"state", module::state_text(m.state)},
          {"enabled", m.enabled},
          {"permanent", m.permanent},
          {"taint", m.taint},
          {"address", hex(m.address)},
          {"line", module::proc_line(m)}};
}

tl::unexpected<Failure> no_file() {
  return refuse(Asked::request, fail(EBADF, "no file came with the request").value());
}

// Not a failure for who wants it loaded: the very same file is live.
Reply already_loaded(const std::string& name, const std::string& args) {
  Json warnings = Json::array();
  if (!args.empty()) {
    warnings.push_back("loaded already; the parameters '" + args +
                       "' were not applied: `molt set` changes those that are writable");
  }
  std::string taint;
  for (const module::ModuleInfo& m : module::list()) {
    if (m.name == name) taint = m.taint;
  }
  return Json{{"name", name},
              {"already", true},
              {"shared", false},
              {"taint", taint},
              {"warnings", std::move(warnings)}};
}

Reply load(Arguments& arguments, const Caller& caller) {
  module::LoadRequest request;
  request.fd = caller.file;
  request.path = arguments.text("path");
  request.args = arguments.text_or("args", "");
  request.name = arguments.text_or("name", "");
  request.force = arguments.flag("force");
  request.probe = arguments.flag("probe");
  request.dry_run = arguments.flag("dry_run");
  request.timeout_ms = arguments.timeout_ms();
  request.cancelled = cancelled_by(caller);
  if (Status ok = arguments.complete(); !ok) return refuse(Asked::request, ok);
  if (caller.file < 0) return no_file();

  const auto report = module::load(request);
  if (report) {
    return Json{{"name", report->name},
                {"already", false},
                {"shared", report->shared},
                {"taint", report->taint},
                {"warnings", report->warnings}};
  }
  if (report.error().code == EEXIST) {
    const auto name = module::name_in_file(caller.file);
    if (name && module::same_content(*name, caller.file))
      return already_loaded(*name, request.args);
  }
  return refuse(Asked::load, explain_closed(report.error()));
}

Reply unload(Arguments& arguments, const Caller& caller) {
  module::UnloadRequest request;
  request.name = arguments.text("name");
  request.resident = arguments.flag("resident");
  request.lazy = arguments.flag("lazy");
  request.ignore_pointers = arguments.flag("ignore_pointers");
  request.dry_run = arguments.flag("dry_run");
  request.timeout_ms = arguments.timeout_ms();
  request.cancelled = cancelled_by(caller);
  if (Status ok = arguments.complete(); !ok) return refuse(Asked::request, ok);

  const auto report = module::unload(request);
  if (!report && report.error().code == EAGAIN && livepatch::find(request.name)) {
    return refuse(Asked::module, fail(EAGAIN, "%s has a patch in force; `molt revert` unloads both",
                                      request.name.c_str())
                                     .value());
  }
  if (!report) return refuse(Asked::module, report);
  return Json{{"name", report->name},
              {"result", module::to_text(report->fate)},
              {"reason", report->reason},
              {"for_good", report->for_good},
              {"drain_us", report->drain_us}};
}

Reply replace(Arguments& arguments, const Caller& caller) {
  module::ReplaceRequest request;
  request.fd = caller.file;
  request.path = arguments.text("path");
  request.name = arguments.text_or("name", "");
  request.args = arguments.text_or("args", "");
  request.force = arguments.flag("force");
  request.dry_run = arguments.flag("dry_run");
  request.timeout_ms = arguments.timeout_ms();
  request.cancelled = cancelled_by(caller);
  if (Status ok = arguments.complete(); !ok) return refuse(Asked::request, ok);
  if (caller.file < 0) return no_file();

  const auto report = module::replace(request);
  if (!report) {
    // ENOENT: either there is nothing to replace, or the new version misses a symbol.
    const auto name = request.name.empty() ? module::name_in_file(caller.file)
                                           : Result<std::string>(request.name);
    return refuse(name && !is_listed(*name) ? Asked::module : Asked::load, report);
  }
  return Json{{"name", report->name},
              {"from", report->from},
              {"to", report->to},
              {"state_bytes", report->state_bytes},
              {"pause_us", report->pause_us},
              {"old", module::to_text(report->old)},
              {"reason", report->reason},
              {"for_good", report->for_good},
              {"warnings", report->warnings}};
}

Reply list(Arguments& arguments, const Caller&) {
  if (Status ok = arguments.complete(); !ok) return refuse(Asked::request, ok);
  Json modules = Json::array();
  for (const module::ModuleInfo& m : module::list()) modules.push_back(module_json(m));
  Json residents = Json::array();
  for (const module::ResidentInfo& r : module::residents()) {
    residents.push_back({{"name", r.name},
                         {"version", r.version},
                         {"state", r.pinned ? wire::result::pinned : wire::result::resident},
                         {"reason", r.reason},
                         {"size", r.size}});
  }
  return Json{{"modules", std::move(modules)}, {"resident", std::move(residents)}};
}

Reply info(Arguments& arguments, const Caller&) {
  const std::string name = arguments.text("name");
  if (Status ok = arguments.complete(); !ok) return refuse(Asked::request, ok);

  const auto detail = module::info(name, true);
  if (!detail) return refuse(Asked::module, detail);
  Json parameters = Json::array();
  for (const module::ParamInfo& p : detail->parameters) {
    parameters.push_back({{"name", p.name},
                          {"type", p.type},
                          {"value", p.value},
                          {"writable", p.writable},
                          {"description", p.description}});
  }
  Json callbacks = Json::array();
  for (const hooks::CallbackInfo& c : detail->callbacks) {
    callbacks.push_back({{"hook", c.module}, {"order", c.order}});
  }
  Json imports = Json::array();
  for (const module::ImportInfo& i : detail->imports) {
    imports.push_back({{"name", i.name}, {"module", i.module}});
  }
  const module::Requests& requests = detail->requests;

  Json reply = module_json(detail->module);
  reply["description"] = detail->description;
  reply["license"] = detail->license;
  reply["srcversion"] = detail->srcversion;
  reply["path"] = detail->path;
  reply["store"] = detail->store;
  reply["parameters"] = std::move(parameters);
  reply["callbacks"] = std::move(callbacks);
  reply["exports"] = detail->exports;
  reply["imports"] = std::move(imports);
  reply["state_version"] = detail->state_version;
  reply["requests"] = {{"loads", requests.loads},
                       {"joined", requests.joined},
                       {"pid", requests.first.pid},
                       {"uid", requests.first.uid},
                       {"comm", requests.first.comm}};
  reply["hazards"] = detail->hazards;
  reply["exceptions"] = detail->exceptions;
  return reply;
}

Reply gc(Arguments& arguments, const Caller&) {
  const bool dry_run = arguments.flag("dry_run");
  const bool ignore_pointers = arguments.flag("ignore_pointers");
  if (Status ok = arguments.complete(); !ok) return refuse(Asked::request, ok);
  const module::GcReport report = module::gc(dry_run, ignore_pointers);
  Json kept = Json::array();
  for (const module::Kept& k : report.kept)
    kept.push_back({{"name", k.name}, {"reason", k.reason}});
  return Json{{"freed", report.freed}, {"kept", std::move(kept)}};
}

Reply wait_for_patch(const std::string& name, bool patched, int timeout_ms, const Caller& caller) {
  const std::int64_t began_ns = now_ns();
  if (patched && !livepatch::find(name)) {
    return refuse(Asked::module, fail(ENOENT, "no patch %s is installed", name.c_str()).value());
  }
  const Status done = livepatch::wait(Deadline::in_ms(timeout_ms), cancelled_by(caller));
  if (!done) return refuse(Asked::other, done);
  const auto patch = livepatch::find(name);
  if (patched != (patch && patch->enabled)) {
    return refuse(Asked::other, fail(EAGAIN, "the transition is over, and patch %s is %s",
                                     name.c_str(), patched ? "not in force" : "in force")
                                    .value());
  }
  return Json{{"waited_ms", (now_ns() - began_ns) / 1'000'000}};
}

Reply audit_module(Arguments& arguments, const Caller& caller) {
  module::AuditRequest request;
  request.name = arguments.text("name");
  request.timeout_ms = arguments.timeout_ms();
  request.cancelled = cancelled_by(caller);
  if (Status ok = arguments.complete(); !ok) return refuse(Asked::request, ok);

  const auto report = module::audit_module(request);
  if (!report) return refuse(Asked::module, report);
  Json pointers = Json::array();
  for (const audit::Finding& f : report->findings) {
    pointers.push_back({{"place", audit::to_text(f.place)},
                        {"address", hex(f.address)},
                        {"where", f.where},
                        {"owner", f.owner},
                        {"target", f.target},
                        {"looks", audit::to_text(f.looks)},
                        {"bars", f.bars}});
  }
  return Json{{"name", request.name},     {"pointers", std::move(pointers)},
              {"more", report->more},     {"dismissed", report->dismissed},
              {"stable", report->stable}, {"method", audit::to_text(report->method)},
              {"rounds", report->rounds}, {"bytes", report->bytes},
              {"us", report->us}};
}

Reply wait(Arguments& arguments, const Caller& caller) {
  const std::string name = arguments.text_or("name", "");
  const bool has_event = arguments.has("for");
  const std::string event = arguments.text_or("for", "live");
  const int timeout_ms = arguments.timeout_ms();
  if (Status ok = arguments.complete(); !ok) return refuse(Asked::request, ok);

  const bool is_of_patch = event == "patched" || event == "unpatched";
  const bool is_known = is_of_patch || event == "live" || event == "gone" || event == "freed";
  if (!is_known || (has_event && name.empty())) {
    return refuse(
        Asked::request,
        fail(EINVAL, "`for` is live, gone, freed, patched or unpatched, and needs a `name`")
            .value());
  }
  if (is_of_patch) return wait_for_patch(name, event == "patched", timeout_ms, caller);
  const auto until = event == "live"   ? module::Until::live
                     : event == "gone" ? module::Until::gone
                                       : module::Until::freed;
  const std::int64_t began_ns = now_ns();
  const Deadline deadline = Deadline::in_ms(timeout_ms);
  Status done = module::wait(name, until, deadline, cancelled_by(caller));
  // A transition is something under way as well, without a name or with its patch's.
  const auto transition = livepatch::transition();
  const bool has_one = name.empty() || (!has_event && transition && transition->patch == name);
  if (done && has_one) done = livepatch::wait(deadline, cancelled_by(caller));
  if (!done) return refuse(Asked::other, done);
  return Json{{"waited_ms", (now_ns() - began_ns) / 1'000'000}};
}

Reply detach(Arguments& arguments, const Caller&) {
  const bool dry_run = arguments.flag("dry_run");
  if (Status ok = arguments.complete(); !ok) return refuse(Asked::request, ok);
  if (Status done = leave(dry_run); !done) return refuse(Asked::other, done);
  return Json::object();
}

// --- livepatches ----------------------------------------------------------------------------------

Json patch_json(const livepatch::PatchInfo& patch) {
  Json objects = Json::array();
  for (const livepatch::ObjectInfo& object : patch.objects) {
    Json functions = Json::array();
    for (const livepatch::FunctionInfo& f : object.functions) {
      functions.push_back({{"name", f.name}, {"position", f.position}});
    }
    objects.push_back(
        {{"name", object.name}, {"patched", object.patched}, {"functions", std::move(functions)}});
  }
  return {{"name", patch.name},
          {"enabled", patch.enabled},
          {"transition", patch.transition},
          {"replace", patch.replace},
          {"immediate", patch.immediate},
          {"forced", patch.forced},
          {"stack_order", patch.stack_order},
          {"objects", std::move(objects)}};
}

Json transition_json() {
  const auto t = livepatch::transition();
  if (!t) return nullptr;
  return {{"patch", t->patch},   {"target", t->patching ? "patched" : "unpatched"},
          {"forced", t->forced}, {"threads", t->threads},
          {"done", t->done},     {"left", t->left},
          {"tries", t->tries},   {"age_ms", t->age_ms}};
}

Json history_json() {
  const livepatch::History history = livepatch::history();
  if (history.patch.empty()) return nullptr;
  Json moments = Json::array();
  for (const livepatch::Moment& m : history.moments) {
    moments.push_back({m.us, m.unpatched, m.pending, m.patched});
  }
  return {{"patch", history.patch}, {"over", history.over}, {"moments", std::move(moments)}};
}

Reply patches(Arguments& arguments, const Caller&) {
  if (Status ok = arguments.complete(); !ok) return refuse(Asked::request, ok);
  Json all = Json::array();
  for (const livepatch::PatchInfo& patch : livepatch::list()) all.push_back(patch_json(patch));
  Json pinned = Json::array();
  for (const livepatch::PinnedInfo& p : livepatch::pinned()) {
    pinned.push_back({{"name", p.name}, {"reason", p.reason}});
  }
  return Json{{"patches", std::move(all)},
              {"transition", transition_json()},
              {"history", history_json()},
              {"pinned", std::move(pinned)}};
}

// Who stands between a module and its end, or a patch and the end of its transition.
Json holder_json(const module::Holder& h) {
  Json holder = {{"what", h.what}, {"where", h.where}, {"certain", h.certain}};
  if (h.tid != 0) {
    holder["tid"] = h.tid;
    holder["thread"] = h.thread;
    holder["serial"] = h.serial;
    holder["asleep_ms"] = h.asleep_ms;
    holder["syscall"] = h.syscall;
  }
  if (h.address != 0) {
    holder["function"] = h.function;
    holder["address"] = hex(h.address);
    holder["stack_address"] = hex(h.stack_address);
    holder["depth"] = h.depth;
  }
  return holder;
}

module::Holder holder_of(const livepatch::Blocker& b) {
  module::Holder h;
  h.what = b.tid != 0 ? "thread" : "the patch";
  h.tid = b.tid;
  h.thread = b.thread;
  h.certain = b.certain;
  h.address = b.address;
  h.stack_address = b.stack_address;
  h.depth = b.depth;
  h.serial = b.serial;
  h.asleep_ms = b.asleep_ms;
  h.syscall = b.syscall;
  h.function = b.function.empty() ? "superseded code" : b.function;
  if (b.address != 0) {
    h.where = (b.certain ? "is in " : "may return into ") + h.function;
  } else if (b.tid != 0) {
    h.where = "is not proven to be out: " + b.reason;
  } else {
    h.where = "cannot go on: " + b.reason;
    h.certain = true;
  }
  return h;
}

Reply blocking(Arguments& arguments, const Caller&) {
  const std::string name = arguments.text_or("name", "");
  if (Status ok = arguments.complete(); !ok) return refuse(Asked::request, ok);
  const auto transition = livepatch::transition();
  Json holders = Json::array();
  if (name.empty() || (transition && transition->patch == name)) {
    for (const livepatch::Blocker& b : livepatch::blocking()) {
      holders.push_back(holder_json(holder_of(b)));
    }
    const char* state = !transition ? "" : transition->patching ? "patching" : "unpatching";
    return Json{{"name", transition ? transition->patch : ""},
                {"state", state},
                {"reason", ""},
                {"transition", transition_json()},
                {"holders", std::move(holders)}};
  }
  const auto report = module::blocking(name);
  if (!report) return refuse(Asked::module, report);
  const auto patch = livepatch::find(name);
  if (patch) {
    module::Holder enabled;
    enabled.what = "its patch";
    enabled.where = "is enabled; `molt revert` it first";
    enabled.certain = true;
    holders.push_back(holder_json(enabled));
  }
  for (const module::Holder& h : report->holders) holders.push_back(holder_json(h));
  return Json{{"name", report->name},
              {"state", report->state},
              {"reason", report->reason},
              {"transition", nullptr},
              {"holders", std::move(holders)}};
}

// An address as text, as holder_json() writes them.
bool read_hex(const std::string& text, std::uintptr_t& address) {
  const char* digits = text.c_str() + (text.compare(0, 2, "0x") == 0 ? 2 : 0);
  const auto [end, error] = std::from_chars(digits, text.c_str() + text.size(), address, 16);
  return error == std::errc() && *end == '\0';
}

Reply testify(Arguments& arguments, const Caller&) {
  const int tid = static_cast<int>(arguments.number("tid", 1, INT_MAX));
  const std::int64_t serial = arguments.number("serial", 1, INT64_MAX);
  threads::Testimony testimony;
  testimony.runs = static_cast<std::uint64_t>(arguments.number("runs", 1, INT64_MAX));
  const std::string from = arguments.text("from");
  const std::string to = arguments.text("to");
  bool none = false;
  const std::vector<std::string> slots = arguments.texts("slots", none);
  if (Status ok = arguments.complete(); !ok) return refuse(Asked::request, ok);
  bool valid = read_hex(from, testimony.from) && read_hex(to, testimony.to);
  for (const std::string& slot : slots) {
    testimony.slots.push_back(0);
    valid = valid && read_hex(slot, testimony.slots.back());
  }
  if (!valid)
    return refuse(Asked::request, fail(EINVAL, "an address is not in hexadecimal").value());
  if (Status heard = module::testify(tid, static_cast<std::uint64_t>(serial), std::move(testimony));
      !heard) {
    return refuse(Asked::module, heard);
  }
  return Json::object();
}

Reply lend(Arguments& arguments, const Caller&) {
  if (Status ok = arguments.complete(); !ok) return refuse(Asked::request, ok);
  const auto loans = module::take_loans();
  if (!loans) return refuse(Asked::request, loans);
  return Json{{"taken", loans->taken},
              {"missing", loans->missing},
              {"desk", loans->desk.empty() ? Json(nullptr) : Json(loans->desk)}};
}

// --- hooks --------------------------------------------------------------------------------------

Json order_json(const hooks::Order& order) {
  return order.given ? Json(order.modules) : Json(nullptr);
}

Reply hook_list(Arguments& arguments, const Caller&) {
  if (Status ok = arguments.complete(); !ok) return refuse(Asked::request, ok);
  Json hooks = Json::array();
  for (const hooks::HookInfo& h : hooks::list()) {
    Json callbacks = Json::array();
    for (const hooks::CallbackInfo& c : h.callbacks) {
      callbacks.push_back({{"module", c.module}, {"order", c.order}});
    }
    hooks.push_back({{"name", h.name},
                     {"signature", h.signature},
                     {"fingerprint", hex(h.fingerprint)},
                     {"rule", h.rule},
                     {"on_exception", h.on_exception},
                     {"description", h.description},
                     {"callbacks", std::move(callbacks)},
                     {"order", order_json(h.order)}});
  }
  return Json{{"hooks", std::move(hooks)}};
}

Reply hook_order(Arguments& arguments, const Caller&) {
  const bool is_for_all = !arguments.has("hook");
  const std::string name = arguments.text_or("hook", "");
  bool is_load_order = false;
  hooks::Order order;
  order.modules = arguments.texts("modules", is_load_order);
  order.given = !is_load_order;
  if (Status ok = arguments.complete(); !ok) return refuse(Asked::request, ok);
  if (name.empty() && !is_for_all) {
    return refuse(Asked::request, fail(EINVAL, "`hook` is empty; leave it out for all").value());
  }
  if (Status done = hooks::set_order(name, order); !done) return refuse(Asked::hook, done);
  return Json{{"hook", is_for_all ? Json(nullptr) : Json(name)}, {"order", order_json(order)}};
}

// --- objects ------------------------------------------------------------------------------------

Reply get(Arguments& arguments, const Caller&) {
  const std::string path = arguments.text("path");
  if (Status ok = arguments.complete(); !ok) return refuse(Asked::request, ok);
  auto value = tree().get(path);
  if (!value) return refuse(Asked::attribute, value);
  return Json{{"value", std::move(*value)}};
}

Reply set(Arguments& arguments, const Caller&) {
  const std::string path = arguments.text("path");
  const std::string value = arguments.text("value");
  if (Status ok = arguments.complete(); !ok) return refuse(Asked::request, ok);
  if (Status done = tree().set(path, value); !done) return refuse(Asked::attribute, done);
  return Json::object();
}

Reply walk(Arguments& arguments, const Caller&) {
  const std::string path = arguments.text_or("path", "");
  if (Status ok = arguments.complete(); !ok) return refuse(Asked::request, ok);
  const auto nodes = tree().walk(path);
  if (!nodes) return refuse(Asked::attribute, nodes);
  Json all = Json::array();
  for (const Node& node : *nodes) {
    constexpr const char* kinds[] = {"object", "attribute", "link"};
    char mode[8];
    std::snprintf(mode, sizeof mode, "%04o", node.mode);
    Json json = {{"path", node.path}, {"kind", kinds[node.kind]}, {"mode", mode}};
    if (node.has_value) json["value"] = node.value;
    if (node.kind == Node::link) json["target"] = node.target;
    all.push_back(std::move(json));
  }
  return Json{{"nodes", std::move(all)}};
}

Reply open_object(Arguments& arguments, const Caller& caller) {
  const std::string path = arguments.text("path");
  if (Status ok = arguments.complete(); !ok) return refuse(Asked::request, ok);
  auto object = tree().open(path);
  if (!object) return refuse(Asked::attribute, object);
  Session& session = *caller.session;
  if (session.handles.size() >= Session::handles_max) {
    return refuse(
        Asked::other,
        fail(EMFILE, "%zu handles are open; close one first", session.handles.size()).value());
  }
  const std::int64_t handle = session.next_handle++;
  session.handles.emplace(handle, std::move(*object));
  return Json{{"handle", handle}};
}

tl::unexpected<Failure> no_handle(std::int64_t handle) {
  return refuse(Asked::request,
                fail(EBADF, "%lld is no open handle", static_cast<long long>(handle)).value());
}

Reply get_through_handle(Arguments& arguments, const Caller& caller) {
  const std::int64_t handle = arguments.number("handle", 0, INT64_MAX);
  const std::string name = arguments.text("name");
  if (Status ok = arguments.complete(); !ok) return refuse(Asked::request, ok);
  const auto at = caller.session->handles.find(handle);
  if (at == caller.session->handles.end()) return no_handle(handle);
  auto value = get_attribute(*at->second, name);
  if (!value) return refuse(Asked::attribute, value);
  return Json{{"value", std::move(*value)}};
}

Reply close_object(Arguments& arguments, const Caller& caller) {
  const std::int64_t handle = arguments.number("handle", 0, INT64_MAX);
  if (Status ok = arguments.complete(); !ok) return refuse(Asked::request, ok);
  if (caller.session->handles.erase(handle) == 0) return no_handle(handle);
  return Json::object();
}

// --- events -------------------------------------------------------------------------------------

// One answer; the endless one is the server's (Call::is_stream).
Reply events(Arguments& arguments, const Caller&) {
  const std::int64_t since = arguments.number_or("since", 0, 0, INT64_MAX);
  arguments.flag("more");
  if (Status ok = arguments.complete(); !ok) return refuse(Asked::request, ok);
  return events_json(log::read(static_cast<std::uint64_t>(since), log::capacity));
}

}  // namespace

std::span<const Method> methods() {
  namespace name = wire::method;
  static constexpr Method all[] = {
      // name               slow   file
      {name::get_info, false, false, get_info},
      {name::load, true, true, load},
      {name::unload, true, false, unload},
      {name::replace, true, true, replace},
      {name::list, false, false, list},
      {name::info, true, false, info},
      {name::hook_list, false, false, hook_list},
      {name::hook_order, true, false, hook_order},
      {name::get, true, false, get},
      {name::set, true, false, set},
      {name::tree, true, false, walk},
      {name::open, false, false, open_object},
      {name::get_attribute, true, false, get_through_handle},
      {name::close, false, false, close_object},
      {name::events, false, false, events},
      {name::gc, true, false, gc},
      {name::blocking, true, false, blocking},
      {name::testify, true, false, testify},
      {name::lend, true, false, lend},
      {name::audit, true, false, audit_module},
      {name::wait, true, false, wait},
      {name::patches, true, false, patches},
      {name::detach, true, false, detach},
  };
  return all;
}

Json events_json(const log::Batch& batch) {
  Json events = Json::array();
  for (const log::Line& line : batch.lines) {
    events.push_back({{"seq", line.seq},
                      {"time_ms", line.time_ms},
                      {"module", line.module},
                      {"text", line.text},
                      {"pid", line.requester.pid},
                      {"uid", line.requester.uid}});
  }
  return {{"events", std::move(events)}, {"next", batch.next}, {"lost", batch.lost}};
}

}  // namespace molt::control
