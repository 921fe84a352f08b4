#include "attach/target.hpp"

#include "elf/image.hpp"
#include "elf/symbols.hpp"

#include <dirent.h>
#include <fcntl.h>
#include <link.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <sys/uio.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cinttypes>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <mutex>

namespace molt::attach {

struct Library {
  std::vector<std::byte> first_page;
  std::vector<Elf64_Phdr> segments;
  elf::Symbols symbols;
};

namespace {

constexpr std::uint64_t page_bytes = 4096;

// By what tells one state of a file from all others; what cannot be read is not kept.
using FileId = std::array<std::int64_t, 5>;
struct Libraries {
  std::mutex mutex;
  std::map<FileId, std::shared_ptr<const Library>> known;
};

bool parse_mapping(const char* line, Mapping& mapping) {
  char permissions[5] = {};
  int path_at = 0;
  if (std::sscanf(line, "%" SCNx64 "-%" SCNx64 " %4s %" SCNx64 " %x:%x %" SCNu64 " %n",
                  &mapping.begin, &mapping.end, permissions, &mapping.offset, &mapping.device_major,
                  &mapping.device_minor, &mapping.inode, &path_at) < 7) {
    return false;
  }
  mapping.readable = permissions[0] == 'r';
  mapping.writable = permissions[1] == 'w';
  mapping.executable = permissions[2] == 'x';
  mapping.path = line + path_at;
  return true;
}

std::optional<std::vector<std::byte>> read_file(const Fd& fd) {
  struct stat info;
  constexpr std::int64_t most = 1 << 28;
  if (!fd || fstat(fd.get(), &info) != 0 || !S_ISREG(info.st_mode) || info.st_size > most) {
    return std::nullopt;
  }
  std::vector<std::byte> bytes(static_cast<std::size_t>(info.st_size));
  std::size_t done = 0;
  while (done < bytes.size()) {
    const ssize_t got =
        pread(fd.get(), bytes.data() + done, bytes.size() - done, static_cast<off_t>(done));
    if (got < 0 && errno == EINTR) continue;
    if (got <= 0) return std::nullopt;
    done += static_cast<std::size_t>(got);
  }
  return bytes;
}

// Null: it is no shared object that can be read.
std::shared_ptr<const Library> library_of(const Fd& fd, std::string_view name) {
  static Libraries libraries;
  struct stat info;
  if (!fd || fstat(fd.get(), &info) != 0) return nullptr;
  const FileId id{static_cast<std::int64_t>(info.st_dev), static_cast<std::int64_t>(info.st_ino),
                  info.st_size, info.st_mtim.tv_sec, info.st_mtim.tv_nsec};
  std::lock_guard lock(libraries.mutex);
  auto& known = libraries.known[id];
  if (known) return known;
  const auto bytes = read_file(fd);
  if (!bytes) return nullptr;
  auto image = elf::Image::parse(*bytes, elf::Purpose::examine);
  auto symbols = elf::read_symbols(*bytes, name);
  if (!image || !symbols) return nullptr;
  auto library = std::make_shared<Library>();
  library->first_page.assign(
      bytes->begin(), bytes->begin() + std::min<std::ptrdiff_t>(std::ssize(*bytes), page_bytes));
  library->segments = image->segments();
  library->symbols = std::move(*symbols);
  return known = library;
}

}  // namespace

std::string read_text(const std::string& path) {
  std::string text;
  const Fd fd(::open(path.c_str(), O_RDONLY | O_CLOEXEC));
  if (!fd) return text;
  char buffer[4096];
  for (;;) {
    const ssize_t got = ::read(fd.get(), buffer, sizeof buffer);
    if (got < 0 && errno == EINTR) continue;
    if (got <= 0) return text;
    text.append(buffer, static_cast<std::size_t>(got));
  }
}

std::uint64_t Object::function(std::string_view name) const {
  auto found = library_->symbols.find(name);
  if (!found || !found->is_function() || found->is_indirect()) return 0;
  return found->address + bias_;
}

std::uint64_t Object::variable(std::string_view name) const {
  auto found = library_->symbols.find(name);
  return found && !found->is_function() ? found->address + bias_ : 0;
}

std::optional<std::uint64_t> Object::room_for_code(std::size_t bytes) const {
  for (const Elf64_Phdr& segment : library_->segments) {
    if (segment.p_type != PT_LOAD || (segment.p_flags & PF_X) == 0) continue;
    const std::uint64_t end = bias_ + segment.p_vaddr + std::max(segment.p_filesz, segment.p_memsz);
    const std::uint64_t begin = (end + 15) & ~std::uint64_t{15};
    const std::uint64_t page_end = (end + page_bytes - 1) & ~(page_bytes - 1);
    if (begin + bytes <= page_end) return begin;
  }
  return std::nullopt;
}

std::string Target::proc(std::string_view file) const {
  return "/proc/" + std::to_string(pid_) + "/" + std::string(file);
}

Result<Target> Target::open(int pid) {
  Target target;
  target.pid_ = pid;
  target.memory_ = Fd(::open(target.proc("mem").c_str(), O_RDWR | O_CLOEXEC));
  if (!target.memory_) {
    if (errno == ENOENT || errno == ESRCH) return fail(ESRCH, "there is no process %d", pid);
    return fail_errno(errno, "the memory of process %d may not be looked at", pid);
  }
  if (auto done = target.refresh(); !done) return pass(done);
  return target;
}

Status Target::refresh() {
  const std::string text = read_text(proc("maps"));
  if (text.empty()) return fail(ESRCH, "process %d has no memory: it is ending", pid_);
  mappings_.clear();
  for (std::size_t at = 0; at < text.size();) {
    const std::size_t end = std::min(text.find('\n', at), text.size());
    Mapping mapping;
    if (parse_mapping(text.substr(at, end - at).c_str(), mapping)) {
      mappings_.push_back(std::move(mapping));
    }
    at = end + 1;
  }
  return {};
}

const Mapping* Target::mapping_at(std::uint64_t address) const {
  for (const Mapping& mapping : mappings_) {
    if (mapping.contains(address)) return &mapping;
  }
  return nullptr;
}

std::optional<Object> Target::object(std::string_view file_name_start) const {
  for (const Mapping& mapping : mappings_) {
    if (mapping.inode == 0 || mapping.offset != 0 || !mapping.readable ||
        !mapping.file_name().starts_with(file_name_start)) {
      continue;
    }
    char range[64];
    std::snprintf(range, sizeof range, "map_files/%" PRIx64 "-%" PRIx64, mapping.begin,
                  mapping.end);
    for (const std::string& path : {proc(range), proc("root") + mapping.path}) {
      const Fd fd(::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK));
      auto library = library_of(fd, mapping.file_name());
      if (!library) continue;
      // Another file of that name would differ in its first page, where the build-id is.
      std::array<std::byte, page_bytes> first;
      const std::size_t length = library->first_page.size();
      if (!read(mapping.begin, std::span(first).first(length)) ||
          std::memcmp(first.data(), library->first_page.data(), length) != 0) {
        continue;
      }
      Object object;
      for (const Elf64_Phdr& segment : library->segments) {
        if (segment.p_type != PT_LOAD) continue;
        object.bias_ = mapping.begin - (segment.p_vaddr & ~(page_bytes - 1));
        break;
      }
      object.library_ = std::move(library);
      return object;
    }
  }
  return std::nullopt;
}

