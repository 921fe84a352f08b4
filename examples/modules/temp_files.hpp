// temp_files.hpp - the policy of temp_files and temp_opens: likely mistakes with temporary files.
//
// In a folder that everybody may write to, a program that creates a file under a name that others
// can guess, without O_EXCL, opens whatever they have put there first: a file that they can read,
// or a link to a file that only the program may write. mkstemp(3) avoids it twice, by a random part
// in the name and by O_EXCL.
//
// The mistake is logged (`molt events`), or refused with EACCES.
#pragma once

#include <molt/module.hpp>

#include <fcntl.h>

#include <string>
#include <string_view>

// A parameter of the module's own type: the text is checked once, when it is set.
enum class Reaction { log, refuse };

template <>
class molt::param<Reaction> {
 public:
  constexpr explicit param(Reaction value) : value_(value) {}
  Reaction get() const { return value_.load(std::memory_order_relaxed); }

  static int set(void* self, const char* text) {
    std::string_view s = text;
    if (s != "log" && s != "refuse") return -EINVAL;
    static_cast<param*>(self)->value_.store(s == "log" ? Reaction::log : Reaction::refuse,
                                            std::memory_order_relaxed);
    return 0;
  }
  static int get(const void* self, char* text, std::size_t bytes) {
    auto value = static_cast<const param*>(self)->get();
    return std::snprintf(text, bytes, "%s", value == Reaction::log ? "log" : "refuse");
  }

 private:
  std::atomic<Reaction> value_;
};

MOLT_PARAM(Reaction, mode, Reaction::log, "what to do about a mistake: log or refuse",
           MOLT_WRITABLE)
MOLT_PARAM(std::string, directories, "/tmp:/var/tmp:/dev/shm",
           "folders that everybody may write to, separated by colons", MOLT_WRITABLE)

namespace {

bool is_shared(std::string_view path, std::string_view folders) {
  while (!folders.empty()) {
    std::string_view folder = folders.substr(0, folders.find(':'));
    folders.remove_prefix(std::min(folder.size() + 1, folders.size()));
    if (!folder.empty() && path.starts_with(folder) &&
        path.substr(folder.size()).starts_with('/')) {
      return true;
    }
  }
  return false;
}

enum class Kind { other, digit, lower, upper };

Kind kind_of(char c) {
  if (c >= '0' && c <= '9') return Kind::digit;
  if (c >= 'a' && c <= 'z') return Kind::lower;
  if (c >= 'A' && c <= 'Z') return Kind::upper;
  return Kind::other;
}

// Whether the name lacks what looks random: six letters and digits in a row (mkstemp's number) that
// change at least twice between small letters, capitals and digits. "report.txt", "job.4711" and
// "2024.log" can be guessed; "job.aZ3kQ9" cannot.
bool is_predictable(std::string_view name) {
  int length = 0;
  int changes = 0;
  Kind before = Kind::other;
  for (char c : name) {
    Kind now = kind_of(c);
    if (now == Kind::other) {
      length = changes = 0;
    } else {
      if (length > 0 && now != before) ++changes;
      if (++length >= 6 && changes >= 2) return false;
    }
    before = now;
  }
  return true;
}

bool is_mistake(std::string_view name, int flags) {
  if ((flags & O_CREAT) == 0 || (flags & O_EXCL) != 0) return false;
  return is_shared(name, directories.get()) && is_predictable(name.substr(name.rfind('/') + 1));
}

}  // namespace
