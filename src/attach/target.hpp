// target.hpp - what can be seen of a process from outside: its memory map, objects and threads.
#pragma once

#include "base/fd.hpp"
#include "base/result.hpp"

#include <sys/types.h>

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace molt::attach {

// Addresses are the target's throughout.
struct Mapping {
  std::uint64_t begin = 0;
  std::uint64_t end = 0;
  std::uint64_t offset = 0;
  std::uint64_t inode = 0;
  unsigned device_major = 0;
  unsigned device_minor = 0;
  bool readable = false;
  bool writable = false;
  bool executable = false;
  std::string path;  // as the kernel writes it

  bool contains(std::uint64_t address) const { return begin <= address && address < end; }
  std::string_view file_name() const {
    const std::string_view whole(path);
    return whole.substr(whole.rfind('/') + 1);
  }
};

// What the file of a shared object says. Read once for all processes that have mapped it.
struct Library;

// A shared object of the target. Its file is the mapped one, not what may have replaced it.
class Object {
 public:
  // The address of what it exports; 0 if it does not. Functions only, and no indirect ones.
  std::uint64_t function(std::string_view name) const;
  // The same of a variable.
  std::uint64_t variable(std::string_view name) const;
  // Room in its code for `bytes` that nothing uses: zeros behind the end of its text.
  std::optional<std::uint64_t> room_for_code(std::size_t bytes) const;

 private:
  friend class Target;
  std::shared_ptr<const Library> library_;
  std::uint64_t bias_ = 0;
};

class Target {
 public:
  // ESRCH, EACCES or EPERM with what to do about it.
  [[nodiscard]] static Result<Target> open(int pid);

  int pid() const { return pid_; }
  const std::vector<Mapping>& mappings() const { return mappings_; }
  [[nodiscard]] Status refresh();  // reads the mappings again
  const Mapping* mapping_at(std::uint64_t address) const;

  // The first mapped file whose name starts so and that is a shared object; nothing if there is none.
  [[nodiscard]] std::optional<Object> object(std::string_view file_name_start) const;

  // False: not all of it could be read or written. Memory is written as the target itself could.
  [[nodiscard]] bool read(std::uint64_t address, std::span<std::byte> to) const;
  [[nodiscard]] bool write(std::uint64_t address, std::span<const std::byte> from) const;
  // A text of the target's, cut off at `most`.
  std::string text(std::uint64_t address, std::size_t most = 1000) const;
  // Writes code, although it is not writable. Only while a thread is traced by the caller.
  [[nodiscard]] Status write_code(std::uint64_t address, std::span<const std::byte> code) const;

  // Whether the dynamic loader has handed over to the program. Until then the C library is not what its functions
  // count on.
  bool is_loaded() const;

  std::vector<pid_t> threads() const;
  // Also one that nobody has waited for yet, whose threads are still listed.
  bool has_ended() const;
  // A line of /proc/PID/status, behind "name:" and blanks; "" if there is none.
  std::string status(std::string_view name) const;
  std::string proc(std::string_view file) const;  // "/proc/PID/file"

  // A hole of the address space for so many bytes.
  std::optional<std::uint64_t> hole(std::size_t bytes) const;

 private:
  int pid_ = 0;
  Fd memory_;
  std::vector<Mapping> mappings_;
};

// A small file of /proc, whole; "" if it cannot be read.
std::string read_text(const std::string& path);

}  // namespace molt::attach
