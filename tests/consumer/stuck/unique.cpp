// A static in an inline function is STB_GNU_UNIQUE: one for the process, so its library must stay.
#include <molt/module.hpp>

#include <string>

#include "../project/greeting.hpp"

inline std::string& remembered() {
  static std::string text = "a text too long for the string object itself";
  return text;
}

static int callback(int) { return static_cast<int>(remembered().size()); }

MOLT_MODULE("unique", "1.0", "Apache-2.0", "cannot be unloaded")
MOLT_HOOK(greeting_point, callback)
