#include "attach/prospects.hpp"

#include "attach/borrow.hpp"
#include "attach/masks.hpp"
#include "attach/target.hpp"
#include "attach/victim.hpp"
#include "elf/symbols.hpp"

#include <dirent.h>
#include <fcntl.h>
#include <linux/openat2.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <sys/syscall.h>
#include <sys/vfs.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>

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
  Prospect prospect{"hooks and patches of the program", true, ""};
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
                  "); for the others, install its debug symbols";
  return prospect;
}

Prospect library_functions(const Target& target) {
  Prospect prospect{"hooks and patches of libraries", true, ""};
  const Mapping* text = text_of(target, "libc.so.");
  if (text == nullptr) text = text_of(target, "libc-2.");
  if (text == nullptr || has_near_memory(target, *text)) return prospect;
  return {prospect.what, false, "no 64 KiB are free within 2 GiB of the C library"};
}

uid_t user_of(const Target& target) {
  const std::string ids = target.status("Uid");  // the effective one is the second
  return static_cast<uid_t>(
      std::strtoul(ids.c_str() + std::min(ids.find_first_of(" \t"), ids.size()), nullptr, 10));
}

void add(std::string& text, const std::string& more) { text += (text.empty() ? "" : "; ") + more; }

// Its threads and its memory map are looked at by what it sees of /proc.
bool has_proc(const Target& target) {
  constexpr long proc_magic = 0x9fa0;
  struct statfs info {};
  return ::statfs(target.proc("root/proc").c_str(), &info) == 0 && info.f_type == proc_magic;
}

std::string variable_of(const Target& target, std::string_view name) {
  const std::string all = '\0' + read_text(target.proc("environ"));
  const std::string key = '\0' + std::string(name) + '=';
  const std::size_t at = all.find(key);
  return at == all.npos ? "" : all.c_str() + at + key.size();
}

// A folder of which it takes one for copies of modules, as base/directory.cpp does it.
bool has_folder(const Target& target) {
  const uid_t user = user_of(target);
  const Fd root(::open(target.proc("root").c_str(), O_PATH | O_DIRECTORY | O_CLOEXEC));
  open_how how{};
  how.flags = O_PATH | O_DIRECTORY | O_CLOEXEC;
  how.resolve = RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS;
  for (const std::string& path :
       {variable_of(target, "MOLT_DIRECTORY"), std::string(user == 0 ? "/run" : ""),
        variable_of(target, "XDG_RUNTIME_DIR"), "/run/user/" + std::to_string(user),
        std::string("/tmp")}) {
    if (!path.starts_with('/')) continue;
    const Fd fd(
        static_cast<int>(::syscall(SYS_openat2, root.get(), path.c_str(), &how, sizeof how)));
    struct stat info {};
    struct statvfs mounted {};
    if (!fd || ::fstat(fd.get(), &info) != 0 || ::fstatvfs(fd.get(), &mounted) != 0) continue;
    const bool by_others = (info.st_mode & (S_IWGRP | S_IWOTH)) != 0;
    if ((by_others && (info.st_mode & S_ISVTX) == 0) || (info.st_uid != 0 && info.st_uid != user)) {
      continue;
    }
    const bool may_write = user == 0 || (info.st_mode & S_IWOTH) != 0 ||
                           (info.st_uid == user && (info.st_mode & S_IWUSR) != 0);
    if (may_write && (mounted.f_flag & (ST_RDONLY | ST_NOEXEC)) == 0) return true;
  }
  return false;
}

struct Descriptors {
  unsigned long used = 0, soft = ~0ul, hard = ~0ul;
};
Descriptors descriptors(const Target& target) {
  Descriptors found;
  const std::string limits = read_text(target.proc("limits"));
  if (const std::size_t at = limits.find("Max open files"); at != limits.npos) {
    // "unlimited" stays what it is.
    std::sscanf(limits.c_str() + at, "Max open files %lu %lu", &found.soft, &found.hard);
  }
  if (DIR* folder = ::opendir(target.proc("fd").c_str())) {
    while (const dirent* entry = ::readdir(folder)) found.used += entry->d_name[0] != '.';
    ::closedir(folder);
  }
  return found;
}

bool may_raise_limits(const Target& target) {
  constexpr int sys_resource = 24;  // CAP_SYS_RESOURCE
  return (std::strtoull(target.status("CapEff").c_str(), nullptr, 16) >> sys_resource & 1) != 0;
}

