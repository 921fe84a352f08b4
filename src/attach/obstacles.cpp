#include "attach/obstacles.hpp"

#include "attach/borrow.hpp"
#include "attach/freezer.hpp"
#include "attach/seccomp.hpp"
#include "attach/target.hpp"
#include "attach/tracer.hpp"
#include "attach/victim.hpp"
#include "elf/input.hpp"

#include <fcntl.h>
#include <limits.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <sys/xattr.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cstdlib>
#include <cstring>
#include <thread>

namespace molt::attach {

namespace {

struct Process {
  int pid;
  std::string status;

  std::string proc(const char* file) const { return "/proc/" + std::to_string(pid) + "/" + file; }
  std::string line(const char* name) const {
    const std::string key = "\n" + std::string(name) + ":";
    const std::size_t at = status.find(key);
    if (at == status.npos) return "";
    const std::size_t begin = status.find_first_not_of(" \t", at + key.size());
    return begin == status.npos ? "" : status.substr(begin, status.find('\n', begin) - begin);
  }
};

int yama() {
  const std::string text = read_text("/proc/sys/kernel/yama/ptrace_scope");
  return text.empty() ? 0 : std::atoi(text.c_str());
}

// By what it needs of a sanitizer's runtime, whose interceptors the runtime's calls of the C library would reach.
std::optional<Obstacle> check_sanitizer(const elf::Input& input) {
  const auto sections = elf::Sections::read(input);
  const auto symbols = sections ? sections->of_type(SHT_DYNSYM) : std::nullopt;
  if (!symbols || symbols->sh_link >= sections->size()) return std::nullopt;
  const auto names = sections->content(input, sections->header(symbols->sh_link));
  if (!names) return std::nullopt;
  const std::string_view text(reinterpret_cast<const char*>(names->data()), names->size());
  const auto has = [&](const char* name) {
    return text.find('\0' + std::string(name) + '\0') != text.npos;
  };
  if (has("__tsan_init")) {
    return Obstacle{
        ENOEXEC,
        "it is built with the thread sanitizer, which ends a program when a thread that it "
        "has not seen begin calls the C library; use a build without, or make it a host"};
  }
  if (has("__msan_init")) {
    return Obstacle{
        ENOEXEC,
        "it is built with the memory sanitizer, which takes what code without it has written "
        "for uninitialised, and ends; use a build without"};
  }
  return std::nullopt;
}

// The dynamic loader can be told to run a program (ld.so PROGRAM), and is that process's program then.
bool is_loader(const Fd& fd) {
  char path[PATH_MAX] = {};
  const std::string link = "/proc/self/fd/" + std::to_string(fd.get());
  if (::readlink(link.c_str(), path, sizeof path - 1) < 0) return false;
  const std::string_view name(path);
  return name.find("/ld-linux-x86-64.so") != name.npos || name.find("/ld-2.") != name.npos;
}

// `maps`: of a process that runs it, or empty. Nothing where it cannot be read: that is another question.
std::optional<Obstacle> check_program(const Fd& fd, const std::string& maps) {
  auto input = elf::Input::of(fd.get());
  if (!input) return std::nullopt;
  auto header = input->read(0, sizeof(Elf64_Ehdr));
  if (!header) return std::nullopt;
  const auto ehdr = *elf::read<Elf64_Ehdr>(*header, 0);
  if (ehdr.e_ident[EI_CLASS] != ELFCLASS64 || ehdr.e_machine != EM_X86_64) {
    return Obstacle{ENOEXEC, "it is not an x86-64 program; this build of Molt is for those only"};
  }
  auto segments = input->read(ehdr.e_phoff, std::uint64_t{ehdr.e_phnum} * sizeof(Elf64_Phdr));
  bool has_loader = false;
  std::string loader;
  for (std::uint64_t at = 0; segments; at += sizeof(Elf64_Phdr)) {
    auto segment = elf::read<Elf64_Phdr>(*segments, at);
    if (!segment) break;
    if (segment->p_type != PT_INTERP) continue;
    has_loader = true;
    constexpr std::uint64_t most = 4096;
    if (auto name = input->read(segment->p_offset, std::min(segment->p_filesz, most))) {
      loader.assign(reinterpret_cast<const char*>(name->data()), name->size());
    }
  }
  const auto is_run_by = [&](const char* name) { return maps.find(name) != maps.npos; };
  // What is mapped may have another name: the loader is the C library there.
  if (loader.find("/ld-musl-") != loader.npos || is_run_by("/ld-musl-")) {
    return Obstacle{
        ENOEXEC,
        "its C library is musl, whose threads and loader are not what the runtime needs; "
        "run the program on glibc"};
  }
  if (!has_loader && !is_loader(fd)) {
    if (is_run_by("/ld-linux-x86-64.so") || is_run_by("/ld-2.")) {
      return Obstacle{
          ENOEXEC,
          "another program executes it in place of the processor (valgrind, an emulator), "
          "and would be changed, not it; run it by itself"};
    }
    return Obstacle{
        ENOEXEC,
        "it is linked statically, so nothing can be loaded into it; link it dynamically, "
        "or make it a host"};
  }
  return check_sanitizer(*input);
}

Fd open_program(const std::string& path) {
  return Fd(::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK));
}

void check_permission(const Process& process, std::vector<Obstacle>& all) {
  if (const pid_t tracer = foreign_tracer(process.pid); tracer != 0) {
    all.push_back({EBUSY, "process " + std::to_string(tracer) +
                              " traces it (a debugger, strace); end that first"});
    return;
  }
  const Fd memory(::open(process.proc("mem").c_str(), O_RDWR | O_CLOEXEC));
  if (memory) {
    if (yama() >= 3) {
      all.push_back(
          {EPERM,
           "tracing is forbidden until the next boot (/proc/sys/kernel/yama/ptrace_scope is 3)"});
    } else if (yama() == 2 && geteuid() != 0) {
      all.push_back(
          {EPERM, "only root may trace (/proc/sys/kernel/yama/ptrace_scope is 2); be root"});
    } else if (yama() == 1 && geteuid() != 0) {
      all.push_back(
          {EPERM,
           "only descendants may be traced (/proc/sys/kernel/yama/ptrace_scope is 1); be root, "
           "or start it with `molt run`"});
    }
    return;
  }
  const int code = errno;
  if (code == ENOENT || code == ESRCH) return;
  const std::string uids = process.line("Uid");
  const auto uid = static_cast<uid_t>(std::strtoul(uids.c_str(), nullptr, 10));
  if (geteuid() == 0) {
    all.push_back(
        {EPERM,
         "the kernel does not let you trace it, although you are root: it has capabilities "
         "or a user namespace that you have not, or a security module forbids it; be root "
         "outside of any container"});
  } else if (uid != geteuid()) {
    all.push_back({EPERM, "it belongs to another user (uid " + std::to_string(uid) +
                              "); be that user or root"});
  } else {
    all.push_back({EPERM,
                   "the kernel does not let you trace it: it gained privileges (set-uid, file "
                   "capabilities), or asked not to be looked at (PR_SET_DUMPABLE); be root"});
  }
}

// One thread that sleeps in a plain system call is stopped for some ten microseconds, as for an attach.
Status look_at_filters(int pid) {
  auto target = Target::open(pid);
  if (!target) return pass(target);
  // Who has just done something sleeps again soon.
  constexpr int tries = 200;
  std::vector<Victim> victims;
  for (int i = 0; i < tries && victims.empty(); ++i) {
    if (i > 0) std::this_thread::sleep_for(std::chrono::milliseconds(5));
    victims = find_victims(*target, stack_needed, nullptr);
  }
  for (const Victim& victim : victims) {
    auto looked = traced<bool>([&]() -> Result<bool> {
      Tracer tracer(victim.tid);
      if (auto done = tracer.seize(); !done) return pass(done);
      auto stopped = tracer.stop();
      if (!stopped || !*stopped) return stopped;
      user_regs_struct registers;
      if (!tracer.get(registers) || !is_interrupted(registers)) return false;
      if (static_cast<long>(registers.orig_rax) != victim.shown_call()) return false;
      if (!tracer.rewind(registers)) return false;
      if (auto allowed = check_filters(victim.tid); !allowed) return pass(allowed);
      return true;
    });
    if (looked && *looked) return {};
    if (!looked && looked.error().code != EAGAIN) return pass(looked);
  }
  return fail(EAGAIN,
              "a seccomp filter guards it, which can be looked at only while a thread sleeps in a "
              "plain system call; try again");
}

}  // namespace

