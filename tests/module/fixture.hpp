// fixture.hpp - what the tests of the module lifecycle share.
#pragma once

#include <dirent.h>
#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/syscall.h>
#include <unistd.h>
#include <molt/host.hpp>

#include <cerrno>
#include <chrono>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <functional>
#include <set>
#include <sstream>
#include <string>
#include <thread>
#include <vector>

#include "board.hpp"
#include "points.hpp"

namespace fs = std::filesystem;

inline fs::path module_file(const std::string& name) {
  return fs::path(MODULE_FOLDER) / (name + ".so");
}

inline std::string errno_text(int result) {
  if (result >= 0) return std::to_string(result);
  const char* name = strerrorname_np(-result);
  return std::string("-") + (name ? name : "?");
}

// A result with its errno's name and its reason, for messages.
struct Answer {
  int result;
  std::string reason;
  Answer(int r) : result(r), reason(molt_last_error()) {}  // NOLINT: converts on purpose
};
inline std::ostream& operator<<(std::ostream& out, const Answer& answer) {
  return out << errno_text(answer.result) << " \"" << answer.reason << '"';
}

// Whether the answer is `error` and its reason has all of `words`.
inline testing::AssertionResult is(const Answer& answer, int error,
                                   const std::vector<std::string>& words = {}) {
  if (answer.result != error) {
    return testing::AssertionFailure() << answer << " instead of " << errno_text(error);
  }
  if (error < 0 && answer.reason.empty()) {
    return testing::AssertionFailure() << answer << ": no reason given";
  }
  if (answer.reason.find('\n') != std::string::npos) {
    return testing::AssertionFailure() << answer << ": more than one line";
  }
  for (const std::string& word : words) {
    if (answer.reason.find(word) == std::string::npos) {
      return testing::AssertionFailure() << answer << ": does not say \"" << word << '"';
    }
  }
  return testing::AssertionSuccess();
}

inline Answer load(const fs::path& file, const char* args = nullptr, std::uint32_t flags = 0,
                   int timeout_ms = -1) {
  return molt_load(file.c_str(), args, flags, timeout_ms);
}
inline Answer load(const char* name, const char* args = nullptr, std::uint32_t flags = 0) {
  return load(module_file(name), args, flags);
}
inline Answer unload(const char* name, std::uint32_t flags = 0, int timeout_ms = -1) {
  return molt_unload(name, flags, timeout_ms);
}
inline Answer replace(const char* name, const char* file, int timeout_ms = -1) {
  return molt_replace(name, module_file(file).c_str(), nullptr, 0, timeout_ms);
}

