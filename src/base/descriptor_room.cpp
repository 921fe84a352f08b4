#include "base/descriptor_room.hpp"

#include <fcntl.h>
#include <sys/resource.h>

#include <algorithm>
#include <climits>
#include <mutex>
#include <utility>

namespace molt {
namespace {

// More than any operation has open at once.
constexpr std::size_t wanted = 16;

// Leaked on purpose: a thread of the runtime may come here at the very end of the process.
struct Room {
  std::mutex mutex;
  int users = 0;
  bool is_raised = false;
  rlimit before = {};
  rlimit raised = {};
};
Room& room() {
  static auto* r = new Room;
  return *r;
}

// Looks for free numbers, from the limit down, and opens nothing: to have some for a moment, and to close them
// again, would harm a host that closes all and opens its own just then.
bool has_room() {
  rlimit limit{};
  if (getrlimit(RLIMIT_NOFILE, &limit) != 0) return true;
  std::size_t found = 0;
  for (int fd = static_cast<int>(std::min<rlim_t>(limit.rlim_cur, INT_MAX)); fd-- > 0;) {
    if (fcntl(fd, F_GETFD) < 0 && ++found == wanted) return true;
  }
  return false;
}

// Beyond what is open already: a limit may have been lowered below that.
void raise_locked(Room& r) {
  if (getrlimit(RLIMIT_NOFILE, &r.before) != 0) return;
  constexpr rlim_t most = rlim_t{1} << 20;
  for (rlim_t limit = r.before.rlim_cur + 4 * wanted; limit < most; limit *= 2) {
    r.raised = {limit, std::max(limit, r.before.rlim_max)};
    if (setrlimit(RLIMIT_NOFILE, &r.raised) != 0) {
      r.raised = {r.before.rlim_max, r.before.rlim_max};
      if (r.before.rlim_cur == r.before.rlim_max || setrlimit(RLIMIT_NOFILE, &r.raised) != 0)
        return;
      r.is_raised = true;
      return;
    }
    r.is_raised = true;
    if (has_room()) return;
  }
}

void put_back_locked(Room& r) {
  if (!r.is_raised) return;
  r.is_raised = false;
  rlimit now = {};
  if (getrlimit(RLIMIT_NOFILE, &now) != 0 || now.rlim_cur != r.raised.rlim_cur ||
      now.rlim_max != r.raised.rlim_max) {
    return;  // D1
  }
  static_cast<void>(setrlimit(RLIMIT_NOFILE, &r.before));
}

}  // namespace

DescriptorRoom::DescriptorRoom() {
  Room& r = room();
  std::lock_guard lock(r.mutex);
  ++r.users;
  if (has_room()) return;
  if (!r.is_raised) raise_locked(r);
  is_there_ = has_room();
}

DescriptorRoom::~DescriptorRoom() {
  Room& r = room();
  std::lock_guard lock(r.mutex);
  if (r.users > 0 && --r.users == 0) put_back_locked(r);
}

void DescriptorRoom::before_fork() { room().mutex.lock(); }

void DescriptorRoom::after_fork(bool child) {
  Room& r = room();
  // Its only thread may be one that has room here: that one puts nothing back.
  if (child && std::exchange(r.users, 0) > 0) put_back_locked(r);
  r.mutex.unlock();
}

}  // namespace molt
