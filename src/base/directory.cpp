#include "base/directory.hpp"

#include <dirent.h>
#include <fcntl.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/file.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <mutex>
#include <vector>

#include "base/fd.hpp"
#include "base/futex.hpp"
#include "base/sanitizer.hpp"

namespace molt {
namespace {

constexpr const char* owner_file = "owner";
constexpr const char* store_folder = "store";

// --- who a process is ---------------------------------------------------------------------------

std::string read_small_file(int at, const char* path) {
  Fd fd(openat(at, path, O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK));
  char text[1024];
  ssize_t n = fd ? read(fd.get(), text, sizeof text) : -1;
  return n > 0 ? std::string(text, static_cast<std::size_t>(n)) : std::string();
}

// When a process began, in clock ticks since boot, field 22 of its stat; 0 if that cannot be read.
std::uint64_t start_of(int pid) {
  const std::string stat =
      read_small_file(AT_FDCWD, ("/proc/" + std::to_string(pid) + "/stat").c_str());
  // The second field is the name, which may contain anything; the third begins behind the last ')'.
  std::size_t at = stat.rfind(')');
  for (int field = 2; field < 22 && at != std::string::npos; ++field) at = stat.find(' ', at + 1);
  return at == std::string::npos ? 0 : strtoull(stat.c_str() + at, nullptr, 10);
}

// With a process id, what tells one process from all others that ever were.
struct Identity {
  std::uint64_t pid_namespace = 0;  // 0: not known, and equal to none
  std::uint64_t start = 0;
};

Identity identity_of_this_process() {
  struct stat space {};
  if (stat("/proc/self/ns/pid", &space) != 0) return {};
  return {space.st_ino, start_of(getpid())};
}

bool read_owner(const Fd& directory, Identity& owner) {
  unsigned long long space = 0;
  unsigned long long start = 0;
  const std::string text = read_small_file(directory.get(), owner_file);
  if (std::sscanf(text.c_str(), "pidns=%llu start=%llu", &space, &start) != 2) return false;
  owner = {space, start};
  return true;
}

Status write_owner(const Fd& directory, const Identity& owner) {
  Fd fd(openat(directory.get(), owner_file, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC | O_NOFOLLOW,
               0600));
  if (!fd) return fail_errno(errno, "cannot write its file `owner`");
  char text[64];
  const int n = std::snprintf(text, sizeof text, "pidns=%llu start=%llu\n",
                              static_cast<unsigned long long>(owner.pid_namespace),
                              static_cast<unsigned long long>(owner.start));
  if (write(fd.get(), text, static_cast<std::size_t>(n)) != n) {
    return fail_errno(errno, "cannot write its file `owner`");
  }
  return {};
}

// --- what may be removed ------------------------------------------------------------------------

// A socket's file outlives its process, but answers no more: then nobody listens on it. A server
// that stops in good order removes the file first.
enum class Socket { none, deaf, hears };
Socket socket_in(const Fd& directory) {
  struct stat info {};
  if (fstatat(directory.get(), control_socket_name, &info, AT_SYMLINK_NOFOLLOW) != 0 ||
      !S_ISSOCK(info.st_mode)) {
    return Socket::none;
  }
  Fd fd(socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  if (!fd) return Socket::hears;
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  std::snprintf(address.sun_path, sizeof address.sun_path, "/proc/thread-self/fd/%d/%s",
                directory.get(), control_socket_name);
  const bool is_deaf =
      connect(fd.get(), reinterpret_cast<sockaddr*>(&address), sizeof address) != 0 &&
      errno == ECONNREFUSED;
  return is_deaf ? Socket::deaf : Socket::hears;
}

// Files of a process that has just made them and is not done yet look like leftovers.
bool is_fresh(const Fd& directory) {
  constexpr std::int64_t settled_s = 2;
  struct stat info {};
  return fstat(directory.get(), &info) != 0 || time(nullptr) - info.st_mtime < settled_s;
}

// Whether the process `pid` that made this directory is dead. What cannot be known is not dead.
bool is_abandoned(const Fd& directory, int pid, const Identity& self) {
  Identity owner;
  if (!read_owner(directory, owner)) {
    // What sweeps old files away leaves sockets that are in use.
    return socket_in(directory) != Socket::hears && !is_fresh(directory);
  }
  if (self.pid_namespace != 0 && owner.pid_namespace == self.pid_namespace) {
    if (pid == getpid()) return true;  // an earlier process of this number, or what exec left
    if (kill(pid, 0) != 0 && errno == ESRCH) return true;
    const std::uint64_t start = start_of(pid);
    return start != 0 && start != owner.start;
  }
  // Another pid namespace, in which it cannot be looked for: a container of the past, or a living
  // one that shares this directory with us.
  return socket_in(directory) == Socket::deaf && !is_fresh(directory);
}

std::vector<std::string> names_in(const Fd& directory) {
  std::vector<std::string> names;
  const int copy = openat(directory.get(), ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  DIR* listing = copy < 0 ? nullptr : fdopendir(copy);
  if (listing == nullptr) {
    if (copy >= 0) close(copy);
    return names;
  }
  while (const dirent* entry = readdir(listing)) {
    if (entry->d_name[0] != '.') names.emplace_back(entry->d_name);
  }
  closedir(listing);
  return names;
}

Fd open_folder(const Fd& parent, const char* name) {
  return Fd(openat(parent.get(), name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC));
}

// What Molt puts into a process's directory (D2). `owner` is last: without it nobody could tell
// whose the rest is.
void empty(const Fd& directory) {
  if (Fd store = open_folder(directory, store_folder)) {
    for (const std::string& file : names_in(store)) unlinkat(store.get(), file.c_str(), 0);
    unlinkat(directory.get(), store_folder, AT_REMOVEDIR);
  }
  unlinkat(directory.get(), control_socket_name, 0);
  unlinkat(directory.get(), owner_file, 0);
}

bool has_copies(const Fd& directory) {
  const Fd store = open_folder(directory, store_folder);
  return store && !names_in(store).empty();
}

bool is_ours_alone(const struct stat& info) {
  return info.st_uid == geteuid() && (info.st_mode & (S_IWGRP | S_IWOTH)) == 0;
}

// A few of them each time, beginning at another place: of a thousand processes that start at once each
// would look at all others.
void remove_abandoned(const Fd& folder, const Identity& self) {
  constexpr std::size_t most = 32;
  const std::vector<std::string> names = names_in(folder);
  for (std::size_t i = 0; i < std::min(names.size(), most); ++i) {
    const std::string& name = names[(static_cast<std::size_t>(getpid()) * most + i) % names.size()];
    if (name.find_first_not_of("0123456789") != std::string::npos || name.size() > 9) continue;
    Fd directory = open_folder(folder, name.c_str());
    struct stat info {};
    if (!directory || fstat(directory.get(), &info) != 0 || !is_ours_alone(info)) continue;
    if (atoi(name.c_str()) == getpid() || !is_abandoned(directory, atoi(name.c_str()), self)) {
      continue;
    }
    empty(directory);
    unlinkat(folder.get(), name.c_str(), AT_REMOVEDIR);
  }
}

// --- making one ---------------------------------------------------------------------------------

// DIRECTORY itself; `shared` says whether every user may write to it.
Result<Fd> open_candidate(const std::string& path, bool& shared) {
  Fd fd(open(path.c_str(), O_PATH | O_DIRECTORY | O_CLOEXEC));
  struct stat info {};
  if (!fd || fstat(fd.get(), &info) != 0) return fail_errno(errno, "%s", path.c_str());
  if (info.st_uid != 0 && info.st_uid != geteuid()) {
    return fail(EACCES, "%s: belongs to user %u", path.c_str(), info.st_uid);
  }
  // Whoever may rename our folder could put another one in its place.
  if ((info.st_mode & (S_IWGRP | S_IWOTH)) != 0 && (info.st_mode & S_ISVTX) == 0) {
    return fail(EACCES, "%s: others may write to it", path.c_str());
  }
  shared = (info.st_mode & S_IWOTH) != 0;
  return fd;
}

// A folder that is ours alone, made if need be.
Result<Fd> open_private(const Fd& parent, const std::string& name, bool& made) {
  made = mkdirat(parent.get(), name.c_str(), 0700) == 0;
  if (!made && errno != EEXIST) return fail_errno(errno, "cannot make %s", name.c_str());
  // The host's umask may have taken our own rights away.
  if (made) fchmodat(parent.get(), name.c_str(), 0700, 0);
  Fd fd = open_folder(parent, name.c_str());
  struct stat info {};
  if (!fd || fstat(fd.get(), &info) != 0) return fail_errno(errno, "%s", name.c_str());
  if (!is_ours_alone(info)) {
    return fail(EACCES, "%s: belongs to user %u, with mode %03o", name.c_str(), info.st_uid,
                info.st_mode & 0777);
  }
  return fd;
}

// Keeps makers (shared) and removers (exclusive) of directories in one folder apart, so that a
// process id that comes into use again is not swept away by one who had just found it dead. A
// process may be stopped while it holds the lock: nobody waits long.
bool try_lock(const Fd& folder, int operation, int timeout_ms) {
  const Deadline deadline = Deadline::in_ms(timeout_ms);
  while (flock(folder.get(), operation | LOCK_NB) != 0) {
    if (errno != EWOULDBLOCK || deadline.passed()) return false;
    const timespec moment{0, 1'000'000};
    nanosleep(&moment, nullptr);
  }
  return true;
}

Result<std::string> make_in(const std::string& candidate, const Identity& self) {
  bool shared = false;
  auto base = open_candidate(candidate, shared);
  if (!base) return pass(base);
  const std::string folder_name = shared ? "molt-" + std::to_string(geteuid()) : "molt";
  bool made = false;
  auto folder = open_private(*base, folder_name, made);
  if (!folder) return fail(folder.error().code, "%s/%s", candidate.c_str(), folder.error().detail);

  constexpr int patience_ms = 100;
  if (try_lock(*folder, LOCK_EX, 0)) remove_abandoned(*folder, self);
  try_lock(*folder, LOCK_SH, patience_ms);  // instead of the other; let go by close()

  const std::string name = std::to_string(getpid());
  const std::string path = candidate + "/" + folder_name + "/" + name;
  auto directory = open_private(*folder, name, made);
  if (!directory)
    return fail(directory.error().code, "%s: %s", path.c_str(), directory.error().detail);
  if (!made) {
    if (!is_abandoned(*directory, getpid(), self)) {
      return fail(EBUSY, "%s: is a process's of another pid namespace", path.c_str());
    }
    empty(*directory);
  }
  if (Status ok = write_owner(*directory, self); !ok) {
    // Without it nobody could tell whose this is, neither who comes next nor we.
    empty(*directory);
    unlinkat(folder->get(), name.c_str(), AT_REMOVEDIR);
    return fail(ok.error().code, "%s: %s", path.c_str(), ok.error().detail);
  }
  return path;
}

// Absolute paths only: the host may change its working directory.
std::vector<std::string> candidates(const std::string& preferred) {
  std::vector<std::string> all;
  if (!preferred.empty()) {
    char* absolute = realpath(preferred.c_str(), nullptr);
    all.emplace_back(absolute != nullptr ? absolute : preferred.c_str());
    free(absolute);
  }
  const auto add = [&](const char* path) {
    if (path != nullptr && path[0] == '/') all.emplace_back(path);
  };
  // Of a set-uid program's environment nothing is believed.
  add(secure_getenv("MOLT_DIRECTORY"));
  if (geteuid() == 0) add("/run");
  add(secure_getenv("XDG_RUNTIME_DIR"));
  add(("/run/user/" + std::to_string(geteuid())).c_str());
  add("/tmp");
  return all;
}

// Somebody has removed it, or the process has another root since.
bool is_missing(const std::string& path) {
  struct stat info {};
  return stat(path.c_str(), &info) != 0 && (errno == ENOENT || errno == ENOTDIR);
}

// The directory of one process. Never freed: the child of a fork may find its parent's, with a
// mutex that nobody will unlock.
struct Made {
  explicit Made(int pid_) : pid(pid_) {}
  const int pid;
  const Made* parents = nullptr;  // for leak checkers, which shall not take it for lost
  std::mutex mutex;
  std::string path;  // empty: not made yet, or removed
};
std::atomic<Made*> current{nullptr};

Made& made_by_this_process() {
  const int pid = getpid();
  Made* known = current.load(std::memory_order_acquire);
  if (known != nullptr && known->pid == pid) return *known;
  auto* fresh = new Made(pid);
  while (known == nullptr || known->pid != pid) {
    fresh->parents = known;
    if (current.compare_exchange_weak(known, fresh, std::memory_order_acq_rel,
                                      std::memory_order_acquire)) {
      return *fresh;
    }
  }
  delete fresh;
  return *known;
}

}  // namespace

Result<std::string> process_directory(const std::string& preferred) {
  Made& made = made_by_this_process();
  std::lock_guard lock(made.mutex);
  if (!made.path.empty() && !is_missing(made.path)) return made.path;
  made.path.clear();

  const Identity self = identity_of_this_process();
  std::string refused;
  for (const std::string& candidate : candidates(preferred)) {
    auto path = make_in(candidate, self);
    if (path) {
      made.path = *path;
      return made.path;
    }
    if (!refused.empty()) refused += "; ";
    refused += path.error().detail;
  }
  return fail(EACCES, "no private directory can be had, set MOLT_DIRECTORY to one: %s",
              refused.c_str());
}

void remove_process_directory() {
  Made* made = current.load(std::memory_order_acquire);
  if (made == nullptr || made->pid != getpid()) return;
  std::lock_guard lock(made->mutex);
  if (made->path.empty()) return;
  Fd directory(open(made->path.c_str(), O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC));
  struct stat info {};
  if (directory && fstat(directory.get(), &info) == 0 && is_ours_alone(info)) {
    if (under_sanitizer() && has_copies(directory)) return;  // D4
    empty(directory);
    rmdir(made->path.c_str());
  }
  made->path.clear();
}

void forget_process_directory() {
  auto* fresh = new Made(getpid());
  fresh->parents = current.load(std::memory_order_acquire);
  current.store(fresh, std::memory_order_release);
}

bool allows_exec(const std::string& path) {
  struct statvfs info {};
  return statvfs(path.c_str(), &info) == 0 && (info.f_flag & ST_NOEXEC) == 0;
}

}  // namespace molt
