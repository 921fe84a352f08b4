#include "cli/patch_check.hpp"

#include "base/fd.hpp"
#include "base/hash.hpp"
#include "cli/failure.hpp"
#include "cli/module_file.hpp"
#include "elf/image.hpp"
#include "elf/read.hpp"

#include <fcntl.h>
#include <sys/stat.h>

#include <algorithm>
#include <cerrno>
#include <fstream>
#include <optional>
#include <set>
#include <sstream>

namespace molt::cli {
namespace {

using patchfile::Function;
using patchfile::PatchFile;

// A file whose code may be meant: on disk, or as it is mapped somewhere.
struct Code {
  std::string name;
  std::vector<std::byte> file;
  std::optional<elf::Image> image;
  int memory = -1;         // of the process; -1: what is in the file counts
  std::uint64_t bias = 0;  // from addresses in the file to those in the process

  std::optional<std::vector<std::byte>> bytes(std::uint64_t address, std::uint64_t size) const {
    std::vector<std::byte> read(size);
    if (memory >= 0) {
      const auto at = static_cast<off_t>(bias + address);
      if (::pread(memory, read.data(), size, at) != static_cast<ssize_t>(size)) return std::nullopt;
      return read;
    }
    const auto found = image->at_address(address, size);
    if (!found) return std::nullopt;
    return std::vector<std::byte>(found->begin(), found->end());
  }
};

std::optional<Code> open_code(const std::string& path) {
  struct stat status {};
  if (::stat(path.c_str(), &status) != 0 || !S_ISREG(status.st_mode)) return std::nullopt;
  Code code;
  code.name = path;
  try {
    code.file = read_module_file(path);
  } catch (const Failure&) {
    return std::nullopt;
  }
  auto image = elf::Image::parse(code.file, elf::Purpose::examine);
  if (!image) return std::nullopt;
  code.image = std::move(*image);
  return code;
}

// Each ELF file that the process has mapped from its first byte.
std::vector<Code> mapped_code(int pid, int memory) {
  std::vector<Code> all;
  std::ifstream maps(fmt::format("/proc/{}/maps", pid));
  if (!maps) fail(ErrorClass::missing, ESRCH, "there is no process {}", pid);
  std::string line;
  std::set<std::string> seen;
  while (std::getline(maps, line)) {
    std::istringstream words(line);
    std::string range, permissions, offset, device, inode, path;
    words >> range >> permissions >> offset >> device >> inode;
    std::getline(words >> std::ws, path);
    if (path.empty() || path[0] != '/' || offset != "00000000") continue;
    if (!seen.insert(path).second) continue;
    auto code = open_code(fmt::format("/proc/{}/root{}", pid, path));
    if (!code) continue;
    code->name = path;
    code->memory = memory;
    const std::uint64_t begin = std::stoull(range, nullptr, 16);
    std::uint64_t lowest = ~std::uint64_t{0};
    for (const Elf64_Phdr& segment : code->image->segments()) {
      if (segment.p_type == PT_LOAD) lowest = std::min<std::uint64_t>(lowest, segment.p_vaddr);
    }
    code->bias = begin - (lowest & ~std::uint64_t{4095});
    all.push_back(std::move(*code));
  }
  return all;
}

void check_functions(const PatchFile& patch, std::size_t target, const Code& code,
                     const std::string& where, std::vector<std::string>& lines) {
  for (const Function& function : patch.functions()) {
    if (function.target != target) continue;
    const auto bytes = code.bytes(function.old_address, function.old_size);
    const std::string wanted = elf::hexadecimal(std::as_bytes(std::span(function.old_hash)));
    if (bytes && content_hash(*bytes) == wanted) continue;
    lines.push_back(fmt::format(
        "{}: its code in {} is not what the patch was built for; {}", function.name, where,
        code.memory >= 0 ? "patched already (molt status), or another build" : "build it again"));
  }
}

// True if one of them is the target.
bool check_target(const PatchFile& patch, std::size_t target, const std::vector<Code>& among,
                  const std::string& where, std::vector<std::string>& lines) {
  const patchfile::Target& wanted = patch.targets()[target];
  for (const Code& code : among) {
    if (code.image->build_id() != wanted.build_id) continue;
    check_functions(patch, target, code, where.empty() ? code.name : where, lines);
    return true;
  }
  return false;
}

}  // namespace

std::vector<std::string> check_patch(const patchfile::PatchFile& patch,
                                     const std::vector<std::string>& programs,
                                     const std::vector<int>& pids) {
  std::vector<std::string> lines;
  const auto expect_one = [&](const std::vector<Code>& among, const std::string& where) {
    bool any = false;
    for (std::size_t i = 0; i < patch.targets().size(); ++i) {
      any |= check_target(patch, i, among, where, lines);
    }
    if (any) return;
    std::string wanted;
    for (const patchfile::Target& target : patch.targets()) {
      wanted += fmt::format("{}{} {}", wanted.empty() ? "" : ", ", target.name, target.build_id);
    }
    lines.push_back(
        fmt::format("{} has none of the files that the patch was built for: {}; build it "
                    "for the file that runs",
                    where, wanted));
  };
  for (const std::string& program : programs) {
    auto code = open_code(program);
    if (!code) fail(ErrorClass::missing, ENOENT, "{}: not a program or library", program);
    std::vector<Code> only;
    only.push_back(std::move(*code));
    expect_one(only, program);
  }
  for (const int pid : pids) {
    const Fd memory(::open(fmt::format("/proc/{}/mem", pid).c_str(), O_RDONLY | O_CLOEXEC));
    if (!memory) {
      const int code = errno;
      fail(class_of_errno(code), code, "cannot read process {}", pid);
    }
    expect_one(mapped_code(pid, memory.get()), fmt::format("process {}", pid));
  }
  return lines;
}

}  // namespace molt::cli
