#include <fcntl.h>
#include <unistd.h>

#include <chrono>
#include <condition_variable>
#include <mutex>

#include "head.hpp"

namespace http_files {
namespace {

std::mutex mutex;
std::condition_variable something_arrived;

}  // namespace

void await_file(int root, const char* path, int patience_s) {
  if (patience_s <= 0) return;
  std::unique_lock lock(mutex);
  something_arrived.wait_for(lock, std::chrono::seconds(patience_s),
                             [&] { return ::faccessat(root, path + 1, F_OK, 0) == 0; });
}

void announce_file() {
  std::lock_guard lock(mutex);
  something_arrived.notify_all();
}

}  // namespace http_files
