// log.hpp - the event log: what happened to modules and hooks, in the kernel's words.
//
// A ring of the last `capacity` lines in memory; readers ask for what came after a sequence number.
// Any thread may write; no line is ever lost to a reader that keeps up. Not for signal handlers.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace molt::log {

// Who asked for the operation that a line belongs to; {0, 0} for the process itself.
struct Requester {
  int pid = 0;
  unsigned uid = 0;
  std::string comm;
};

struct Line {
  std::uint64_t seq = 0;
  std::int64_t time_ms = 0;  // Unix time
  std::string module;        // "" if the line is about no module
  std::string text;          // as the kernel would print it, prefix included
  Requester requester;
};

inline constexpr std::size_t capacity = 4096;

// Appends "module: text", or "text" where module is empty.
[[gnu::format(printf, 2, 3)]] void line(std::string_view module, const char* format, ...);
// Put before every text from now on.
void set_prefix(std::string_view prefix);

// Lines of this thread's operation carry this requester until the scope ends.
class RequesterScope {
 public:
  explicit RequesterScope(const Requester& requester);
  ~RequesterScope();
  RequesterScope(const RequesterScope&) = delete;
  RequesterScope& operator=(const RequesterScope&) = delete;

 private:
  const Requester* outer_;
};
// The requester of this thread's operation, or the process itself.
const Requester& current_requester();

struct Batch {
  std::vector<Line> lines;
  std::uint64_t next = 0;  // ask from here next time
  std::uint64_t lost = 0;  // lines that were overwritten before they were asked for
};
// Lines with seq >= since, at most `most`.
Batch read(std::uint64_t since, std::size_t most);
// The seq of the next line.
std::uint64_t next();
// A descriptor-free way to wait: the value changes with every line; futex-wait on it.
const std::uint32_t* change_word();
// Called after each line, on the thread that wrote it and without locks; it must be quick, and not
// log. There is one at most; null: none.
void set_listener(void (*listener)());

// Around fork(): the ring is whole in the child.
void before_fork();
void after_fork();

}  // namespace molt::log
