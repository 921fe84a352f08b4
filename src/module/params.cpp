// params.cpp - parameters: parsed from a load's arguments, read and set while the module is live.

#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "module/internal.hpp"

namespace molt::module {
namespace {

const molt_param* find_param(const Module& module, std::string_view name) {
  const molt_module& d = *module.descriptor;
  for (const molt_param* p = d.params; p != d.params_end; ++p) {
    if (name == p->name) return p;
  }
  return nullptr;
}

// Of a parameter's value; the rest is cut off.
constexpr std::size_t largest_text = 1 << 20;

bool is_space(char c) { return c == ' ' || c == '\t' || c == '\n' || c == '\r'; }

// The next word; double quotes hold white space together, as the kernel has it.
std::string next_word(std::string_view& rest) {
  while (!rest.empty() && is_space(rest.front())) rest.remove_prefix(1);
  std::string word;
  bool quoted = false;
  while (!rest.empty() && (quoted || !is_space(rest.front()))) {
    if (rest.front() == '"') {
      quoted = !quoted;
    } else {
      word += rest.front();
    }
    rest.remove_prefix(1);
  }
  return word;
}

int checked_set(const molt_param& param, const std::string& text) {
  if (param.set == nullptr) return -EPERM;
  int result = param.set(param.value, text.c_str());
  return result > 0 ? -EINVAL : result;
}

}  // namespace

void name_unknown_params(Module& module, const std::string& args) {
  std::string_view rest = args;
  for (std::string word = next_word(rest); !word.empty() && word != "--"; word = next_word(rest)) {
    std::string name = word.substr(0, word.find('='));
    if (find_param(module, name) == nullptr) {
      module.warnings.push_back("unknown parameter '" + name + "' ignored");
    }
  }
}

Status apply_args(Module& module, const std::string& args) {
  std::string_view rest = args;
  Lock lock(manager().mutex);
  ParametersScope parameters(lock, module);
  lock.unlock();
  for (;;) {
    std::string word = next_word(rest);
    if (word.empty()) return {};
    if (word == "--") {
      while (!rest.empty() && is_space(rest.front())) rest.remove_prefix(1);
      if (!rest.empty()) {
        warn(module, "parameters '%.*s' after `--' ignored", static_cast<int>(rest.size()),
             rest.data());
      }
      return {};
    }
    auto equals = word.find('=');
    std::string name = word.substr(0, equals);
    std::string value = equals == std::string::npos ? "" : word.substr(equals + 1);
    const molt_param* param = find_param(module, name);
    if (param == nullptr) {
      warn(module, "unknown parameter '%s' ignored", name.c_str());
      continue;
    }
    if (int result = checked_set(*param, value); result < 0) {
      log::line(module.name, "`%s' invalid for parameter `%s'", value.c_str(), name.c_str());
      return fail(-result, "%s: `%s' is invalid for parameter `%s' (%s)", module.name.c_str(),
                  value.c_str(), name.c_str(), param->type);
    }
  }
}

namespace {

// Finds a parameter and enters the module for it.
template <class F>
auto with_param(std::string_view module_name, std::string_view name, F&& f)
    -> decltype(f(std::declval<const molt_param&>())) {
  Lock lock(manager().mutex);
  ModulePtr module = find(module_name);
  const molt_param* param = nullptr;
  if (module && module->state == MOLT_MODULE_STATE_GOING) {
    return fail(ENODEV, "%s is going", module->name.c_str());
  }
  if (module) param = find_param(*module, name);
  if (param == nullptr) {
    return fail(ENOENT, "no parameter %.*s of module %.*s", static_cast<int>(name.size()),
                name.data(), static_cast<int>(module_name.size()), module_name.data());
  }
  InsideScope inside(lock, *module);
  ParametersScope parameters(lock, *module);
  lock.unlock();
  if (!parameters) {
    return fail(EDEADLK, "%s: a parameter function asks for a parameter of its own module",
                module->name.c_str());
  }
  CallScope call(module.get());
  return f(*param);
}

}  // namespace

Result<std::string> get_param(std::string_view module, std::string_view name) {
  return with_param(module, name, [&](const molt_param& param) -> Result<std::string> {
    std::string text(256, '\0');
    for (;;) {
      int length = param.get ? param.get(param.value, text.data(), text.size()) : -EPERM;
      if (length < 0) return fail(-length, "%s cannot be read", param.name);
      auto bytes = static_cast<std::size_t>(length);
      // As snprintf has it: a length that does not fit is the length there would be.
      bool fits = bytes < text.size() || text.size() > largest_text;
      text.resize(fits ? std::min(bytes, text.size() - 1) : bytes + 1);
      if (fits) return text;
    }
  });
}

Status set_param(std::string_view module, std::string_view name, const char* value) {
  return with_param(module, name, [&](const molt_param& param) -> Status {
    if (!(param.flags & MOLT_WRITABLE)) {
      return fail(EACCES, "%s can only be given at load", param.name);
    }
    if (int result = checked_set(param, value); result < 0) {
      return fail(-result, "`%s' is invalid for parameter `%s' (%s)", value, param.name,
                  param.type);
    }
    return {};
  });
}

}  // namespace molt::module

extern "C" int molt_param_set_int(void* value, const char* text) {
  char* end;
  errno = 0;
  long number = std::strtol(text, &end, 0);
  if (errno != 0 || end == text || *end != '\0' || number != static_cast<int>(number)) {
    return -EINVAL;
  }
  __atomic_store_n(static_cast<int*>(value), static_cast<int>(number), __ATOMIC_RELAXED);
  return 0;
}

extern "C" int molt_param_get_int(const void* value, char* text, std::size_t bytes) {
  return std::snprintf(text, bytes, "%d",
                       __atomic_load_n(static_cast<const int*>(value), __ATOMIC_RELAXED));
}
