// A livepatch for a library of any program: sendmsg() of the C library counts.
#include <molt/livepatch.hpp>

#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <atomic>
#include <string>

MOLT_PARAM(unsigned long, sent, 0, "calls since the patch came", 0)

static std::atomic<unsigned long> calls;

extern "C" {
static ssize_t new_sendmsg(int socket, const msghdr* message, int flags) {
  const std::string text = std::to_string(calls.fetch_add(1, std::memory_order_relaxed) + 1);
  molt::param<unsigned long>::set(&sent, text.c_str());
  return syscall(SYS_sendmsg, socket, message, flags);
}
}

MOLT_MODULE("counted_sends", "1", "Apache-2.0", "sendmsg() counts its calls")
MOLT_PATCH(MOLT_OBJECT("libc.so.6", MOLT_REPLACE("sendmsg", new_sendmsg)))