std::optional<Obstacle> standstill(int pid) {
  const Process process{pid, "\n" + read_text("/proc/" + std::to_string(pid) + "/status")};
  const std::string state = process.line("State");
  if (state.starts_with("T") || (state.starts_with("t") && foreign_tracer(pid) != 0)) {
    return Obstacle{EBUSY, "it is stopped; let it go on (kill -CONT) first"};
  }
  if (const auto frozen = find_freezer(pid)) {
    // What to do comes last: a long path may be cut off.
    return Obstacle{EBUSY,
                    "it is frozen, as a paused container is; let it go on: " + frozen->remedy()};
  }
  return std::nullopt;
}

std::vector<Obstacle> obstacles(int pid, Depth depth) {
  std::vector<Obstacle> all;
  Process process{pid, {}};
  process.status = "\n" + read_text(process.proc("status"));
  if (process.status.size() == 1) {
    all.push_back({ESRCH, "there is no such process"});
    return all;
  }
  if (const int group = std::atoi(process.line("Tgid").c_str()); group != pid) {
    all.push_back({ESRCH, "it is a thread of process " + std::to_string(group)});
    return all;
  }
  const std::string state = process.line("State");
  if (state.starts_with("Z") || state.starts_with("X")) {
    if (std::atoi(process.line("Threads").c_str()) > 1) {
      all.push_back(
          {ESRCH,
           "its first thread has ended while others run on, and the kernel shows the memory of a "
           "process by its first thread; a main() that waits for the others can be attached to"});
    } else {
      all.push_back({ESRCH, "it has ended already"});
    }
    return all;
  }
  if (process.line("VmSize").empty()) {
    all.push_back({ESRCH, "it is a thread of the kernel"});
    return all;
  }
  if (pid == getpid()) all.push_back({EINVAL, "it is this very program"});
  check_permission(process, all);
  if (const Fd fd = open_program(process.proc("exe"))) {
    if (auto found = check_program(fd, read_text(process.proc("maps")))) all.push_back(*found);
  }
  if (auto found = standstill(pid)) all.push_back(*found);
  if (depth == Depth::with_filters && all.empty() && process.line("Seccomp") == "2") {
    if (auto allowed = look_at_filters(pid); !allowed) {
      all.push_back({allowed.error().code, allowed.error().detail});
    }
  }
  return all;
}

