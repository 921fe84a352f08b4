// A file of any content must be refused or be safe to look at.

#include "elf/image.hpp"
#include "elf/loadable.hpp"

#include "look.hpp"

#include <cstdlib>

extern "C" int LLVMFuzzerTestOneInput(const unsigned char* data, std::size_t size) {
  auto bytes = std::as_bytes(std::span(data, size));
  for (auto purpose : {molt::elf::Purpose::load, molt::elf::Purpose::examine}) {
    auto image = molt::elf::Image::parse(bytes, purpose);
    if (image) {
      if (molt::elf::look_at_everything(*image) == 0) std::abort();
      (void)molt::elf::check_loadable(*image);
    } else if (image.error().code == 0 || image.error().detail[0] == '\0') {
      std::abort();
    }
  }
  return 0;
}
