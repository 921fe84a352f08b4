// objects.cpp - what is patched comes and goes (KERNEL.md P9).
//
// A Molt module: the module layer says so, before its init and after its exit. A plain library: the
// dynamic loader says so, before its constructors and after its destructors (loader_watch.hpp); it
// cannot be refused, and is loaded unpatched where a module would be refused.

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <optional>

#include "base/program.hpp"
#include "livepatch/internal.hpp"
#include "livepatch/loader_watch.hpp"

namespace molt::livepatch {
namespace {

// In the kernel's words, where it has some.
void log_lookup(const Object& object, const Func& func, const ObjectSymbols& in,
                const Error& error) {
  if (in.symbols.find_all(func.name).empty()) {
    say("symbol '%s' not found in symbol table", func.name.c_str());
  } else {
    say("%s (object '%s')", error.detail, display_name(object).c_str());
  }
}

std::vector<PatchPtr> installed() {
  Lock lock(engine().mutex);
  return {engine().patches.begin(), engine().patches.end()};
}

// D5: a function under two names, with two replacements.
Status check_names(const Func& func) {
  for (const auto& object : func.object->patch->objects) {
    for (const auto& other : object->funcs) {
      const bool clashes =
          other->site == func.site && !other->nop && !func.nop && other->address != func.address;
      if (!clashes) continue;
      return fail(EEXIST, "'%s' is '%s' by another name, which has another replacement",
                  func.name.c_str(), other->name.c_str());
    }
  }
  return {};
}

Object* object_named(Patch& patch, std::string_view name) {
  for (const auto& object : patch.objects) {
    if (!object->is_program() && object->name == name) return object.get();
  }
  return nullptr;
}

// Of a module that comes or a library that was loaded: applies one patch to it.
Status apply(Patch& patch, Object& object, const char* what) {
  bind(object);
  if (!object.binding.loaded) return {};
  if (Status ok = resolve(object); !ok) {
    say("failed to initialize patch '%s' for module '%s' (%d)", patch.name.c_str(),
        object.name.c_str(), -ok.error().code);
    unbind(object);
    return ok;
  }
  say("applying patch '%s' to loading module '%s'", patch.name.c_str(), object.name.c_str());
  const bool in_transition = engine().transition.patch.get() == &patch;
  if (int result = call_pre_patch(object); result != 0) {
    say("pre-patch callback failed for object '%s'", object.name.c_str());
    unbind(object);
    return fail(result < 0 && result > -4096 ? -result : EINVAL,
                "patch %s refused %s '%s': its pre_patch callback answered %d", patch.name.c_str(),
                what, object.name.c_str(), result);
  }
  if (Status ok = patch_object(object); !ok) {
    say("failed to patch object '%s' (%d)", object.name.c_str(), -ok.error().code);
    call_post_unpatch(object);
    unbind(object);
    return ok;
  }
  object.post_patch_due = in_transition;
  if (!in_transition) call_post_patch(object);
  return {};
}

void revert(Patch& patch, Object& object) {
  const bool in_transition = engine().transition.patch.get() == &patch;
  if (!in_transition) call_pre_unpatch(object);
  say("reverting patch '%s' on unloading module '%s'", patch.name.c_str(), object.name.c_str());
  if (Status ok = unpatch_object(object); !ok) {
    say("'%s': %s", patch.name.c_str(), ok.error().detail);
  }
  call_post_unpatch(object);
  unbind(object);
}

}  // namespace

void bind(Object& object) {
  Binding binding;
  if (object.known) {
    binding.loaded = true;
    binding.extent = object.known->extent;
  } else if (object.is_program()) {
    if (auto program = elf::find_loaded("")) {
      binding.loaded = true;
      binding.extent = program->extent;
    }
  } else {
    Lock lock(engine().mutex);
    const auto module = engine().alive.find(object.name);
    if (module != engine().alive.end()) {
      binding.module = object.name;
      binding.descriptor = module->second;
      if (auto extent = elf::extent_of(binding.descriptor)) {
        binding.loaded = true;
        binding.extent = *extent;
      }
    } else {
      lock.unlock();
      if (auto library = elf::find_loaded(object.name)) {
        binding.loaded = true;
        binding.extent = library->extent;
        watch_library(*library);
      }
    }
  }
  Lock lock(engine().mutex);
  object.binding = binding;
}

void unbind(Object& object) {
  Lock lock(engine().mutex);
  object.binding = Binding{};
  ++object.life;
  object.patched = false;
  object.post_patch_due = false;
  for (const auto& func : object.funcs) {
    func->site = nullptr;
    func->patched = func->transition = false;
  }
}

Status resolve(Object& object) {
  Result<elf::NamedObject> loaded =
      object.known ? Result<elf::NamedObject>(*object.known)
      : object.is_program()
          ? elf::find_loaded("")
          : elf::find_loaded_at(object.binding.descriptor != nullptr
                                    ? reinterpret_cast<std::uintptr_t>(object.binding.descriptor)
                                    : object.binding.extent.begin);
  if (!loaded) return pass(loaded);
  if (!loaded->is_program) forget_stale_sites(*loaded);
  // Read for the first function that was not patched before: a big program's take milliseconds.
  std::optional<ObjectSymbols> in;
  for (const auto& func : object.funcs) {
    Site* const known = func->placed ? known_site(func->placed->address)
                                     : known_site(loaded->extent, func->name, func->position);
    if (known != nullptr) {
      Lock lock(engine().mutex);
      func->site = known;
      continue;
    }
    if (!in) {
      auto symbols = symbols_of(*loaded);
      if (!symbols) return pass(symbols);
      in = std::move(*symbols);
    }
    auto site = func->placed ? site_at(*in, func->name, func->placed->address, func->placed->size,
                                       func->placed->parts, true)
                             : site_of(*in, func->name, func->position);
    if (!site) {
      log_lookup(object, *func, *in, site.error());
      // What cannot be found is a mistake of the patch, whatever the reason.
      const int code = site.error().code == ENOENT ? EINVAL : site.error().code;
      return fail({code, site.error().site}, "object '%s': %s", display_name(object).c_str(),
                  site.error().detail);
    }
    Lock lock(engine().mutex);
    func->site = *site;
  }
  for (const auto& func : object.funcs) {
    if (Status ok = check_names(*func); !ok) {
      return fail(EEXIST, "object '%s': %s", display_name(object).c_str(), ok.error().detail);
    }
  }
  return {};
}

Status module_coming(molt_module* module, bool is_livepatch) {
  Token token(__builtin_frame_address(0));
  if (!token) return token.status();
  Engine& e = engine();
  const std::string name = module->name;
  if (name == program_name()) {
    return fail(EINVAL, "a module must not be called like the program, %s", name.c_str());
  }
  {
    Lock lock(e.mutex);
    e.alive[name] = module;
    e.marked[name] = is_livepatch;
  }
  std::vector<std::pair<PatchPtr, Object*>> done;
  for (const PatchPtr& patch : installed()) {
    Object* object = object_named(*patch, name);
    if (object == nullptr || object->binding.loaded) continue;
    Status ok = apply(*patch, *object, "module");
    if (ok) {
      done.push_back({patch, object});
      continue;
    }
    say("patch '%s' failed for module '%s', refusing to load module '%s'", patch->name.c_str(),
        name.c_str(), name.c_str());
    for (const auto& [applied, to] : done) revert(*applied, *to);
    // Nobody has run anything of it yet.
    threads::RangeSet nobody;
    if (auto extent = elf::extent_of(module)) forget_sites(*extent, nobody);
    if (!collect()) ensure_worker();
    Lock lock(e.mutex);
    e.alive.erase(name);
    e.marked.erase(name);
    return ok;
  }
  return {};
}

const void* module_record(const molt_module* module) {
  Lock lock(engine().mutex);
  for (const auto& [name, descriptor] : engine().alive) {
    if (descriptor == module) return &descriptor;
  }
  return nullptr;
}

void module_going(molt_module* module, threads::RangeSet& ways_in) {
  Engine& e = engine();
  const std::string name = module->name;
  {
    Lock lock(e.mutex);
    const auto known = e.alive.find(name);
    if (known == e.alive.end() || known->second != module) return;
  }
  Token token(__builtin_frame_address(0));
  if (!token) return;
  {
    Lock lock(e.mutex);
    e.alive.erase(name);
    e.marked.erase(name);
  }
  for (const PatchPtr& patch : installed()) {
    Object* object = object_named(*patch, name);
    if (object == nullptr || object->binding.descriptor != module) continue;
    revert(*patch, *object);
  }
  if (auto extent = elf::extent_of(module)) forget_sites(*extent, ways_in);
  if (!collect()) ensure_worker();
}

// --- plain libraries ------------------------------------------------------------------------------------

namespace {

// Whether a library that comes now is still to get this patch.
bool takes_libraries(const Patch& patch) {
  const Transition& t = engine().transition;
  if (t.patch.get() != &patch) return patch.enabled;
  return t.patching() || !t.completing;
}

bool is_bound_to(const Object& object, const elf::Range& extent) {
  return object.binding.loaded && object.binding.descriptor == nullptr && !object.is_program() &&
         object.binding.extent.begin == extent.begin;
}

// Versions of a patch that came to a library before an older one's: nobody has run anything of it yet.
void put_on_top(Patch& patch, Object& object) {
  Status ok = unpatch_object(object);
  if (ok) ok = patch_object(object);
  if (ok) return;
  say("patch '%s' failed for library '%s': %s", patch.name.c_str(), object.name.c_str(),
      ok.error().detail);
  if (object.patched) return;
  call_post_unpatch(object);
  unbind(object);
}

}  // namespace

void library_coming(const elf::Range& extent) {
  bool has_come = false;
  for (const PatchPtr& patch : installed()) {
    for (const auto& object : patch->objects) {
      // It was enabled since the library is in the loader's list, and before its turn here.
      if (has_come && object->patched && is_bound_to(*object, extent)) put_on_top(*patch, *object);
      if (object->is_program() || object->binding.loaded || !takes_libraries(*patch)) continue;
      auto named = elf::find_loaded(object->name);
      if (!named || named->extent.begin != extent.begin) continue;
      has_come = true;
      if (Status ok = apply(*patch, *object, "library"); !ok) {
        say("patch '%s' failed for library '%s', which is loaded without it: %s",
            patch->name.c_str(), object->name.c_str(), ok.error().detail);
      }
    }
  }
}

void library_going(const elf::Range& extent) {
  for (const PatchPtr& patch : installed()) {
    for (const auto& object : patch->objects) {
      if (is_bound_to(*object, extent)) revert(*patch, *object);
    }
  }
  threads::RangeSet ignored;
  forget_sites(extent, ignored);
  if (!collect()) ensure_worker();
}

void forget_vanished() {
  for (const PatchPtr& patch : installed()) {
    for (const auto& object : patch->objects) {
      const elf::Range extent = object->binding.extent;
      if (!is_bound_to(*object, extent)) continue;
      auto there = elf::find_loaded_at(extent.begin);
      if (there && there->extent.begin == extent.begin) continue;
      say("library '%s' was unmapped without its destructors; patch '%s' forgets it",
          object->name.c_str(), patch->name.c_str());
      drop_object(*object);
      threads::RangeSet ignored;
      forget_sites(extent, ignored);
      call_post_unpatch(*object);
      unbind(*object);
    }
  }
}

}  // namespace molt::livepatch
