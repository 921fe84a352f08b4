// samples.hpp - files for the tests of elf/, and how to look at them.
#pragma once

#include "elf/image.hpp"

#include <gtest/gtest.h>
#include <sys/mman.h>

#include <cctype>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <string>
#include <vector>

// Skips a test of a file that clang makes where there is no clang.
#define NEEDS_SAMPLE(file)                                                \
  if (!std::filesystem::exists(sample_path(file))) {                      \
    GTEST_SKIP() << (file) << " was not built: there is no clang++ here"; \
  }

inline std::string sample_path(const std::string& file) { return SAMPLES "/" + file; }

inline std::vector<std::byte> contents(const std::string& path) {
  std::ifstream stream(path, std::ios::binary);
  if (!stream) ADD_FAILURE() << "cannot read " << path;
  std::string text{std::istreambuf_iterator<char>(stream), {}};
  auto bytes = std::as_bytes(std::span(text));
  return {bytes.begin(), bytes.end()};
}

// An image together with the bytes it looks at.
struct Sample {
  explicit Sample(const std::string& path, molt::elf::Purpose purpose = molt::elf::Purpose::load)
      : bytes(contents(path)), parsed(molt::elf::Image::parse(bytes, purpose)) {
    if (!parsed) ADD_FAILURE() << path << ": " << parsed.error().detail;
  }
  const molt::elf::Image* operator->() const { return &*parsed; }
  const molt::elf::Image& operator*() const { return *parsed; }

  std::vector<std::byte> bytes;
  molt::Result<molt::elf::Image> parsed;
};

// A test's name from that of its file: letters and digits only.
inline std::string test_name(std::string file) {
  for (char& c : file) {
    if (!std::isalnum(static_cast<unsigned char>(c))) c = '_';
  }
  return file;
}

// A copy of bytes that ends where memory ends: one byte too far is a fault, in any build.
class FencedBytes {
 public:
  explicit FencedBytes(std::size_t most)
      : pages_((most + page - 1) / page * page),
        memory_(static_cast<std::byte*>(mmap(nullptr, pages_ + page, PROT_READ | PROT_WRITE,
                                             MAP_PRIVATE | MAP_ANONYMOUS, -1, 0))) {
    if (memory_ == MAP_FAILED || mprotect(memory_ + pages_, page, PROT_NONE) != 0) std::abort();
  }
  ~FencedBytes() { munmap(memory_, pages_ + page); }
  FencedBytes(const FencedBytes&) = delete;
  FencedBytes& operator=(const FencedBytes&) = delete;

  // Good until the next call.
  std::span<std::byte> copy_of(std::span<const std::byte> bytes) {
    std::byte* at = memory_ + pages_ - bytes.size();
    if (!bytes.empty()) std::memcpy(at, bytes.data(), bytes.size());
    return {at, bytes.size()};
  }

 private:
  static constexpr std::size_t page = 4096;
  std::size_t pages_;
  std::byte* memory_;
};
