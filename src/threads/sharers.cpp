#include "threads/sharers.hpp"

#include <dirent.h>
#include <fcntl.h>
#include <linux/kcmp.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "base/own_fd.hpp"
#include "threads/procfs.hpp"

namespace molt::threads {
namespace {

// Whether anything is there to be waited for, without waiting for it: not even a zombie is touched.
bool has_children() {
  siginfo_t info;
  return waitid(P_ALL, 0, &info, WEXITED | WNOHANG | WNOWAIT | __WALL) == 0 || errno != ECHILD;
}

// The sizes of a process's memory, which everybody may read. False: the process is gone.
bool read_sizes(pid_t pid, char (&text)[64]) {
  char path[32];
  std::snprintf(path, sizeof path, "/proc/%d/statm", pid);
  const OwnFd fd = own_open(path, O_RDONLY);
  memset(text, 0, sizeof text);
  if (!fd || read(fd.get(), text, sizeof text - 1) <= 0) return false;
  if (char* end = strchr(text, ' ')) *end = '\0';  // the first: how much is mapped
  return true;
}

bool may_share(pid_t child) {
  const long compared = syscall(SYS_kcmp, getpid(), child, KCMP_VM, 0, 0);
  if (compared == 0) return true;
  if (compared > 0 || errno == ESRCH) return false;
  // Not allowed. The same memory has the same size, and ours did not change meanwhile.
  char before[64], theirs[64], after[64];
  const pid_t own = getpid();
  if (!read_sizes(own, before)) return true;
  if (!read_sizes(child, theirs)) return false;
  return !read_sizes(own, after) || strcmp(before, after) != 0 || strcmp(before, theirs) == 0;
}

}  // namespace

std::vector<pid_t> sharers() {
  std::vector<pid_t> found;
  if (!has_children()) return found;
  DIR* listing = opendir("/proc");
  if (listing == nullptr) return found;
  const pid_t own = getpid();
  while (const dirent* entry = readdir(listing)) {
    const int pid = atoi(entry->d_name);
    if (pid <= 0 || pid == own) continue;
    char path[32];
    std::snprintf(path, sizeof path, "/proc/%d/stat", pid);
    constexpr int parent_field = 4;
    if (read_stat_field(path, parent_field) != static_cast<std::uint64_t>(own)) continue;
    if (may_share(pid)) found.push_back(pid);
  }
  closedir(listing);
  return found;
}

}  // namespace molt::threads