// Waits for something that cannot wake us. Long enough for a busy machine; no test waits in vain.
inline bool eventually(const std::function<bool()>& holds) {
  auto deadline = std::chrono::steady_clock::now() + std::chrono::seconds(20);
  while (!holds()) {
    if (std::chrono::steady_clock::now() > deadline) return false;
    // tidy: sleep-ok between two looks at what tells nobody when it changes
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
  return true;
}

#if defined(__SANITIZE_THREAD__)
inline constexpr bool under_tsan = true;
#else
inline constexpr bool under_tsan = false;
#endif
// For tests that wait until threads are proven to be out.
inline constexpr const char* not_under_tsan =
    "the thread sanitizer's frames leave words on stacks that look like return addresses";

// A gate that many threads wait at until it is opened.
class Gate {
 public:
  void open() {
    open_.store(true, std::memory_order_release);
    open_.notify_all();
  }
  void wait() const { open_.wait(false, std::memory_order_acquire); }

 private:
  std::atomic<bool> open_{false};
};

// A thread with a known id, of which one can tell that it sleeps.
class Sleeper {
 public:
  explicit Sleeper(std::function<void()> run)
      : thread_([this, run = std::move(run)] {
          tid_.store(static_cast<int>(syscall(SYS_gettid)), std::memory_order_release);
          run();
          done_.store(true, std::memory_order_release);
        }) {}
  ~Sleeper() { join(); }
  void join() {
    if (thread_.joinable()) thread_.join();
  }
  bool done() const { return done_.load(std::memory_order_acquire); }
  // Until it sleeps in the kernel (or has ended).
  void wait_until_asleep() const {
    EXPECT_TRUE(eventually([this] {
      int tid = tid_.load(std::memory_order_acquire);
      return done() || (tid != 0 && asleep(tid));
    }));
  }

 private:
  static bool asleep(int tid) {
    std::ifstream file("/proc/self/task/" + std::to_string(tid) + "/syscall");
    std::string call;
    file >> call;
    return call == std::to_string(SYS_futex);
  }
  std::atomic<int> tid_{0};
  std::atomic<bool> done_{false};
  std::thread thread_;
};

// What a module could leave behind.
struct Traces {
  std::set<std::string> files;  // mapped
  std::set<std::string> descriptors;

  static Traces now() {
    Traces traces;
    std::ifstream maps("/proc/self/maps");
    for (std::string line; std::getline(maps, line);) {
      std::size_t at = line.find('/');
      if (at == std::string::npos) {
        at = line.find("memfd:");
        if (at == std::string::npos) continue;
      }
      traces.files.insert(line.substr(at));
    }
    fs::path table = "/proc/self/fd";
    if (DIR* folder = opendir(table.c_str())) {
      while (dirent* entry = readdir(folder)) {
        std::error_code error;
        int fd = std::atoi(entry->d_name);
        if (entry->d_name[0] == '.' || fd == dirfd(folder)) continue;
        traces.descriptors.insert(std::string(entry->d_name) + " " +
                                  fs::read_symlink(table / entry->d_name, error).string());
      }
      closedir(folder);
    }
    return traces;
  }
  // What is there now and was not there.
  std::string since() const {
    Traces later = now();
    std::vector<std::string> more;
    for (const std::string& file : later.files) {
      if (!files.count(file)) more.push_back("mapped: " + file + "\n");
    }
    for (const std::string& fd : later.descriptors) {
      if (!descriptors.count(fd)) more.push_back("open: " + fd + "\n");
    }
    std::string text;
    for (std::size_t i = 0; i < more.size() && i < 3; ++i) text += more[i];
    return text + (more.size() > 3 ? "... " + std::to_string(more.size()) + " in all" : "");
  }
};

// A folder of its own, gone with the test.
class Folder {
 public:
  Folder() {
    char name[] = "/tmp/molt-test-XXXXXX";
    if (mkdtemp(name) == nullptr) throw std::runtime_error("mkdtemp");
    path_ = name;
  }
  ~Folder() {
    std::error_code ignored;
    fs::remove_all(path_, ignored);
  }
  const fs::path& path() const { return path_; }
  // A copy of a module's file.
  fs::path copy(const std::string& module, const std::string& as) const {
    fs::copy_file(module_file(module), path_ / as, fs::copy_options::overwrite_existing);
    return path_ / as;
  }

 private:
  fs::path path_;
};

// Whether a word of a test's own heap looks like a pointer into a module is a matter of chance (a few runs
// in a thousand); only tests of the audit let it decide what becomes of a module.
#ifndef MODULE_TEST_AUDIT
inline const int audit_is_off = setenv("MOLT_AUDIT", "0", 1);
#endif

inline molt::hook<probe_point> on_probe;

class ModuleTest : public testing::Test {
 protected:
  ~ModuleTest() override {
    board().init = nullptr;
    board().exit = nullptr;
    board().call = nullptr;
    board().save = nullptr;
    board().restore = nullptr;
    board().inits = board().exits = board().calls = board().saves = board().restores = 0;
    board().told.clear();
  }
  // Nothing of `name` is left: neither the name, nor its callbacks, nor what `before` lacks.
  static void expect_gone(const char* name, const Traces& before) {
    EXPECT_TRUE(is(unload(name), -ENOENT, {name}));
    EXPECT_EQ(on_probe(1), 0);
    EXPECT_TRUE(on_probe.empty());
    if (!under_tsan) {  // not_under_tsan
      EXPECT_EQ(before.since(), "");
    }
  }
  // A module's descriptor, without keeping a reference.
  static molt_module* descriptor(const char* name) {
    molt_module* module = molt_module_find_get(name);
    if (module) molt_module_put(module);
    return module;
  }
};
