#include "process.hpp"

#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <stdexcept>

extern char** environ;

namespace bench {
namespace {

std::int64_t entries_of(const char* folder) {
  std::int64_t n = 0;
  for ([[maybe_unused]] const auto& entry : std::filesystem::directory_iterator(folder)) ++n;
  return n;
}

}  // namespace

Holdings holdings() {
  Holdings h;
  // Not statm: the kernel keeps those counts per CPU and adds them up only now and then.
  std::ifstream rollup("/proc/self/smaps_rollup");
  for (std::string line; std::getline(rollup, line);) {
    if (line.starts_with("Rss:")) h.rss_kib = std::stoll(line.substr(4));
  }
  std::ifstream maps("/proc/self/maps");
  for (std::string line; std::getline(maps, line);) ++h.mappings;
  maps.close();
  rollup.close();
  h.descriptors = entries_of("/proc/self/fd") - 1;  // the one that reads the folder
  h.threads = entries_of("/proc/self/task");
  return h;
}

std::string run_in_new_process(const std::string& scenario) {
  int ends[2];
  if (pipe(ends) != 0) throw std::runtime_error("no pipe");
  posix_spawn_file_actions_t actions;
  posix_spawn_file_actions_init(&actions);
  posix_spawn_file_actions_adddup2(&actions, ends[1], STDOUT_FILENO);
  posix_spawn_file_actions_addclose(&actions, ends[0]);
  posix_spawn_file_actions_addclose(&actions, ends[1]);
  std::string program = std::filesystem::read_symlink("/proc/self/exe");
  std::string option = "--scenario", name = scenario;
  char* arguments[] = {program.data(), option.data(), name.data(), nullptr};
  pid_t child = -1;
  int error = posix_spawn(&child, program.c_str(), &actions, nullptr, arguments, environ);
  posix_spawn_file_actions_destroy(&actions);
  close(ends[1]);
  std::string output;
  char buffer[4096];
  while (error == 0) {
    ssize_t n = read(ends[0], buffer, sizeof buffer);
    if (n < 0 && errno == EINTR) continue;
    if (n <= 0) break;
    output.append(buffer, static_cast<std::size_t>(n));
  }
  close(ends[0]);
  int status = -1;
  if (error == 0) waitpid(child, &status, 0);
  if (error != 0 || status != 0) {
    throw std::runtime_error("the process for " + scenario + " failed: " + output);
  }
  return output;
}

}  // namespace bench
