#include "audit/symbols.hpp"

#include <elf.h>
#include <fcntl.h>
#include <link.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>

#include "base/own_fd.hpp"

namespace molt::audit {
namespace {

constexpr off_t largest_file = off_t{256} << 20;

std::string last_part(const std::string& path) { return path.substr(path.rfind('/') + 1); }

std::string program_name() {
  char path[4096];
  const ssize_t n = readlink("/proc/self/exe", path, sizeof path);
  return n > 0 ? last_part(std::string(path, static_cast<std::size_t>(n))) : "the program";
}

}  // namespace

void Symbols::open(const std::string& file) {
  file_ = file;
  image_.reset();
  content_.clear();
  const OwnFd fd = own_open(file.c_str(), O_RDONLY);
  struct stat info {};
  if (!fd || fstat(fd.get(), &info) != 0 || info.st_size <= 0 || info.st_size > largest_file ||
      !content_.try_resize(static_cast<std::size_t>(info.st_size))) {
    return;
  }
  std::size_t done = 0;
  while (done < content_.size()) {
    const ssize_t n = read(fd.get(), content_.data() + done, content_.size() - done);
    if (n <= 0) return;
    done += static_cast<std::size_t>(n);
  }
  if (auto image = elf::Image::parse(content_, elf::Purpose::examine)) image_ = std::move(*image);
}

const elf::SymbolTable& Symbols::table() const {
  return image_->static_symbols().empty() ? image_->dynamic_symbols() : image_->static_symbols();
}

std::optional<Named> Symbols::at(std::uint64_t address) const {
  std::optional<Named> best;
  if (!image_) return best;
  std::uint64_t best_value = 0, best_size = 0;
  for (elf::Symbol symbol : table()) {
    const bool names_memory = symbol.type == STT_FUNC || symbol.type == STT_OBJECT ||
                              symbol.type == STT_GNU_IFUNC || symbol.type == STT_NOTYPE;
    if (!symbol.defined || !names_memory || symbol.name.empty()) continue;
    if (address < symbol.value ||
        address - symbol.value >= std::max<std::uint64_t>(symbol.size, 1)) {
      continue;
    }
    // Marks such as __bss_start, which have no size, are where variables begin, too.
    const bool worse =
        symbol.value < best_value || (symbol.value == best_value && symbol.size <= best_size);
    if (best && worse) continue;
    best_value = symbol.value;
    best_size = symbol.size;
    best = Named{std::string(symbol.name), address - symbol.value, symbol.type};
  }
  return best;
}

std::uint64_t Symbols::first_function() const {
  std::uint64_t first = 0;
  if (!image_ || image_->static_symbols().empty()) return first;
  for (elf::Symbol symbol : image_->static_symbols()) {
    if (!symbol.defined || symbol.type != STT_FUNC || symbol.name == "_init") continue;
    if (first == 0 || symbol.value < first) first = symbol.value;
  }
  return first;
}

std::optional<ObjectOf> object_of(std::uintptr_t address) {
  struct Wanted {
    std::uintptr_t address;
    std::optional<ObjectOf> found;
    int index = 0;
  } wanted{address, {}, 0};
  dl_iterate_phdr(
      [](dl_phdr_info* info, std::size_t, void* data) {
        auto& w = *static_cast<Wanted*>(data);
        const bool is_program = w.index++ == 0;
        std::uintptr_t begin = UINTPTR_MAX, end = 0;
        for (const auto* s = info->dlpi_phdr; s != info->dlpi_phdr + info->dlpi_phnum; ++s) {
          if (s->p_type != PT_LOAD) continue;
          const std::uintptr_t from = info->dlpi_addr + s->p_vaddr;
          begin = std::min(begin, from & ~std::uintptr_t{4095});
          end = std::max(end, (from + s->p_memsz + 4095) & ~std::uintptr_t{4095});
        }
        if (w.address < begin || w.address >= end) return 0;
        const std::string name = info->dlpi_name != nullptr ? info->dlpi_name : "";
        w.found = is_program ? ObjectOf{"/proc/self/exe", program_name(), info->dlpi_addr, begin}
                             : ObjectOf{name, last_part(name), info->dlpi_addr, begin};
        return 1;
      },
      &wanted);
  return wanted.found;
}

}  // namespace molt::audit
