#include "attach/masks.hpp"

#include "attach/target.hpp"
#include "attach/tracer.hpp"

#include <dirent.h>
#include <signal.h>

#include <cerrno>
#include <cstdlib>

namespace molt::attach {

namespace {

constexpr std::uint64_t trap_bit = std::uint64_t{1} << (SIGTRAP - 1);

Status open_in(pid_t tid) {
  Tracer tracer(tid);
  if (auto done = tracer.seize(); !done) return done.error().code == EAGAIN ? Status() : done;
  auto is_stopped = tracer.stop();
  if (!is_stopped) return pass(is_stopped);
  if (!*is_stopped) return fail(EAGAIN, "thread %d is stopping for something else", tid);
  user_regs_struct registers;
  if (!tracer.get(registers)) return {};
  // What the kernel begins anew by itself is left to it.
  if (static_cast<long>(registers.orig_rax) >= 0 && static_cast<long>(registers.rax) == -EINTR &&
      !tracer.rewind(registers)) {
    return {};
  }
  std::uint64_t mask = 0;
  if (!tracer.get_mask(mask) || !tracer.set_mask(mask & ~trap_bit)) {
    return fail(EPERM, "the signal mask of thread %d cannot be changed", tid);
  }
  return {};
}

}  // namespace

std::vector<Thread> blocking_traps(int pid) {
  std::vector<Thread> found;
  const std::string tasks = "/proc/" + std::to_string(pid) + "/task";
  DIR* folder = opendir(tasks.c_str());
  if (folder == nullptr) return found;
  while (const dirent* entry = readdir(folder)) {
    const int tid = std::atoi(entry->d_name);
    if (tid <= 0) continue;
    const std::string status = "\n" + read_text(tasks + "/" + entry->d_name + "/status");
    const std::size_t mask = status.find("\nSigBlk:");
    if (mask == status.npos) continue;
    if ((std::strtoull(status.c_str() + mask + 8, nullptr, 16) & trap_bit) == 0) continue;
    const std::size_t name = status.find("\nName:\t");
    const std::size_t begin = name == status.npos ? status.size() : name + 7;
    found.push_back({tid, status.substr(begin, status.find('\n', begin) - begin)});
  }
  closedir(folder);
  return found;
}

Status open_traps(const std::vector<Thread>& threads) {
  auto done = traced<int>([&]() -> Result<int> {
    for (const Thread& thread : threads) {
      constexpr int tries = 5;
      Status opened;
      for (int i = 0; i < tries; ++i) {
        opened = open_in(thread.tid);
        if (opened || opened.error().code != EAGAIN) break;
      }
      if (!opened) return pass(opened);
    }
    return 0;
  });
  if (!done) return pass(done);
  return {};
}

}  // namespace molt::attach
