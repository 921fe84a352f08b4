// folder.hpp - a folder for one test, and programs that change files in it.
#pragma once

#include <gtest/gtest.h>
#include <sys/wait.h>

#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <string>

class Folder {
 public:
  Folder() {
    std::string name = testing::TempDir() + "molt-loaded-XXXXXX";
    if (mkdtemp(name.data()) == nullptr) ADD_FAILURE() << "mkdtemp: " << std::strerror(errno);
    path_ = name;
  }
  ~Folder() { std::filesystem::remove_all(path_); }
  Folder(const Folder&) = delete;
  Folder& operator=(const Folder&) = delete;
  std::string path(const std::string& file) const { return path_ + "/" + file; }

  // A shell command that must succeed, run in the folder. $1, $2... are the arguments.
  template <class... Arguments>
  void run(const std::string& command, const Arguments&... arguments) const {
    std::string line = "cd '" + path_ + "' && sh -ec '" + command + "' sh";
    ((line += " '" + std::string(arguments) + "'"), ...);
    const int status = std::system(line.c_str());
    ASSERT_TRUE(WIFEXITED(status) && WEXITSTATUS(status) == 0) << line;
  }

 private:
  std::string path_;
};
