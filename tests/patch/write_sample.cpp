// The fuzzer's seed: write_sample FILE
#include <cstdio>

#include "sample.hpp"

int main(int, char** arguments) {
  using namespace molt::patch_test;
  const auto old = code({0x90, 0xc3, 0x90, 0x90, 0x90});
  Sample s = make_sample("program", "aabb", 0x1000, old, code({0xe8, 0, 0, 0, 0, 0xc3}));
  molt::builder::PatchWriter::Binding binding;
  binding.kind = molt::patch_file::Binding::dynamic;
  binding.version = "GLIBC_2.2.5";
  s.writer.relocate(s.text, 1, R_X86_64_PLT32, s.writer.bind("getpid", binding), -4);
  binding = {};
  binding.kind = molt::patch_file::Binding::tls;
  s.writer.relocate(s.constants, 0, R_X86_64_TPOFF32, s.writer.bind("local", binding), 0);
  const auto bytes = s.writer.bytes();
  std::FILE* file = std::fopen(arguments[1], "wb");
  return file == nullptr || std::fwrite(bytes.data(), 1, bytes.size(), file) != bytes.size() ||
         std::fclose(file) != 0;
}
