#include "running.hpp"

#include <dirent.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <string>

#include "base/directory.hpp"
#include "control/control.hpp"
#include "control/object.hpp"
#include "fake.hpp"

namespace test {

using namespace molt;

void Running::SetUp() {
  fake::reset();
  module::set_observer(control::observer());
  char path[] = "/tmp/molt-control-XXXXXX";
  ASSERT_NE(mkdtemp(path), nullptr);
  directory_ = path;
  options_ = {"tester", directory_, 0};
  limits_ = {};
}

void Running::start() {
  const Status started = control::start_with(options_, limits_);
  ASSERT_TRUE(started) << started.error().detail;
}

void Running::restart() {
  control::stop();
  start();
}

void Running::TearDown() {
  control::stop();
  remove_process_directory();
  fake::reset();
  std::filesystem::remove_all(directory_);
}

bool Running::serves_others() const {
  Client client = connect();
  return error_code(client.ask("molt.GetInfo")) == 0 &&
         text(client.ask("molt.Get", {{"path", "host/name"}}), "value") == "tester";
}

Fd file_with(const std::string& content) {
  Fd fd(memfd_create("test", MFD_CLOEXEC));
  EXPECT_EQ(write(fd.get(), content.data(), content.size()), static_cast<ssize_t>(content.size()));
  return fd;
}

pid_t molt_thread() {
  for (const auto& task : std::filesystem::directory_iterator("/proc/self/task")) {
    std::string name;
    std::getline(std::ifstream(task.path() / "comm"), name);
    if (name == "molt") return std::stoi(task.path().filename());
  }
  return 0;
}

int count_descriptors() {
  DIR* listing = opendir("/proc/thread-self/fd");
  int count = -1;  // the listing's own
  while (readdir(listing) != nullptr) ++count;
  closedir(listing);
  return count - 2;  // . and ..
}

}  // namespace test
