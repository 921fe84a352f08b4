// load.cpp - bringing a module up, in the order of KERNEL.md M1.5.

#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <cstring>
#include <iterator>
#include <optional>
#include <utility>

#include "base/fd.hpp"
#include "base/hash.hpp"
#include "base/last_error.hpp"
#include "elf/hazards.hpp"
#include "elf/image.hpp"
#include "elf/loadable.hpp"
#include "elf/loaded.hpp"
#include "interpose/functions.hpp"
#include "module/internal.hpp"
#include "module/preview.hpp"
#include "patchfile/patch_file.hpp"

namespace molt::module {
namespace {

constexpr int default_wait_ms = 30'000;  // KERNEL.md M5.4
constexpr std::uint64_t largest_file = 1ull << 30;
// How long a module that did not come to life may keep its own threads.
constexpr int init_threads_ms = 1000;
// How long who looked at it meanwhile may be in its parameters.
constexpr int core_calls_ms = 10'000;

Deadline deadline_of(int timeout_ms) {
  return Deadline::in_ms(timeout_ms < 0 ? default_wait_ms : timeout_ms);
}

// Licences whose modules may use restricted exports, and do not taint.
bool is_free(std::string_view license) {
  constexpr std::string_view prefixes[] = {
      "GPL",    "LGPL", "AGPL", "Dual ",     "MIT", "BSD",   "ISC",           "MPL",
      "Apache", "Zlib", "CC0",  "Unlicense", "BSL", "Boost", "Public domain", "0BSD"};
  return std::any_of(std::begin(prefixes), std::end(prefixes),
                     [&](std::string_view p) { return license.substr(0, p.size()) == p; });
}

Result<Bytes> read_file(int fd) {
  struct stat info;
  if (fstat(fd, &info) != 0) return fail_errno(errno, "cannot look at the module's file");
  if (!S_ISREG(info.st_mode)) return fail(EINVAL, "the module is not a regular file");
  if (info.st_size == 0) return fail(EINVAL, "the module's file is empty");
  if (static_cast<std::uint64_t>(info.st_size) > largest_file) {
    return fail(EFBIG, "the module's file has more than 1 GiB");
  }
  Bytes content;
  if (!content.try_resize(static_cast<std::size_t>(info.st_size))) {
    return fail(ENOMEM, "no memory for the module's file");
  }
  std::size_t done = 0;
  while (done < content.size()) {
    ssize_t n = pread(fd, content.data() + done, content.size() - done, static_cast<off_t>(done));
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) return fail_errno(errno, "cannot read the module's file");
    if (n == 0) return fail(ENOEXEC, "the module's file shrank while it was read; try again");
    done += static_cast<std::size_t>(n);
  }
  return content;
}

// --- joining a load that is under way ----------------------------------------------------------

// Would the thread `tid` have to finish before the flight could? Under the lock.
bool depends_on(const Flight& flight, int tid) {
  int at = flight.tid;
  for (int hops = 0; hops < 64; ++hops) {
    if (at == tid) return true;
    auto waits = manager().waiting.find(at);
    if (waits == manager().waiting.end()) return false;
    at = waits->second->tid;
  }
  return true;
}

Status deadlock(const std::string& name) {
  return fail(EDEADLK, "%s: a module loads itself from its own init", name.c_str());
}

// Waits for another's load and shares its result. Takes the lock held, leaves it released.
//
// Hundreds of threads may come here at once. Each takes the lock once on its way in, and none on its
// way out (land() forgets them all), makes no system call but the wait, and takes next to no memory.
Result<LoadReport> join(Lock& lock, FlightPtr flight, const LoadRequest& request) {
  const Module* mine = thread_owner();
  bool of_this_load =
      mine != nullptr && mine->state == MOLT_MODULE_STATE_COMING && mine->loader_tid == flight->tid;
  if (depends_on(*flight, gettid()) || of_this_load) {
    Status status = deadlock(flight->name.empty() ? request.path : flight->name);
    lock.unlock();
    return pass(status);
  }
  manager().waiting[gettid()] = flight;
  ++flight->joined;
  lock.unlock();

  Deadline deadline = deadline_of(request.timeout_ms);
  bool gave_up = false;
  while (flight->word.load(std::memory_order_acquire) == 0 && !gave_up) {
    Deadline until = request.cancelled ? deadline.sooner(Deadline::in_ms(50)) : deadline;
    futex_wait(flight->word, 0, until);
    gave_up = deadline.passed() || (request.cancelled && request.cancelled());
  }
  if (flight->word.load(std::memory_order_acquire) == 0) {
    lock.lock();
    manager().waiting.erase(gettid());
    lock.unlock();
  }
  if (flight->word.load(std::memory_order_acquire) == 0) {
    return fail(deadline.passed() ? EBUSY : ECANCELED, "%s: gave up waiting for another load of it",
                request.path.c_str());
  }
  if (!flight->outcome) return pass(flight->outcome);
  LoadReport report = flight->report;
  report.shared = true;
  if (request.args != flight->args) {
    report.warnings.push_back(
        "loaded for another request at the same time, with its parameters ('" + flight->args +
        "') and not with these");
  }
  return report;
}

// The load is over: nobody joins it any more, and nobody waits for it. Under the lock.
void land(const FlightPtr& flight) {
  Manager& m = manager();
  m.flights.erase(std::find(m.flights.begin(), m.flights.end(), flight));
  for (auto at = m.waiting.begin(); at != m.waiting.end();) {
    at = at->second == flight ? m.waiting.erase(at) : std::next(at);
  }
}

// --- names --------------------------------------------------------------------------------------

tl::unexpected<Error> already_loaded(const std::string& name) {
  return fail(EEXIST, "%s is loaded already; `molt replace` puts another version in its place",
              name.c_str());
}

// Takes the name, or says why not (KERNEL.md M3.4, final rule).
Status reserve(Lock& lock, const ModulePtr& module, const LoadRequest& request) {
  Deadline deadline = deadline_of(request.timeout_ms);
  bool waited = false;
  for (;;) {
    ModulePtr other = find(module->name, true);
    if (!other) {
      if (waited) return fail(EBUSY, "%s: another load of it failed", module->name.c_str());
      break;
    }
    // Who waited goes on when the other load is wholly over, notifiers included.
    bool over = !waited || other->loader_tid == 0;
    if (other->state == MOLT_MODULE_STATE_LIVE && over) {
      return already_loaded(module->name);
    }
    // Who waited goes on waiting: that is the other load's failure being undone.
    if (!waited && (other->state == MOLT_MODULE_STATE_GOING || other->leaving)) {
      return fail(EBUSY, "%s is being unloaded; try again when it has gone", module->name.c_str());
    }
    if (other->state != MOLT_MODULE_STATE_LIVE &&
        (other->loader_tid == gettid() || thread_owner() == other.get())) {
      return deadlock(module->name);
    }
    waited = true;
    if (!wait_for_change(lock, deadline, request.cancelled)) {
      return fail(EBUSY, "%s: gave up waiting for another load of it", module->name.c_str());
    }
  }
  manager().modules.push_front(module);
  return {};
}

void unreserve(const ModulePtr& module) {
  Lock lock(manager().mutex);
  manager().modules.remove(module);
  announce_change();
}

// --- mapping ------------------------------------------------------------------------------------

// The symbol in dlerror's "...: undefined symbol: NAME (...)"; empty if it is about something else.
std::string undefined_in(std::string_view error) {
  constexpr std::string_view mark = "undefined symbol: ";
  auto at = error.find(mark);
  if (at == std::string_view::npos) return "";
  std::string_view rest = error.substr(at + mark.size());
  return std::string(rest.substr(0, rest.find_first_of(" ,\n")));
}

// Whether [begin, end) lies in the object; an empty list may be nowhere.
bool lies_in(const elf::Range& extent, const void* begin, const void* end) {
  const auto first = reinterpret_cast<std::uintptr_t>(begin);
  const auto last = reinterpret_cast<std::uintptr_t>(end);
  if (first == last) return true;
  return first < last && first >= extent.begin && last <= extent.end;
}

template <class T>
bool list_lies_in(const elf::Range& extent, const T* begin, const T* end) {
  const auto bytes =
      reinterpret_cast<std::uintptr_t>(end) - reinterpret_cast<std::uintptr_t>(begin);
  return lies_in(extent, begin, end) && bytes % sizeof(T) == 0;
}

// All that is read through the descriptor is the module's own; its functions may be others'.
bool descriptor_is_sound(const molt_module& d, const elf::Range& extent) {
  for (const char* text : {d.magic, d.name, d.version, d.license, d.description}) {
    if (text != nullptr && !lies_in(extent, text, text + 1)) return false;
  }
  return (d.state == nullptr || lies_in(extent, d.state, d.state + 1)) &&
         list_lies_in(extent, d.callbacks, d.callbacks_end) &&
         list_lies_in(extent, d.params, d.params_end) &&
         list_lies_in(extent, d.exports, d.exports_end) &&
         list_lies_in(extent, d.imports, d.imports_end);
}

Status check_descriptor(Module& module, bool force) {
  const molt_module& d = *module.descriptor;
  auto extent = elf::extent_of(&d);
  if (!extent || !lies_in(*extent, &d, &d + 1)) {
    return fail(ENOEXEC, "%s: its descriptor is not in it; rebuild it", module.name.c_str());
  }
  if (d.abi != MOLT_ABI || d.size < sizeof(molt_module)) {
    return fail(ENOEXEC, "%s: built for interface %u of Molt, this process has %u; rebuild it",
                module.name.c_str(), d.abi, MOLT_ABI);
  }
  if (!descriptor_is_sound(d, *extent) || d.name == nullptr || module.name != d.name ||
      (!force && (d.magic == nullptr || std::strcmp(d.magic, MOLT_MAGIC) != 0))) {
    return fail(ENOEXEC, "%s: its descriptor and its note disagree; rebuild it",
                module.name.c_str());
  }
  return {};
}

Status map(Module& module, const Prepared& prepared, bool force) {
  const std::span<const std::byte> content = prepared.content;
  if (prepared.is_patch_file) return map_patch(module, content);
  Result<Stored> stored = store_copy(content, module.hash);
  if (!stored) return pass(stored);
  module.stored = *stored;
  errno = 0;
  module.handle = dlopen(stored->path.c_str(), RTLD_NOW | RTLD_LOCAL);
  const int loader_errno = errno;
  const char* error = module.handle ? nullptr : dlerror();
  store_mapped(*stored);
  if (module.handle == nullptr) {
    std::string text = error ? error : "dlopen failed";
    store_forget(module.stored);
    if (text.find("static TLS") != std::string::npos) {
      // No one can tell beforehand how much is left; the dynamic loader has mapped nothing.
      return fail(ENOEXEC,
                  "%s: this process has no room left for initial-exec thread-local variables, "
                  "which earlier loads of this kind have used up for good; compile it without "
                  "-ftls-model=initial-exec, or restart the process",
                  module.name.c_str());
    }
    if (std::string symbol = undefined_in(text); !symbol.empty()) {
      log::line(module.name, "Unknown symbol %s (err -%d)", symbol.c_str(), ENOENT);
      return fail(ENOENT, "%s: Unknown symbol %s (err -2); %s", module.name.c_str(), symbol.c_str(),
                  symbol.starts_with("molt_")
                      ? "link the module with -lmolt, as molt_add_module() does; if it is, this "
                        "process has an older Molt"
                      : "neither host nor libraries have it");
    }
    const int code = cause_of(text, loader_errno);
    if (code == EBADF) {
      return fail(
          EAGAIN,
          "%s: %s; if another thread of the process closes descriptors that it did not open: "
          "try again",
          module.name.c_str(), text.c_str());
    }
    return fail(code, "%s: %s", module.name.c_str(), text.c_str());
  }
  module.descriptor = static_cast<molt_module*>(dlsym(module.handle, MOLT_MODULE_SYMBOL));
  if (module.descriptor == nullptr) {
    return fail(ENOEXEC,
                "%s: no %s in it; if it is a module, the process has closed and opened descriptors "
                "meanwhile: try again",
                module.name.c_str(), MOLT_MODULE_SYMBOL);
  }
  if (Status ok = check_descriptor(module, force); !ok) return ok;
  if (auto extent = elf::extent_of(module.descriptor)) {
    module.address = extent->begin;
    module.size = extent->size();
  }
  if (auto object = elf::object_at(module.descriptor)) {
    for (std::size_t i = 0; i < object->text_count; ++i) {
      module.text.add(object->text[i].begin, object->text[i].end);
    }
    const molt_module& d = *module.descriptor;
    for (const molt_callback* c = d.callbacks; c != d.callbacks_end; ++c) {
      module.text.note_entry(reinterpret_cast<std::uintptr_t>(c->fn));
    }
  }
  module.mapping = elf::mapped_file_at(module.descriptor);
  module.descriptor->core = &module.core;
  module.permanent = module.descriptor->init != nullptr && module.descriptor->exit == nullptr;
  return {};
}

// --- symbols between modules --------------------------------------------------------------------

const molt_export* exported(const Module& module, std::string_view name) {
  if (module.descriptor == nullptr) return nullptr;
  for (const molt_export* e = module.descriptor->exports; e != module.descriptor->exports_end;
       ++e) {
    if (name == e->name) return e;
  }
  return nullptr;
}

// Who exports a symbol: exports are visible from COMING on. Under the lock.
ModulePtr provider_of(std::string_view symbol, const Module* except = nullptr) {
  for (const ModulePtr& module : manager().modules) {
    if (module.get() == except || module->state == MOLT_MODULE_STATE_UNFORMED ||
        module->state == MOLT_MODULE_STATE_GOING) {
      continue;
    }
    if (exported(*module, symbol)) return module;
  }
  return nullptr;
}

std::uint64_t fingerprint(std::uint64_t given, const char* signature) {
  return given ? given : molt_fingerprint(signature);
}

tl::unexpected<Error> unknown_symbol(const Module& module, const molt_import& import, int code,
                                     const char* why) {
  log::line(module.name, "Unknown symbol %s (err -%d)", import.name, code);
  return fail(code, "%s: Unknown symbol %s (err -%d): %s", module.name.c_str(), import.name, code,
              why);
}

Status bind_imports(Module& module, const LoadRequest& request) {
  Deadline deadline = deadline_of(request.timeout_ms);
  const molt_module& d = *module.descriptor;
  Lock lock(manager().mutex);
  for (const molt_import* import = d.imports; import != d.imports_end; ++import) {
    ModulePtr provider = provider_of(import->name);
    // A provider that is coming decides by its init whether there is one: it is live then, or, when
    // all has been undone, off the list.
    bool waited = false;
    while (provider &&
           (provider->state != MOLT_MODULE_STATE_LIVE || (waited && provider->loader_tid != 0))) {
      waited = true;
      if (provider->loader_tid == gettid()) return deadlock(module.name);
      if (!wait_for_change(lock, deadline, request.cancelled)) {
        log::line(module.name, "gave up waiting for init of module %s.", provider->name.c_str());
        return fail(EBUSY, "%s: gave up waiting for init of module %s", module.name.c_str(),
                    provider->name.c_str());
      }
      const auto& all = manager().modules;
      if (std::find(all.begin(), all.end(), provider) == all.end()) {
        provider = provider_of(import->name);
      }
    }
    if (!provider) {
      if (import->flags & MOLT_OPTIONAL) {
        module.imports.push_back({import->name, ""});
        continue;
      }
      return unknown_symbol(module, *import, ENOENT, "no loaded module exports it");
    }
    const molt_export* e = exported(*provider, import->name);
    if ((e->flags & MOLT_RESTRICTED) && !is_free(module.license)) {
      return unknown_symbol(module, *import, ENOENT,
                            "its provider offers it to freely licensed modules only");
    }
    if (fingerprint(e->fingerprint, e->signature) !=
        fingerprint(import->fingerprint, import->signature)) {
      std::string why = std::string("it is ") + e->signature + ", wanted as " + import->signature;
      return unknown_symbol(module, *import, EINVAL, why.c_str());
    }
    *import->slot = e->address;
    module.imports.push_back({import->name, provider->name});
    if (std::find(module.providers.begin(), module.providers.end(), provider) ==
        module.providers.end()) {
      ++provider->refcnt;
      provider->was_used = true;
      provider->users.push_back(&module);
      module.providers.push_back(provider);
      // A module that uses what a tainted one offers is no better than that.
      module.taint |= provider->taint & taint_proprietary;
    }
  }
  return {};
}

// Under the lock.
Status check_exports(const Module& module, const Module* beside) {
  const molt_module& d = *module.descriptor;
  for (const molt_export* e = d.exports; e != d.exports_end; ++e) {
    ModulePtr other = provider_of(e->name, beside);
    if (!other || other.get() == &module) continue;
    log::line(module.name, "exports duplicate symbol %s (owned by %s)", e->name,
              other->name.c_str());
    return fail(ENOEXEC, "%s: exports duplicate symbol %s (owned by %s)", module.name.c_str(),
                e->name, other->name.c_str());
  }
  return {};
}

// Functions that the callbacks name become hooks by that; with `dry_run` they stay what they are.
Status check_hooks(const Module& module, bool dry_run) {
  const molt_module& d = *module.descriptor;
  Status ok = interpose::provide(d.callbacks, d.callbacks_end, dry_run);
  for (const molt_callback* c = d.callbacks; ok && c != d.callbacks_end; ++c) {
    if (dry_run && interpose::names_function(c->hook)) continue;
    ok = hooks::check(c, c + 1);
  }
  if (ok) return ok;
  return fail(ok.error().code, "%s: %s", module.name.c_str(), ok.error().detail);
}

// A dry run: what a load checks before it runs anything of the module. Takes references as a load
// does, for the caller to drop.
Status would_fit(Module& module, const Prepared& prepared, const LoadRequest& request,
                 const Module* beside) {
  const std::span<const std::byte> content = prepared.content;
  if (prepared.is_patch_file) return would_link(module, content);
  auto image = elf::Image::parse(content);
  if (!image) return pass(image);
  auto preview = Preview::of(*image);
  if (!preview) return {};
  module.descriptor = preview->descriptor();
  Status ok = bind_imports(module, request);
  if (ok) ok = check_hooks(module, true);
  if (ok) {
    Lock lock(manager().mutex);
    ok = check_exports(module, beside);
  }
  if (ok && beside != nullptr) ok = state_compatible(*beside, module, request.force);
  if (ok) name_unknown_params(module, request.args);
  module.descriptor = nullptr;
  return ok;
}

// --- init ---------------------------------------------------------------------------------------

Status run_init(Module& module) {
  if (module.linked) return enable_patch(module);
  int (*init)(void) = module.descriptor->init;
  succeed();
  int result = init ? init() : 0;
  if (result == 0) return {};
  // What it was that failed for init, if it was one of ours.
  std::string why = last_error();
  if (!why.empty()) why = ": " + why;
  // So does module.hpp answer for an init that threw.
  if (why.empty() && result == -ECANCELED) why = "; if it threw, `molt events` has what";
  if (result > 0) {
    log::line(
        "", "do_init_module: '%s'->init suspiciously returned %d, it should follow 0/-E convention",
        module.name.c_str(), result);
    return fail(EINVAL, "%s: init returned %d; it must be 0 or a negative errno",
                module.name.c_str(), result);
  }
  constexpr int largest_errno = 4095;
  if (result < -largest_errno) {
    return fail(EINVAL, "%s: init answered %d, which is no errno", module.name.c_str(), result);
  }
  return fail(-result, "%s: init failed: %s%s", module.name.c_str(), errno_name(-result),
              why.c_str());
}

void set_state(Module& module, molt_module_state state) {
  Lock lock(manager().mutex);
  module.state = state;
  announce_change();
}

FileIdentity identity_of(const struct stat& info) {
  return FileIdentity{info.st_dev, info.st_ino, static_cast<std::uint64_t>(info.st_size),
                      info.st_mtim.tv_sec * 1'000'000'000LL + info.st_mtim.tv_nsec,
                      info.st_ctim.tv_sec * 1'000'000'000LL + info.st_ctim.tv_nsec};
}

tl::unexpected<Error> cannot_open(const std::string& path) {
  return fail_errno(errno, "cannot open %s", path.c_str());
}

// Without opening it.
Result<FileIdentity> identify(const std::string& path) {
  struct stat info;
  if (stat(path.c_str(), &info) != 0) return cannot_open(path);
  return identity_of(info);
}

// Beside the descriptor.
bool has_symbols(const elf::Image& image) {
  for (const elf::Symbol symbol : image.dynamic_symbols()) {
    if (symbol.exported() && symbol.name != MOLT_MODULE_SYMBOL) return true;
  }
  return false;
}

}  // namespace

Result<FileIdentity> identify(int fd) {
  struct stat info;
  if (fstat(fd, &info) != 0) return fail_errno(errno, "cannot look at the module's file");
  return identity_of(info);
}

// What uses std::regex has dozens of unique symbols; `molt check` names them all.
std::vector<std::string> one_of_each_kind(const std::vector<elf::Hazard>& hazards) {
  std::vector<std::string> texts;
  for (std::size_t i = 0, next; i < hazards.size(); i = next) {
    for (next = i + 1; next < hazards.size() && hazards[next].kind == hazards[i].kind;) ++next;
    texts.push_back(hazards[i].text);
    if (next - i > 1) texts.back() += " (and " + std::to_string(next - i - 1) + " more)";
  }
  return texts;
}

Result<Prepared> prepare(const LoadRequest& request) {
  auto file = identify(request.fd);
  if (!file) return pass(file);
  auto named = [&](const Error& error) {
    return fail(error.code, "%s: %s", request.path.c_str(), error.detail);
  };
  auto content = read_file(request.fd);
  if (!content) return named(content.error());
  if (patchfile::PatchFile::is_one(*content)) {
    auto prepared = prepare_patch(request, std::move(*content));
    if (!prepared) return named(prepared.error());
    prepared->file = *file;
    return prepared;
  }
  if (!request.name.empty()) {
    return named(
        Error(fail(EINVAL, "a module has its name; only a patch file's can be chosen").value()));
  }
  auto image = elf::Image::parse(*content);
  Status loadable = image ? elf::check_loadable(*image) : Status(pass(image));
  if (!loadable) {
    log::line("", "%s", loadable.error().detail);
    return named(loadable.error());
  }
  auto text = [&](std::string_view key) { return std::string(image->note(key).value_or("")); };
  Prepared p;
  p.file = *file;
  p.name = text("name");
  if (!valid_name(p.name) || !image->has_export(MOLT_MODULE_SYMBOL)) {
    return fail(ENOEXEC, "%s is not a Molt module: it has no MOLT_MODULE(...); see molt-module(5)",
                request.path.c_str());
  }
  p.version = text("version");
  p.license = text("license");
  p.description = text("description");
  p.srcversion = image->build_id();
  if (std::string magic = text("magic"); magic != MOLT_MAGIC) {
    if (!request.force) {
      log::line(p.name, "version magic '%s' should be '%s'", magic.c_str(), MOLT_MAGIC);
      return fail(ENOEXEC, "%s: version magic '%s' should be '%s'; rebuild it, or --force",
                  p.name.c_str(), magic.c_str(), MOLT_MAGIC);
    }
    log::line(p.name, "bad vermagic: process tainted.");
    p.taint |= taint_forced;
  }
  if (text("livepatch") == "Y") {
    p.livepatch = true;
    p.taint |= taint_livepatch;
  }
  const std::vector<elf::Hazard> hazards = elf::unload_hazards(*image);
  p.hazards = one_of_each_kind(hazards);
  // Destructors of thread-local objects have run when their threads have ended.
  p.stays_mapped = std::ranges::any_of(
      hazards, [](const auto& h) { return h.kind != elf::Hazard::thread_local_destructor; });
  p.effects = one_of_each_kind(elf::lasting_effects(*image));
  p.has_symbols = has_symbols(*image);
  p.hash = content_hash(*content);
  p.content = std::move(*content);
  return p;
}

Result<std::string> name_in_file(int fd) {
  auto content = read_file(fd);
  if (!content) return pass(content);
  if (patchfile::PatchFile::is_one(*content)) return name_in_patch(*content);
  auto image = elf::Image::parse(*content);
  if (!image) return pass(image);
  auto name = image->note("name");
  if (!name) return fail(ENOEXEC, "not a Molt module");
  return std::string(*name);
}

bool same_content(std::string_view name, int fd) {
  auto content = read_file(fd);
  if (!content) return false;
  std::string hash = content_hash(*content);
  Lock lock(manager().mutex);
  ModulePtr module = find(name);
  return module && module->state == MOLT_MODULE_STATE_LIVE && module->hash == hash;
}

Result<ModulePtr> bring_up(const LoadRequest& request, Prepared& prepared, Module* beside) {
  auto module = std::make_shared<Module>();
  module->name = prepared.name;
  module->version = prepared.version;
  module->license = prepared.license;
  module->description = prepared.description;
  module->srcversion = prepared.srcversion;
  module->hazards = prepared.hazards;
  module->stays_mapped = prepared.stays_mapped;
  module->effects = prepared.effects;
  module->has_symbols = prepared.has_symbols;
  module->taint = prepared.taint;
  module->livepatch = prepared.livepatch;
  module->path = request.path;
  module->file = prepared.file;
  module->hash = prepared.hash;
  module->loader_tid = gettid();
  module->requests = {1, 0, log::current_requester()};

  // 2. The name; from here on every other load of it is a duplicate.
  {
    Lock lock(manager().mutex);
    module->id = manager().next_id++;
    module->refcnt = 1;  // the init reference
    module->take_base();
    if (beside == nullptr) {
      if (Status ok = reserve(lock, module, request); !ok) return pass(ok);
    }
  }
  if (request.dry_run) {
    Status ok = would_fit(*module, prepared, request, beside);
    drop_providers(*module);
    if (beside == nullptr) unreserve(module);
    if (!ok) return pass(ok);
    for (const auto* texts : {&module->hazards, &module->effects}) {
      module->warnings.insert(module->warnings.end(), texts->begin(), texts->end());
    }
    return module;
  }

  // 3. Taints.
  // A patch file is the program's own code, whatever its licence.
  if (!is_free(module->license) && !prepared.is_patch_file) {
    log::line(module->name, "module license '%s' taints process.", module->license.c_str());
    module->taint |= taint_proprietary;
  }
  if (module->livepatch) {
    Lock lock(manager().mutex);
    bool first = !std::exchange(manager().told_of_livepatch, true);
    lock.unlock();
    if (first) log::line(module->name, "tainting process with TAINT_LIVEPATCH");
  }
  for (const std::string& hazard : module->hazards) {
    warn(*module, "cannot be unmapped once loaded: %s", hazard.c_str());
  }
  for (const std::string& effect : module->effects) warn(*module, "%s", effect.c_str());

  bool init_reference = true;
  auto give_up = [&](const Status& why) -> tl::unexpected<Error> {
    {
      Lock lock(manager().mutex);
      module->state = MOLT_MODULE_STATE_UNFORMED;
      if (init_reference) --module->refcnt;
      module->drop_base();
    }
    std::string reason;
    Fate fate = Fate::unmapped;
    if (module->is_mapped()) {
      fate = dispose(module, {Deadline::in_ms(init_threads_ms), request.cancelled}, reason);
    } else {
      drop_providers(*module);
    }
    if (beside == nullptr) unreserve(module);
    interpose::release_unused();
    if (is_gone(fate)) return pass(why);
    return fail({why.error().code, why.error().site}, "%s; its memory stays: `molt list` tells why",
                why.error().detail);
  };

  // 4-6. Map, resolve. The image's constructors run here.
  Status ok = map(*module, prepared, request.force);
  prepared.content.clear();
  if (!ok) return give_up(ok);
  if (ok = bind_imports(*module, request); !ok) return give_up(ok);
  const molt_module& d = *module->descriptor;
  if (ok = check_hooks(*module, false); !ok) return give_up(ok);
  auto owner = hooks::create(module->name, d.callbacks, d.callbacks_end);
  if (!owner) return give_up(pass(owner));
  module->owner = *owner;

  // 7. COMING: exports are visible from now on.
  {
    Lock lock(manager().mutex);
    ok = check_exports(*module, beside);
    if (ok) {
      module->state = MOLT_MODULE_STATE_COMING;
      manager().taint |= module->taint;
      announce_change();
    }
  }
  if (!ok) return give_up(ok);
  // 8. Livepatches of it. A replacement gets them when it has taken the old version's place.
  if (beside == nullptr) {
    if (ok = patch_coming(*module); !ok) return give_up(ok);
  }
  // 9. Notifiers may veto.
  if (ok = notify(*module, MOLT_MODULE_STATE_COMING); !ok) {
    patch_going(*module);
    take_down(*module);
    return give_up(ok);
  }
  // 10. Parameters.
  ok = apply_args(*module, request.args);
  // 11. Objects. A replacement takes over those of the old version later.
  if (ok && beside == nullptr) tell_formed(*module);
  // 12. init
  if (ok) {
    ok = run_init(*module);
    if (ok) return module;
    patch_failed(*module);
    Lock lock(manager().mutex);
    --module->refcnt;
    init_reference = false;
    module->state = MOLT_MODULE_STATE_GOING;
    announce_change();
  } else {
    set_state(*module, MOLT_MODULE_STATE_GOING);
  }
  notify(*module, MOLT_MODULE_STATE_GOING);
  patch_going(*module);
  tell_gone(*module);
  take_down(*module);
  stop_threads(*module, Deadline::in_ms(init_threads_ms), {});
  await_core_calls(*module, Deadline::in_ms(core_calls_ms), {});
  return give_up(ok);
}

void bring_down(const ModulePtr& module) {
  {
    Lock lock(manager().mutex);
    module->state = MOLT_MODULE_STATE_GOING;
    --module->refcnt;
    module->drop_base();
    announce_change();
  }
  Deadline deadline = Deadline::in_ms(init_threads_ms);
  std::vector<hooks::Inside> inside;
  bool empty = drain(*module, deadline, {}, inside) && stop_threads(*module, deadline, {});
  std::string reason;
  go(module, empty && !module->permanent, !empty, {deadline, {}}, reason);
}

namespace {

// Notes who asked, and how often, on the module that all of them got.
void count_requests(Module& module, const Flight& flight) {
  module.requests.joined = flight.joined;
  module.requests.loads = 1 + flight.joined;
}

Result<LoadReport> load_alone(const LoadRequest& request, const FlightPtr& flight) {
  // 1. Early checks: nothing is kept when they fail.
  auto prepared = prepare(request);
  if (!prepared) return pass(prepared);
  {
    Lock lock(manager().mutex);
    for (const FlightPtr& other : manager().flights) {
      // The same content from another file: their result is ours, and that of who joined us.
      if (other != flight && other->hash == prepared->hash && other->name == prepared->name) {
        return join(lock, other, request);
      }
    }
    flight->name = prepared->name;
    flight->hash = prepared->hash;
  }
  auto up = bring_up(request, *prepared, nullptr);
  if (!up) return pass(up);
  const ModulePtr& module = *up;
  LoadReport report{module->name, taint_text(module->taint), false, module->warnings};
  if (request.dry_run) return report;

  // 13. LIVE: the callbacks come into force in one step.
  if (Status ok = hooks::change(nullptr, module->owner); !ok) {
    bring_down(module);
    unreserve(module);
    return pass(ok);
  }
  set_state(*module, MOLT_MODULE_STATE_LIVE);
  notify(*module, MOLT_MODULE_STATE_LIVE);
  Lock lock(manager().mutex);
  --module->refcnt;
  module->loader_tid = 0;
  announce_change();
  return report;
}

// The load under way, or the module, that answers for all who ask for this file. Under the lock.
struct Answer {
  FlightPtr flight;
  ModulePtr module;
};
Answer answer_of_others(const FileIdentity& file, const LoadRequest& asked) {
  for (const FlightPtr& flight : manager().flights) {
    // Before memory is taken or the file is read again.
    if (flight->file == file && flight->as == asked.name) return {flight, nullptr};
  }
  for (const ModulePtr& module : manager().modules) {
    const bool is_other_name = !asked.name.empty() && asked.name != module->name;
    if (module->file == file && module->state == MOLT_MODULE_STATE_LIVE && !is_other_name) {
      return {nullptr, module};
    }
  }
  return {};
}

// Nobody has answered yet.
[[gnu::noinline]] Result<LoadReport> load_first(const LoadRequest& asked, FileIdentity file) {
  Manager& m = manager();
  if (Status ok = memory_available(); !ok) return pass(ok);
  LoadRequest request = asked;
  Fd opened;
  if (request.fd < 0) {
    opened = Fd(open(request.path.c_str(), O_RDONLY | O_CLOEXEC));
    if (!opened) return cannot_open(request.path);
    request.fd = opened.get();
    const auto identity = module::identify(request.fd);
    if (!identity) return pass(identity);
    file = *identity;
  }
  OperationScope scope("load " + request.path);

  auto flight = std::make_shared<Flight>();
  flight->file = file;
  flight->tid = gettid();
  flight->args = request.args;
  flight->as = request.name;
  if (request.dry_run) return load_alone(request, flight);
  {
    Lock lock(m.mutex);
    // Since it was asked for the file was read: Molt may be about to leave.
    if (Status ok = operations_open(lock); !ok) return pass(ok);
    const Answer answer = answer_of_others(file, asked);
    if (answer.flight) return join(lock, answer.flight, asked);
    if (answer.module) return already_loaded(answer.module->name);
    m.flights.push_back(flight);
  }
  Result<LoadReport> result = load_alone(request, flight);
  {
    Lock lock(m.mutex);
    land(flight);
    if (result) {
      flight->report = *result;
      if (ModulePtr module = find(result->name)) count_requests(*module, *flight);
    } else {
      flight->outcome = pass(result);
    }
  }
  if (flight->joined) {
    log::line(flight->name, "load requests merged with this one: %u", flight->joined);
  }
  flight->word.store(1, std::memory_order_release);
  futex_wake_all(flight->word);
  return result;
}

}  // namespace

Result<LoadReport> load(const LoadRequest& asked) {
  // Who only waits for another's load opens nothing. Hundreds of descriptors would make the host's
  // table grow, and each time it does, the kernel makes the thread that opens one more, which is
  // the one that all wait for, wait for a grace period of milliseconds.
  const auto identity = asked.fd >= 0 ? identify(asked.fd) : identify(asked.path);
  if (!identity) return pass(identity);
  {
    Lock lock(manager().mutex);
    if (Status ok = operations_open(lock); !ok) return pass(ok);
    const Answer answer = asked.dry_run ? Answer{} : answer_of_others(*identity, asked);
    if (answer.flight) return join(lock, answer.flight, asked);
    if (answer.module) return already_loaded(answer.module->name);
  }
  return load_first(asked, *identity);
}

}  // namespace molt::module
