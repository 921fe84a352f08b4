#include "interpose/functions.hpp"

#include <dlfcn.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "arch/x86_64/gate.hpp"
#include "arch/x86_64/pool.hpp"
#include "arch/x86_64/redirect.hpp"
#include "arch/x86_64/text.hpp"
#include "base/log.hpp"
#include "hook/registry.hpp"
#include "interpose/dispatch.hpp"
#include "interpose/entries.hpp"
#include "interpose/signature.hpp"

namespace molt::interpose {
namespace {

constexpr int patience_ms = 2000;
constexpr std::string_view after_suffix = ":after";

// The name of the hook before the function; "libc.so.6:open64" of both.
std::string_view base_of(std::string_view hook) {
  if (hook.size() > after_suffix.size() && hook.ends_with(after_suffix)) {
    hook.remove_suffix(after_suffix.size());
  }
  return hook;
}

struct Function {
  arch::WrapRecord record;
  std::string name;        // of the hook before it
  std::string after_name;  // of the other
  std::string signature;
  std::uint64_t fingerprint = 0;
  std::string path;  // of its library; "" for the program
  std::uintptr_t address = 0;
  arch::Redirect redirect;
  arch::CodeSlot stub;
  void* library = nullptr;  // N3
  molt_hook_info before_info = {};
  molt_hook_info after_info = {};

