#include "base/poison.hpp"

#include <atomic>
#include <cerrno>
#include <cstdarg>
#include <cstdio>

#include "base/log.hpp"

namespace molt {
namespace {

enum Stage : int { sound, being_written, written };
std::atomic<int> g_stage{sound};
char g_reason[256];

}  // namespace

void poison(const char* format, ...) {
  int expected = sound;
  if (!g_stage.compare_exchange_strong(expected, being_written, std::memory_order_relaxed)) return;
  std::va_list arguments;
  va_start(arguments, format);
  std::vsnprintf(g_reason, sizeof g_reason, format, arguments);
  va_end(arguments);
  g_stage.store(written, std::memory_order_release);
  log::line("", "molt: impossible state: %s; no further operations", g_reason);
}

const char* poisoned() {
  switch (g_stage.load(std::memory_order_acquire)) {
    case sound:
      return "";
    case written:
      return g_reason;
    default:
      return "an impossible state";
  }
}

Status operable() {
  const char* reason = poisoned();
  if (reason[0] == '\0') return {};
  return fail(ENOTRECOVERABLE,
              "molt stopped operating in this process: %s; restart it when you can", reason);
}

}  // namespace molt