std::optional<Obstacle> obstacle_to_preload(const std::string& path) {
  const Fd fd = open_program(path);
  struct stat info {};
  if (!fd || ::fstat(fd.get(), &info) != 0) return std::nullopt;
  char start[256] = {};
  const ssize_t bytes = ::pread(fd.get(), start, sizeof start - 1, 0);
  if (bytes < SELFMAG) return std::nullopt;
  if (start[0] == '#' && start[1] == '!') {
    const std::size_t begin = 2 + std::strspn(start + 2, " \t");
    return obstacle_to_preload({start + begin, std::strcspn(start + begin, " \t\n")});
  }
  if (std::memcmp(start, ELFMAG, SELFMAG) != 0) return std::nullopt;
  if (auto found = check_program(fd, "")) return found;
  const bool gains_user = (info.st_mode & S_ISUID) != 0 && info.st_uid != ::geteuid();
  const bool gains_group = (info.st_mode & S_ISGID) != 0 && info.st_gid != ::getegid();
  const bool gains_rights =
      ::geteuid() != 0 && ::fgetxattr(fd.get(), "security.capability", nullptr, 0) > 0;
  if (!gains_user && !gains_group && !gains_rights) return std::nullopt;
  return Obstacle{EPERM,
                  "it gains privileges (set-uid, set-gid, file capabilities), so its loader loads "
                  "nothing that it is told to; start it, then `molt attach` as root"};
}

Status refuse(int pid) {
  const auto all = obstacles(pid, Depth::untouched);
  if (all.empty()) return {};
  return fail(all.front().code, "process %d cannot be attached to: %s", pid,
              all.front().text.c_str());
}

}  // namespace molt::attach