  bool is_redirected() const { return redirect.form != arch::RedirectForm::absent; }
};

// Leaked on purpose (N2).
struct Functions {
  std::mutex mutex;
  std::vector<Function*> all;
  arch::CodePool pool;
  int set_up_in = 0;  // the process in which cores can be serialised
};
Functions& functions() {
  static auto* f = new Functions;
  return *f;
}

void set_up_locked() {
  if (functions().set_up_in == getpid()) return;
  arch::text_setup();
  arch::gate_setup();
  dispatch_setup();
  functions().set_up_in = getpid();
}

constexpr int nothing = 0;

molt_hook_info info_of(const Function& f, const std::string& name, bool is_before) {
  molt_hook_info info = {};
  info.size = sizeof info;
  info.combine = is_before ? MOLT_COMBINE_FIRST : MOLT_COMBINE_ALL;
  info.on_exception = MOLT_FAIL_OPEN;
  info.result_size = is_before ? sizeof nothing : 0;
  info.name = name.c_str();
  info.signature = f.signature.c_str();
  info.fingerprint = f.fingerprint;
  info.default_result = is_before ? &nothing : nullptr;
  info.exception_result = info.default_result;
  info.description = is_before ? "a call of this function" : "a call of this function has returned";
  return info;
}

Status register_hooks(Function& f) {
  f.before_info = info_of(f, f.name, true);
  f.after_info = info_of(f, f.after_name, false);
  f.record.before_hook.info = &f.before_info;
  f.record.after_hook.info = &f.after_info;
  for (molt_hook* hook : {&f.record.before_hook, &f.record.after_hook}) {
    if (const int error = molt_hook_register(hook); error != 0) {
      return fail(EINVAL,
                  "'%s' was hooked with another signature before; until the process is started "
                  "anew it keeps that one",
                  f.name.c_str());
    }
  }
  return {};
}

// Everything but the jump. Nothing of the function is changed.
Result<Function*> make(const molt_callback& callback, bool dry_run) {
  const std::string_view name = base_of(callback.hook);
  const std::size_t colon = name.rfind(':');
  auto shape = shape_of(callback.signature);
  if (!shape) return fail(shape.error().code, "'%s': %s", callback.hook, shape.error().detail);
  auto is_free = [&](std::uintptr_t address) -> Status {
    for (const Function* other : functions().all) {
      if (other->address != address || !other->is_redirected()) continue;
      return fail(EBUSY, "'%s' is the function that is hooked as '%s' already; use that name",
                  callback.hook, other->name.c_str());
    }
    return {};
  };
  auto located = locate(name.substr(0, colon), name.substr(colon + 1), is_free);
  if (!located) return pass(located);
  if (dry_run) return nullptr;

  auto f = std::make_unique<Function>();
  f->name = name;
  f->after_name = f->name + std::string(after_suffix);
  f->signature = callback.signature;
  f->fingerprint = molt_fingerprint(callback.signature);
  f->path = located->object.is_program ? "" : located->object.path;
  f->address = located->address;

  arch::TextWriter writer = arch::TextWriter::open();
  arch::CodePool& pool = functions().pool;
  if (Status ok = arch::prepare(pool, writer, located->entry, f->redirect); !ok) {
    return fail({ok.error().code, ok.error().site}, "function '%s' cannot be redirected: %s",
                f->name.c_str(), ok.error().detail);
  }
  auto give_up = [&](const Error& why) {
    arch::release(pool, writer, f->redirect);  // nobody was ever led there
    return tl::unexpected<Error>(why);
  };
  auto slot = pool.allocate({located->entry.site, located->entry.site + 16}, arch::wrap_stub_size);
  if (!slot) return give_up(slot.error());
  f->stub = *slot;

  f->record.before = call_before;
  f->record.after = call_after;
  f->record.original = f->redirect.original;
  f->record.stack_words = shape->stack_words;
  f->record.gives_float = shape->gives_float;
  // Callers in the same library may know which registers it leaves alone; those of an exported
  // function come by way of the linkage table, and know nothing.
  bool is_exported = false;
  if (void* handle = f->path.empty() ? nullptr : dlopen(f->path.c_str(), RTLD_LAZY | RTLD_NOLOAD)) {
    const std::string symbol(name.substr(colon + 1));
    is_exported = reinterpret_cast<std::uintptr_t>(dlsym(handle, symbol.c_str())) == f->address;
    dlclose(handle);
  }
  const auto kind = !is_exported                              ? arch::WrapKind::careful
                    : shape->floats > 0 || shape->gives_float ? arch::WrapKind::floats
                                                              : arch::WrapKind::integers;
  std::byte code[arch::wrap_stub_size] = {};
  arch::write_wrap_stub(slot->address, f->record, kind, code);
  if (Status ok = pool.publish(writer, *slot, code); !ok) {
    pool.free(writer, *slot);
    return give_up(ok.error());
  }
  if (Status ok = register_hooks(*f); !ok) {
    pool.free(writer, *slot);
    return give_up(ok.error());
  }
  functions().all.push_back(f.get());
  return f.release();
}

// The one that is known under this name and is still there.
Function* known(const molt_callback& callback) {
  const std::string_view name = base_of(callback.hook);
  for (Function* f : functions().all) {
    if (f->name != name) continue;
    if (f->is_redirected()) return f;
    // Its library was not held meanwhile: it may be another one now, or elsewhere.
    const std::size_t colon = name.rfind(':');
    auto located = locate(name.substr(0, colon), name.substr(colon + 1));
    if (located && located->address == f->address &&
        located->entry.original == f->redirect.entry.original &&
        (located->object.is_program ? "" : located->object.path) == f->path) {
      return f;
    }
  }
  return nullptr;
}

}  // namespace

bool names_function(std::string_view hook) { return hook.find(':') != std::string_view::npos; }

Status provide(const molt_callback* begin, const molt_callback* end, bool dry_run) {
  if (std::none_of(begin, end, [](const molt_callback& c) { return names_function(c.hook); })) {
    return {};
  }
  std::lock_guard lock(functions().mutex);
  set_up_locked();
  std::vector<arch::Edit> edits;
  std::vector<Function*> concerned;
  for (const molt_callback* c = begin; c != end; ++c) {
    if (!names_function(c->hook)) continue;
    Function* f = known(*c);
    if (f != nullptr && f->fingerprint != molt_fingerprint(c->signature)) {
      return fail(EINVAL, "hook %s: the module expects %s, others have hooked it as %s", c->hook,
                  c->signature, f->signature.c_str());
    }
    if (f == nullptr) {
      auto made = make(*c, dry_run);
      if (!made && (c->flags & MOLT_OPTIONAL) != 0 && made.error().code == ENOENT) continue;
      if (!made) return pass(made);
      f = *made;
    }
    if (f == nullptr || f->is_redirected() ||
        std::find(concerned.begin(), concerned.end(), f) != concerned.end()) {
      continue;
    }
    concerned.push_back(f);
    edits.push_back({&f->redirect, arch::Change::install, f->stub.address});
  }
  if (dry_run || edits.empty()) return {};
  for (Function* f : concerned) {
    if (!f->path.empty()) f->library = dlopen(f->path.c_str(), RTLD_LAZY | RTLD_NOLOAD);
  }
  arch::TextWriter writer = arch::TextWriter::open();
  ThreadWitness witness(patience_ms);
  Status done = arch::commit(writer, edits, witness);
  if (done) {
    for (const Function* f : concerned) log::line("", "hooked %s", f->name.c_str());
    return done;
  }
  for (Function* f : concerned) {
    if (f->library != nullptr) dlclose(std::exchange(f->library, nullptr));
  }
  return done;
}

void release_unused() {
  std::vector<void*> libraries;
  {
    std::lock_guard lock(functions().mutex);
    std::vector<arch::Edit> edits;
    std::vector<Function*> concerned;
    for (Function* f : functions().all) {
      if (!f->is_redirected() || hooks::is_attached(f->name) || hooks::is_attached(f->after_name)) {
        continue;
      }
      concerned.push_back(f);
      edits.push_back({&f->redirect, arch::Change::remove, 0});
    }
    if (edits.empty()) return;
    set_up_locked();
    arch::TextWriter writer = arch::TextWriter::open();
    ThreadWitness witness(patience_ms);
    if (Status done = arch::commit(writer, edits, witness); !done) {
      log::line("", "functions stay hooked, by nobody: %s", done.error().detail);
      return;
    }
    for (Function* f : concerned) {
      log::line("", "unhooked %s", f->name.c_str());
      if (f->library != nullptr) libraries.push_back(std::exchange(f->library, nullptr));
    }
  }
  // Without the lock: a library that only we held runs its destructors now.
  for (void* library : libraries) dlclose(library);
}

void before_fork() { functions().mutex.lock(); }

void after_fork(bool) { functions().mutex.unlock(); }

}  // namespace molt::interpose
