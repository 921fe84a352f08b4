// enable.cpp - from a module's lists to a patch in transition, in the order of KERNEL.md P2 and P3.
//
//   lists well-formed -> module marked -> states fit -> reference -> nops -> duplicates -> functions
//   found -> no other transition -> visible -> pre_patch, functions in force, object by object -> start
//
// Everything up to "visible" leaves no trace when it fails (D5).

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <mutex>

#include "base/log.hpp"
#include "base/memory.hpp"
#include "entries/seat.hpp"
#include "linker/linker.hpp"
#include "livepatch/internal.hpp"
#include "livepatch/loader_watch.hpp"

namespace molt::livepatch {
namespace {

Status copy_funcs(Object& object, const molt_patch_func* given) {
  for (; given->old_name != nullptr; ++given) {
    if (given->old_name[0] == '\0' || given->new_func == nullptr) {
      return fail(EINVAL, "object '%s': a function without a name, or without a replacement",
                  display_name(object).c_str());
    }
    if (const std::uint32_t unknown = given->flags & ~std::uint32_t{MOLT_PATCH_FUNC_IMMEDIATE};
        unknown != 0 || given->reserved != 0) {
      return fail(EINVAL, "object '%s': function '%s' has unknown flags, %#x",
                  display_name(object).c_str(), given->old_name, unknown | given->reserved);
    }
    auto func = std::make_unique<Func>();
    func->name = given->old_name;
    func->position = given->position;
    func->address = reinterpret_cast<std::uintptr_t>(given->new_func);
    func->immediate = (given->flags & MOLT_PATCH_FUNC_IMMEDIATE) != 0;
    func->object = &object;
    object.funcs.push_back(std::move(func));
  }
  return {};
}

Result<PatchPtr> copy(molt_module* owner, const molt_patch* given) {
  if (given == nullptr || owner == nullptr || given->objects == nullptr) {
    return fail(EINVAL, "a patch needs a module and a list of objects");
  }
  if (given->size != sizeof(molt_patch)) {
    return fail(EINVAL, "%s: molt_patch of another version; rebuild the module", owner->name);
  }
  constexpr std::uint32_t known = MOLT_PATCH_REPLACE | MOLT_PATCH_IMMEDIATE;
  if (given->flags & ~known) {
    return fail(EINVAL, "%s: unknown patch flag %#x", owner->name, given->flags & ~known);
  }
  auto patch = std::make_shared<Patch>();
  patch->name = owner->name;
  patch->module = owner;
  patch->replace = (given->flags & MOLT_PATCH_REPLACE) != 0;
  patch->immediate = (given->flags & MOLT_PATCH_IMMEDIATE) != 0;
  for (const molt_patch_object* o = given->objects; o->funcs != nullptr; ++o) {
    auto object = std::make_unique<Object>();
    object->name = o->name != nullptr ? o->name : "";
    object->callbacks = o->callbacks;
    object->patch = patch.get();
    if (Status ok = copy_funcs(*object, o->funcs); !ok) return pass(ok);
    patch->objects.push_back(std::move(object));
  }
  for (molt_patch_state* s = given->states; s != nullptr && s->id != 0; ++s) {
    patch->states.push_back(s);
  }
  return patch;
}

std::uint32_t position_in(const elf::Symbols& symbols, const linker::Function& function) {
  if (!symbols.complete()) return 0;
  for (const elf::FoundSymbol& symbol : symbols.find_all(function.name)) {
    if (symbol.address == function.old_address) return symbol.position;
  }
  return 0;
}

// Of a patch file.
Result<PatchPtr> copy(molt_module* owner, const linker::Linked& linked) {
  auto patch = std::make_shared<Patch>();
  patch->name = owner->name;
  patch->module = owner;
  patch->replace = linked.replaces();
  std::vector<arch::CodeRange> code;
  for (const linker::Target& target : linked.targets()) {
    code.insert(code.end(), target.functions.begin(), target.functions.end());
  }
  for (std::size_t t = 0; t < linked.targets().size(); ++t) {
    const elf::NamedObject& known = linked.targets()[t].object;
    auto object = std::make_unique<Object>();
    object->name = known.is_program ? "" : std::string(known.name());
    object->known = known;
    object->patch = patch.get();
    auto symbols = elf::read_symbols(known);
    if (!symbols) return pass(symbols);
    for (const linker::Function& f : linked.functions()) {
      if (f.target != t) continue;
      auto func = std::make_unique<Func>();
      func->name = f.name;
      func->position = position_in(*symbols, f);
      func->address = f.new_address;
      func->code = code;
      func->placed = Placed{f.old_address, f.old_size, f.old_parts};
      func->object = object.get();
      object->funcs.push_back(std::move(func));
    }
    for (const molt_patch_callback& one : linked.callbacks()) {
      if (object->name == (one.object != nullptr ? one.object : ""))
        object->callbacks = one.callbacks;
    }
    patch->objects.push_back(std::move(object));
  }
  for (molt_patch_state& state : linked.states()) patch->states.push_back(&state);
  return patch;
}

// P8.2.
Status check_states(const Patch& patch) {
  Lock lock(engine().mutex);
  for (const PatchPtr& installed : engine().patches) {
    for (const molt_patch_state* old : installed->states) {
      const auto same = std::find_if(patch.states.begin(), patch.states.end(),
                                     [&](const auto* s) { return s->id == old->id; });
      const bool fits =
          same != patch.states.end() ? (*same)->version >= old->version : !patch.replace;
      if (fits) continue;
      return fail(EINVAL, "%s: state %lu is installed by %s in version %u%s", patch.name.c_str(),
                  old->id, installed->name.c_str(), old->version,
                  same != patch.states.end() ? ", a higher one" : ", and this patch replaces it");
    }
  }
  return {};
}

// D5: what would clash when it is shown.
Status check_duplicates(const Patch& patch) {
  for (std::size_t i = 0; i < patch.objects.size(); ++i) {
    const Object& object = *patch.objects[i];
    for (std::size_t j = 0; j < i; ++j) {
      if (patch.objects[j]->name != object.name) continue;
      return fail(EEXIST, "%s: object '%s' is listed twice", patch.name.c_str(),
                  display_name(object).c_str());
    }
    for (std::size_t k = 0; k < object.funcs.size(); ++k) {
      for (std::size_t j = 0; j < k; ++j) {
        if (!object.funcs[j]->same_function(*object.funcs[k])) continue;
        return fail(EEXIST, "%s: function '%s,%lu' of object '%s' is listed twice",
                    patch.name.c_str(), object.funcs[k]->name.c_str(),
                    object.funcs[k]->shown_position(), display_name(object).c_str());
      }
    }
  }
  return {};
}

// P6.1.
void add_nops(Patch& patch) {
  Lock lock(engine().mutex);
  for (const PatchPtr& installed : engine().patches) {
    for (const auto& old : installed->objects) {
      auto mine = std::find_if(patch.objects.begin(), patch.objects.end(),
                               [&](const auto& o) { return o->name == old->name; });
      if (mine == patch.objects.end()) {
        auto object = std::make_unique<Object>();
        object->name = old->name;
        object->known = old->known;
        object->patch = &patch;
        object->dynamic = true;
        patch.objects.push_back(std::move(object));
        mine = std::prev(patch.objects.end());
      }
      for (const auto& func : old->funcs) {
        const bool is_known = std::any_of((*mine)->funcs.begin(), (*mine)->funcs.end(),
                                          [&](const auto& f) { return f->same_function(*func); });
        if (is_known) continue;
        auto nop = std::make_unique<Func>();
        nop->name = func->name;
        nop->position = func->position;
        nop->placed = func->placed;
        nop->nop = true;
        nop->object = mine->get();
        (*mine)->funcs.push_back(std::move(nop));
      }
    }
  }
}

// Where the new functions' code lies.
Status measure(Patch& patch) {
  std::vector<ObjectSymbols> known;
  for (const auto& object : patch.objects) {
    for (const auto& func : object->funcs) {
      if (func->nop || !func->code.empty()) continue;
      auto in = std::find_if(known.begin(), known.end(), [&](const ObjectSymbols& s) {
        return s.object.extent.contains(func->address);
      });
      if (in == known.end()) {
        auto at = elf::find_loaded_at(func->address);
        if (!at) return pass(at);
        auto symbols = symbols_of(*at);
        if (!symbols) return pass(symbols);
        known.push_back(std::move(*symbols));
        in = std::prev(known.end());
      }
      func->code = code_at(*in, func->address);
      if (func->code.empty()) {
        return fail(EINVAL, "%s: the replacement of '%s' is no code", patch.name.c_str(),
                    func->name.c_str());
      }
    }
  }
  return {};
}

// Before the token (L5): it looks symbols up.
Status set_up_once() {
  static std::mutex* mutex = new std::mutex;
  static bool done = false;
  std::lock_guard lock(*mutex);
  if (done) return {};
  if (Status ok = gate::setup(); !ok) return ok;
  // To its end: the census thread asks the dynamic loader when it begins, and no operation may wait for that.
  if (Status ok = threads::start_census(); !ok) return ok;
  done = true;
  return {};
}

// Those for which pre_patch succeeded are told by cancel_transition().
Status patch_objects(Patch& patch) {
  for (const auto& object : patch.objects) {
    // A library may come or go while another object's callback runs.
    if (!object->binding.loaded || object->patched) continue;
    const std::uint64_t since = log::next();
    if (int result = call_pre_patch(*object); result != 0) {
      // What it logged is why.
      std::string why;
      for (const log::Line& line : log::read(since, log::capacity).lines) {
        const std::size_t at = line.text.find(patch.name + ": ");
        if (line.module == patch.name && at != std::string::npos)
          why = line.text.substr(at + patch.name.size());
      }
      say("pre-patch callback failed for object '%s'", display_name(*object).c_str());
      constexpr int largest_errno = 4095;
      const int code = result < 0 && result >= -largest_errno ? -result : EINVAL;  // D3
      return fail(code, "%s: its pre_patch callback refused object '%s' with %d%s",
                  patch.name.c_str(), display_name(*object).c_str(), result, why.c_str());
    }
    if (!object->binding.loaded || object->patched) continue;
    if (Status ok = patch_object(*object); !ok) {
      say("failed to patch object '%s'", display_name(*object).c_str());
      return ok;
    }
  }
  return {};
}

}  // namespace

namespace {

Status enable(molt_module* owner, PatchPtr patch, const void* own_frame) {
  if (Status ok = set_up_once(); !ok) return ok;
  watch_begins(*patch);
  Token token(own_frame);
  if (!token) return token.status();
  Engine& e = engine();

  {
    Lock lock(e.mutex);
    const auto marked = e.marked.find(patch->name);
    if (marked == e.marked.end() || molt_module_get_state(owner) != MOLT_MODULE_STATE_COMING) {
      return fail(ENODEV, "%s: a patch can be enabled from its module's init only", owner->name);
    }
    if (!marked->second) {
      lock.unlock();
      say("module %s is not marked as a livepatch module", owner->name);
      return fail(EINVAL,
                  "module %s is not marked as a livepatch module; add "
                  "MOLT_LIVEPATCH_MODULE to it",
                  owner->name);
    }
    for (const PatchPtr& other : e.patches) {
      if (other->name == patch->name) {
        return fail(EEXIST, "%s has enabled a patch already", owner->name);
      }
    }
  }
  if (Status ok = check_states(*patch); !ok) {
    say("Livepatch patch (%s) is not compatible with the already installed livepatches.",
        patch->name.c_str());
    return ok;
  }
  if (!molt_module_try_get(owner)) return fail(ENODEV, "module %s is going", owner->name);
  patch->holds_module = true;
  if (patch->replace) add_nops(*patch);
  if (Status ok = check_duplicates(*patch); !ok) return ok;
  if (Status ok = measure(*patch); !ok) return ok;
  for (const auto& object : patch->objects) {
    bind(*object);
    if (!object->binding.loaded) continue;
    if (Status ok = resolve(*object); !ok) return ok;
  }
  if (e.transition.active()) {
    return fail(EBUSY, "%s: patch %s is in transition: %s", patch->name.c_str(),
                e.transition.patch->name.c_str(), holders_text(e.transition).c_str());
  }

  const Observer* observer;
  {
    Lock lock(e.mutex);
    e.patches.push_back(patch);
    patch->on_list = true;
    observer = e.observer;
  }
  if (observer != nullptr) observer->changed(patch->name);

  say("enabling patch '%s'", patch->name.c_str());
  say("'%s': initializing patching transition", patch->name.c_str());
  init_transition(patch, gate::Side::patched);
  if (Status ok = patch_objects(*patch); !ok) {
    say("failed to enable patch '%s'", patch->name.c_str());
    cancel_transition();
    return ok;
  }
  start_transition();
  if (e.transition.active()) ensure_worker();
  return {};
}

}  // namespace

Status enable(molt_module* owner, const molt_patch* given) {
  if (Status ok = memory_available(); !ok) return ok;
  auto made = copy(owner, given);
  if (!made) return pass(made);
  return enable(owner, std::move(*made), __builtin_frame_address(0));
}

Status enable(molt_module* owner, const linker::Linked& linked) {
  if (Status ok = memory_available(); !ok) return ok;
  auto made = copy(owner, linked);
  if (!made) return pass(made);
  return enable(owner, std::move(*made), __builtin_frame_address(0));
}

void original_bytes(std::uintptr_t address, std::span<std::byte> bytes) {
  const Token token(__builtin_frame_address(0));
  std::memcpy(bytes.data(), reinterpret_cast<const void*>(address), bytes.size());
  if (token) entries::undo_in_copy(address, bytes);
}

}  // namespace molt::livepatch