bool Target::read(std::uint64_t address, std::span<std::byte> to) const {
  iovec local{to.data(), to.size()};
  iovec remote{reinterpret_cast<void*>(address), to.size()};
  return process_vm_readv(pid_, &local, 1, &remote, 1, 0) == static_cast<ssize_t>(to.size());
}

bool Target::write(std::uint64_t address, std::span<const std::byte> from) const {
  iovec local{const_cast<std::byte*>(from.data()), from.size()};
  iovec remote{reinterpret_cast<void*>(address), from.size()};
  return process_vm_writev(pid_, &local, 1, &remote, 1, 0) == static_cast<ssize_t>(from.size());
}

std::string Target::text(std::uint64_t address, std::size_t most) const {
  std::string found;
  while (found.size() < most) {
    // Never across a page: the next one need not be there.
    const std::uint64_t at = address + found.size();
    std::array<char, 256> piece;
    const std::size_t length = std::min<std::uint64_t>(piece.size(), page_bytes - at % page_bytes);
    if (!read(at, std::as_writable_bytes(std::span(piece).first(length)))) break;
    const char* end = static_cast<const char*>(std::memchr(piece.data(), 0, length));
    found.append(piece.data(),
                 end != nullptr ? static_cast<std::size_t>(end - piece.data()) : length);
    if (end != nullptr) break;
  }
  return found;
}

