#include "attach/prospects.hpp"

#include "attach/target.hpp"
#include "elf/symbols.hpp"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>

namespace molt::attach {

namespace {

// Of the runtime's pool (arch/x86_64/pool.hpp), and how far a jump reaches, with room for what is
// jumped over.
constexpr std::uint64_t pool_bytes = 64 << 10;
constexpr std::uint64_t reach = (std::uint64_t{1} << 31) - (1 << 20);
constexpr std::uint64_t lowest = 64 << 10;

bool has_near_memory(const Target& target, const Mapping& text) {
  const std::uint64_t from = text.end > reach + lowest ? text.end - reach : lowest;
  const std::uint64_t to = text.begin + reach;
  std::uint64_t end = from;
  for (const Mapping& mapping : target.mappings()) {
    if (mapping.end <= end) continue;
    if (mapping.begin >= end + 2 * pool_bytes && end + 2 * pool_bytes <= to) return true;
    end = mapping.end;
    if (end >= to) return false;
  }
  return end + 2 * pool_bytes <= to;
}

const Mapping* text_of(const Target& target, std::string_view name_start) {
  for (const Mapping& mapping : target.mappings()) {
    if (mapping.executable && mapping.file_name().starts_with(name_start)) return &mapping;
  }
  return nullptr;
}

std::string link_of(const std::string& path) {
  char target[4096];
  const ssize_t length = ::readlink(path.c_str(), target, sizeof target);
  return length < 0 ? "" : std::string(target, static_cast<std::size_t>(length));
}

Prospect own_functions(const Target& target, const std::string& program) {
  Prospect prospect{"hooks on functions of the program", true, ""};
  const Mapping* text = text_of(target, program.substr(program.rfind('/') + 1));
  if (text != nullptr && !has_near_memory(target, *text)) {
    return {prospect.what, false, "no 64 KiB are free within 2 GiB of its code"};
  }
  const Fd fd(::open(target.proc("exe").c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK));
  if (!fd) return {prospect.what, false, "its file cannot be read"};
  auto symbols = elf::read_symbols(fd.get(), program);
  if (!symbols) return {prospect.what, false, symbols.error().detail};
  if (symbols->complete()) return prospect;
  prospect.text = "only those that it exports (" + symbols->shortcomings() +
                  "); the package of its debug symbols has the others";
  return prospect;
}

Prospect library_functions(const Target& target) {
  Prospect prospect{"hooks on functions of libraries", true, ""};
  const Mapping* text = text_of(target, "libc.so.");
  if (text == nullptr) text = text_of(target, "libc-2.");
  if (text == nullptr || has_near_memory(target, *text)) return prospect;
  return {prospect.what, false, "no 64 KiB are free within 2 GiB of the C library"};
}

}  // namespace

Result<std::vector<Prospect>> prospects(int pid) {
  auto target = Target::open(pid);
  if (!target) return pass(target);
  std::vector<Prospect> all;
  Prospect modules{"modules", true, ""};
  for (const char* space : {"mnt", "pid", "user"}) {
    const std::string theirs = link_of(target->proc(std::string("ns/") + space));
    if (theirs.empty() || theirs == link_of(std::string("/proc/self/ns/") + space)) continue;
    modules.text += (modules.text.empty() ? "in a namespace of its own: " : ", ") +
                    std::string(space == std::string("mnt") ? "mount" : space);
  }
  if (link_of(target->proc("root")) != "/") {
    modules.text += std::string(modules.text.empty() ? "" : "; ") + "in a root of its own";
  }
  if (!modules.text.empty()) modules.text += "; what it cannot open is handed to it as memory";
  all.push_back(modules);
  all.push_back(library_functions(*target));
  all.push_back(own_functions(*target, link_of(target->proc("exe"))));
  return all;
}

}  // namespace molt::attach