// Where it gave up its privileges its files in /proc are root's (cli/lender.hpp).
bool may_look_at_itself(const Target& target) {
  struct stat info {};
  const std::string pid = std::to_string(target.pid());
  const uid_t user = user_of(target);
  return user == 0 || ::stat(target.proc("task/" + pid + "/syscall").c_str(), &info) != 0 ||
         info.st_uid == user;
}

std::string name_of(const Target& target, pid_t tid) {
  std::string name = read_text(target.proc("task/" + std::to_string(tid) + "/comm"));
  if (!name.empty()) name.pop_back();
  return "thread " + std::to_string(tid) + " (" + name + ")";
}

Prospect attaching(const Target& target) {
  std::string why_not;
  const std::vector<Victim> victims = find_victims(target, stack_needed, &why_not);
  if (!victims.empty()) {
    return {"attach", true,
            "through " + name_of(target, victims.front().tid) +
                ", which sleeps in a plain system call and is borrowed for some 100 us"};
  }
  return {"attach", true,
          "once a thread makes a plain system call (threads now: " + why_not +
              "); it is borrowed for some 100 us"};
}

// What hooks and patches need beside room near the functions.
std::string needs_of_jumps(const Target& target) {
  const std::vector<Thread> deaf = blocking_traps(target.pid());
  if (deaf.empty()) return "";
  return std::to_string(deaf.size()) + (deaf.size() == 1 ? " thread blocks" : " threads block") +
         " SIGTRAP (" + deaf.front().name + (deaf.size() > 1 ? ", ..." : "") +
         "): each is stopped for some 10 us to open it";
}

Prospect modules(const Target& target) {
  Prospect prospect{"modules", true, ""};
  std::string spaces;
  for (const char* space : {"mnt", "pid", "user", "net"}) {
    const std::string theirs = link_of(target.proc(std::string("ns/") + space));
    if (theirs.empty() || theirs == link_of(std::string("/proc/self/ns/") + space)) continue;
    spaces += (spaces.empty() ? "in a namespace of its own: " : ", ") +
              std::string(space == std::string("mnt") ? "mount" : space);
  }
  if (!spaces.empty()) add(prospect.text, spaces);
  if (link_of(target.proc("root")) != "/") add(prospect.text, "in a root of its own");
  if (!prospect.text.empty()) add(prospect.text, "what it cannot open is handed to it");
  if (!has_proc(target)) {
    if (!has_folder(target)) {
      return {
          prospect.what, false,
          "there is neither a /proc in its root nor a folder that it may write a copy to (/run, "
          "/tmp); mount /proc there"};
    }
    add(prospect.text,
        "there is no /proc in its root, so what is unloaded stays in memory: nobody can tell that "
        "no "
        "thread is inside; mount one there");
  }
  if (!may_look_at_itself(target)) {
    add(prospect.text,
        "it gave up its privileges and may not look at its own threads: root opens their files for "
        "it");
  }
  // As base/descriptor_room.hpp does it.
  constexpr unsigned long wanted = 16;
  if (const Descriptors has = descriptors(target); has.used + wanted > has.soft) {
    if (has.soft < has.hard || may_raise_limits(target)) {
      add(prospect.text, "its limit of descriptors, which are used up, is raised for moments");
    } else {
      prospect.possible = false;
      add(prospect.text,
          "all descriptors that it may have are in use; raise its limit: prlimit --pid " +
              std::to_string(target.pid()) + " --nofile");
    }
  }
  return prospect;
}

}  // namespace

Result<std::vector<Prospect>> prospects(int pid, bool is_attached) {
  auto target = Target::open(pid);
  if (!target) return pass(target);
  std::vector<Prospect> all;
  if (!is_attached) all.push_back(attaching(*target));
  all.push_back(modules(*target));
  const bool can_load = all.back().possible;
  const std::string needs = needs_of_jumps(*target);
  for (Prospect jumps :
       {library_functions(*target), own_functions(*target, link_of(target->proc("exe")))}) {
    if (!can_load) {
      jumps = {jumps.what, false, "they come in modules"};
    } else if (!has_proc(*target)) {
      jumps = {jumps.what, false,
               "there is no /proc in its root: nobody can tell where its threads are"};
    }
    if (jumps.possible && !needs.empty()) add(jumps.text, needs);
    all.push_back(std::move(jumps));
  }
  return all;
}

}  // namespace molt::attach
