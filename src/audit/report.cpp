// What an audit has found, in words.

#include <algorithm>
#include <cstdio>

#include "audit/audit.hpp"

namespace molt::audit {

const char* to_text(Method method) {
  switch (method) {
    case Method::automatic:
      return "automatic";
    case Method::write_protect:
      return "write-protect";
    case Method::soft_dirty:
      return "soft-dirty";
    case Method::rescan:
      break;
  }
  return "rescan";
}

const char* to_text(Looks looks) {
  switch (looks) {
    case Looks::callback:
      return "callback";
    case Looks::return_address:
      return "return address";
    case Looks::code:
      return "code";
    case Looks::vtable:
      return "vtable";
    case Looks::data:
      break;
  }
  return "data";
}

const char* to_text(Place place) {
  switch (place) {
    case Place::object:
      return "object";
    case Place::heap:
      return "heap";
    case Place::memory:
      return "memory";
    case Place::thread_local_storage:
      return "tls";
    case Place::thread:
      return "thread";
    case Place::stack:
      return "stack";
    case Place::signal:
      return "signal";
    case Place::timer:
      break;
  }
  return "timer";
}

std::string Finding::text() const {
  std::string line = where;
  if (address != 0) {
    char at[32];
    std::snprintf(at, sizeof at, " at 0x%llx", static_cast<unsigned long long>(address));
    line += at;
  }
  line += " -> " + target + " (" + to_text(looks) + ")";
  return owner.empty() ? line : line + ", known to " + owner;
}

std::size_t Report::barring() const {
  return more + static_cast<std::size_t>(std::count_if(findings.begin(), findings.end(),
                                                       [](const Finding& f) { return f.bars; }));
}

}  // namespace molt::audit