Status Target::write_code(std::uint64_t address, std::span<const std::byte> code) const {
  const ssize_t written =
      pwrite(memory_.get(), code.data(), code.size(), static_cast<off_t>(address));
  if (written == static_cast<ssize_t>(code.size())) return {};
  // Of memory that is gone nothing is written, and no error told.
  const int error = written < 0 ? errno : EIO;
  if (has_ended()) return fail(ESRCH, "process %d has ended", pid_);
  return fail_errno(error, "code cannot be written into process %d", pid_);
}

bool Target::is_loaded() const {
  // Where a debugger looks for libraries. Later it is in a state of change while one is loaded, by a program of one
  // thread that thread's own work, which is waited for as well.
  std::optional<Object> loader = object("ld-linux-x86-64.so.2");
  if (!loader) loader = object("ld-2.");
  const std::uint64_t at = loader ? loader->variable("_r_debug") : 0;
  r_debug state = {};
  if (at == 0 || !read(at, std::as_writable_bytes(std::span(&state, 1)))) return true;
  if (state.r_version != 0 && state.r_state == r_debug::RT_CONSISTENT) return true;
  return threads().size() > 1;
}

std::vector<pid_t> Target::threads() const {
  std::vector<pid_t> threads;
  DIR* folder = opendir(proc("task").c_str());
  if (folder == nullptr) return threads;
  while (const dirent* entry = readdir(folder)) {
    if (const int tid = std::atoi(entry->d_name); tid > 0) threads.push_back(tid);
  }
  closedir(folder);
  return threads;
}

bool Target::has_ended() const {
  // Of memory that is gone the kernel says that it is at its end.
  std::byte first{};
  return mappings_.empty() ||
         pread(memory_.get(), &first, 1, static_cast<off_t>(mappings_.front().begin)) == 0;
}

std::string Target::status(std::string_view name) const {
  const std::string text = "\n" + read_text(proc("status"));
  const std::string key = "\n" + std::string(name) + ":";
  const std::size_t at = text.find(key);
  if (at == text.npos) return "";
  const std::size_t begin = text.find_first_not_of(" \t", at + key.size());
  return begin == text.npos ? "" : text.substr(begin, text.find('\n', begin) - begin);
}

std::optional<std::uint64_t> Target::hole(std::size_t bytes) const {
  // The middle of the widest one: nothing that grows there (the heap, stacks) comes near.
  std::uint64_t best = 0;
  std::uint64_t best_size = 0;
  std::uint64_t end = std::uint64_t{1} << 16;
  for (const Mapping& mapping : mappings_) {
    if (mapping.begin > end && mapping.begin - end > best_size &&
        mapping.begin < std::uint64_t{1} << 47) {
      best = end;
      best_size = mapping.begin - end;
    }
    end = std::max(end, mapping.end);
  }
  if (best_size < 4 * bytes) return std::nullopt;
  return (best + best_size / 2) & ~(page_bytes - 1);
}

}  // namespace molt::attach
