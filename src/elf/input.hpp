// input.hpp - an ELF file read piece by piece, where only its tables matter.
//
// A debug file may have a gigabyte, of which the symbols are a few megabytes, and mapping it would let
// whoever truncates it kill this process. So the parts that are needed are read.
#pragma once

#include "base/memory.hpp"
#include "base/result.hpp"
#include "elf/read.hpp"

#include <elf.h>

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace molt::elf {

// Either an open file, which must outlive it, or bytes in memory, which must too.
class Input {
 public:
  // Fails with EINVAL for what is no regular file.
  [[nodiscard]] static Result<Input> of(int fd);
  explicit Input(View bytes) : bytes_(bytes), size_(bytes.size()) {}

  std::uint64_t size() const { return size_; }
  // Nothing outside the file is read; a file that became shorter is an error (EIO), and so is no
  // memory (ENOMEM).
  [[nodiscard]] Result<Bytes> read(std::uint64_t offset, std::uint64_t bytes) const;

 private:
  Input() = default;
  int fd_ = -1;
  View bytes_;
  std::uint64_t size_ = 0;
};

// The section headers of an ELF file of this machine, and what they lead to.
class Sections {
 public:
  // Fails with ENOEXEC for what is no such file. One without section headers has no sections.
  [[nodiscard]] static Result<Sections> read(const Input& input);

  std::size_t size() const { return headers_.size() / sizeof(Elf64_Shdr); }
  Elf64_Shdr header(std::size_t index) const;  // index below size()
  std::string_view name(std::size_t index) const;

  [[nodiscard]] std::optional<Elf64_Shdr> of_type(std::uint32_t type) const;  // the first
  [[nodiscard]] std::optional<Elf64_Shdr> named(std::string_view name) const;
  // Content in this file, as it is: ENODATA for compressed ones and those that are elsewhere.
  [[nodiscard]] Result<Bytes> content(const Input& input, const Elf64_Shdr& section) const;

  // From the notes, of sections or segments; "" for none.
  [[nodiscard]] std::string build_id(const Input& input) const;
  // The lowest address of the PT_LOAD segments: files of one build differ by it where one was
  // prelinked, and only by it.
  std::optional<std::uint64_t> base() const { return base_; }

 private:
  Bytes headers_;
  Bytes names_;
  Bytes segments_;
  std::optional<std::uint64_t> base_;
};

}  // namespace molt::elf
