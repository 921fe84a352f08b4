#include "interpose/functions.hpp"

#include <dlfcn.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "arch/x86_64/text.hpp"
#include "base/log.hpp"
#include "elf/loaded_symbols.hpp"
#include "entries/seat.hpp"
#include "entries/witness.hpp"
#include "hook/registry.hpp"
#include "interpose/dispatch.hpp"
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
  entries::Seat* seat = nullptr;
  arch::CodeSlot stub;
  void* library = nullptr;  // N3
  molt_hook_info before_info = {};
  molt_hook_info after_info = {};

  bool is_hooked() const { return seat->hook == stub.address; }
};

// Leaked on purpose (N2).
struct Functions {
  std::mutex mutex;
  std::vector<Function*> all;
};
Functions& functions() {
  static auto* f = new Functions;
  return *f;
}

struct Located {
  std::string path;  // "" for the program
  entries::Seat* seat = nullptr;
  bool is_exported = false;
};

// `library`: "" for the program, else a path, soname or file name. Reads symbol tables: milliseconds.
// ENOENT: no such library or function, with the file that is missing where symbols were stripped.
Result<Located> locate(std::string_view hook, bool dry_run) {
  const std::size_t colon = hook.rfind(':');
  const std::string name(hook.substr(colon + 1));
  auto object = elf::find_loaded(hook.substr(0, colon));
  if (!object) return pass(object);
  auto symbols = elf::read_symbols(*object);
  if (!symbols) return pass(symbols);
  auto found = symbols->find(name);
  if (!found) {
    return fail(ENOENT, "%s%s%s", found.error().detail, symbols->complete() ? "" : "; ",
                symbols->complete() ? "" : symbols->shortcomings().c_str());
  }
  if (!found->is_function() || found->is_indirect()) {
    return fail(EINVAL, "'%s' is %s", name.c_str(),
                found->is_indirect()
                    ? "an indirect function: which code it means was chosen when the program began"
                    : "no function");
  }
  Located located;
  located.path = object->is_program ? "" : object->path;
  auto seat = entries::seat_of(*object, *symbols, *found, dry_run);
  if (!seat) return pass(seat);
  located.seat = *seat;
  // Callers in the same library may know which registers it leaves alone; those of an exported
  // function come by way of the linkage table, and know nothing.
  const std::string& path = located.path;
  if (void* handle = path.empty() ? nullptr : dlopen(path.c_str(), RTLD_LAZY | RTLD_NOLOAD)) {
    located.is_exported =
        reinterpret_cast<std::uintptr_t>(dlsym(handle, name.c_str())) == found->address;
    dlclose(handle);
  }
  return located;
}

void set_up() {
  entries::set_up();
  dispatch_setup();
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
  auto shape = shape_of(callback.signature);
  if (!shape) return fail(shape.error().code, "'%s': %s", callback.hook, shape.error().detail);
  auto located = locate(name, dry_run);
  if (!located) return pass(located);
  if (located->seat == nullptr) return nullptr;
  entries::Seat& seat = *located->seat;
  if (seat.hook != 0) {
    for (const Function* other : functions().all) {
      if (other->seat != &seat || !other->is_hooked()) continue;
      return fail(EBUSY, "'%s' is the function that is hooked as '%s' already; use that name",
                  callback.hook, other->name.c_str());
    }
  }
  if (dry_run) return nullptr;

  auto f = std::make_unique<Function>();
  f->name = name;
  f->after_name = f->name + std::string(after_suffix);
  f->signature = callback.signature;
  f->fingerprint = molt_fingerprint(callback.signature);
  f->path = located->path;
  f->seat = &seat;

  arch::TextWriter writer = arch::TextWriter::open();
  entries::Pool pool = entries::pool();
  auto slot = pool.allocate(entries::near(seat), arch::wrap_stub_size);
  if (!slot) return pass(slot);
  f->stub = *slot;
  auto give_up = [&](const Error& why) {
    pool.free(writer, *slot);  // nobody was ever led there
    return tl::unexpected<Error>(why);
  };

  f->record.before = call_before;
  f->record.after = call_after;
  f->record.stack_words = shape->stack_words;
  f->record.gives_float = shape->gives_float;
  const auto kind = !located->is_exported                     ? arch::WrapKind::careful
                    : shape->floats > 0 || shape->gives_float ? arch::WrapKind::floats
                                                              : arch::WrapKind::integers;
  std::byte code[arch::wrap_stub_size] = {};
  arch::write_wrap_stub(slot->address, f->record, kind, code);
  if (Status ok = pool.publish(writer, *slot, code); !ok) return give_up(ok.error());
  if (Status ok = register_hooks(*f); !ok) return give_up(ok.error());
  // The last that can fail: a way stays for ever.
  const bool is_careful = kind == arch::WrapKind::careful;
  if (Status ok = entries::add_way(writer, seat, is_careful ? nullptr : &f->record.original); !ok) {
    return give_up(ok.error());
  }
  if (is_careful) f->record.original = seat.onward.address;
  functions().all.push_back(f.get());
  return f.release();
}

// The one that is known under this name and is still there.
Function* known(const molt_callback& callback) {
  const std::string_view name = base_of(callback.hook);
  for (Function* f : functions().all) {
    if (f->name != name || f->seat->is_gone) continue;
    if (f->is_hooked()) return f;
    // Its library was not held meanwhile: it may be another one now, or elsewhere.
    if (auto located = locate(name, false); located && located->seat == f->seat) return f;
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
  set_up();
  std::vector<entries::Wish> wishes;
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
    if (f == nullptr || f->is_hooked() ||
        std::find(concerned.begin(), concerned.end(), f) != concerned.end()) {
      continue;
    }
    concerned.push_back(f);
    wishes.push_back({f->seat, entries::Rank::hook, f->stub.address});
  }
  if (dry_run || wishes.empty()) return {};
  for (Function* f : concerned) {
    if (!f->path.empty()) f->library = dlopen(f->path.c_str(), RTLD_LAZY | RTLD_NOLOAD);
  }
  arch::TextWriter writer = arch::TextWriter::open();
  entries::ThreadWitness witness(patience_ms);
  Status done = entries::commit(writer, wishes, witness);
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
    std::vector<entries::Wish> wishes;
    std::vector<Function*> concerned;
    for (Function* f : functions().all) {
      if (!f->is_hooked() || hooks::is_attached(f->name) || hooks::is_attached(f->after_name)) {
        continue;
      }
      concerned.push_back(f);
      wishes.push_back({f->seat, entries::Rank::hook, 0});
    }
    if (wishes.empty()) return;
    set_up();
    arch::TextWriter writer = arch::TextWriter::open();
    entries::ThreadWitness witness(patience_ms);
    if (Status done = entries::commit(writer, wishes, witness); !done) {
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
