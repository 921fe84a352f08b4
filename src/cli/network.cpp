#include "cli/network.hpp"

#include <fmt/format.h>

#include <fcntl.h>
#include <sched.h>
#include <sys/stat.h>

namespace molt::cli {

NetworkOf::NetworkOf(const Process& process) {
  const Fd theirs(
      ::open(fmt::format("/proc/{}/ns/net", process.pid).c_str(), O_RDONLY | O_CLOEXEC));
  Fd own(::open("/proc/thread-self/ns/net", O_RDONLY | O_CLOEXEC));
  struct stat there {
  }, here{};
  if (!theirs || !own || ::fstat(theirs.get(), &there) != 0 || ::fstat(own.get(), &here) != 0 ||
      (there.st_ino == here.st_ino && there.st_dev == here.st_dev)) {
    return;
  }
  if (::setns(theirs.get(), CLONE_NEWNET) == 0) own_ = std::move(own);
}

NetworkOf::~NetworkOf() {
  if (own_) ::setns(own_.get(), CLONE_NEWNET);
}

}  // namespace molt::cli
