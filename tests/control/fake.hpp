// fake.hpp - modules, hooks and patches that are only told of, in place of src/module, src/hook and
// src/livepatch: what src/control asks of those layers is answered from here, as a test has arranged it.
//
// A module's file is a text: `name=N`, `version=V`, blank-separated; `fail=E` makes its load fail with
// that errno, as if from `site=S`.
#pragma once

#include <functional>
#include <string>

#include "livepatch/engine.hpp"
#include "module/manager.hpp"

namespace fake {

// Everything as at the beginning: nothing there, nothing locked.
void reset();

// As a load and an unload would, the observer being told.
void form(const std::string& name, molt_module_state state = MOLT_MODULE_STATE_LIVE);
void vanish(const std::string& name);
// Changes one module.
void edit(const std::string& name, const std::function<void(molt::module::ModuleDetail&)>& change);

// Enabled, or on the way there, held up by one thread.
void add_patch(const std::string& name, bool in_transition);
void add_hook(const std::string& name);
void remove_hook(const std::string& name);
void add_resident(const std::string& name, unsigned id, bool pinned);
void remove_residents();
void poison(const std::string& why);

// Runs on the operation's thread, without the fake's lock, before it does anything.
void on_load(std::function<void(const molt::module::LoadRequest&)> what);
void on_unload(std::function<void(const molt::module::UnloadRequest&)> what);
void on_get_param(std::function<void()> what);

// What was set last, "parameter=value".
std::string last_set();

}  // namespace fake
