// fixture.hpp - what the tests of hooks share.
#pragma once

#include <gtest/gtest.h>
#include <molt/host.hpp>

#include <atomic>
#include <cerrno>
#include <cstring>
#include <functional>
#include <mutex>
#include <semaphore>
#include <string>
#include <thread>
#include <vector>

#include "board.hpp"
#include "points.hpp"

#if defined(__SANITIZE_THREAD__)
inline constexpr bool under_tsan = true;
#else
inline constexpr bool under_tsan = false;
#endif
#if defined(__SANITIZE_ADDRESS__)
inline constexpr bool under_asan = true;
#else
inline constexpr bool under_asan = false;
#endif

inline molt::hook<all_point> on_all;
inline molt::hook<first_point> on_first;
inline molt::hook<first_7_point> on_first_7;
inline molt::hook<unanimous_point> on_unanimous;
inline molt::hook<last_point> on_last;
inline molt::hook<only_first_point> on_only_first;
inline molt::hook<by_name_point> on_by_name;
inline molt::hook<open_point> on_open;
inline molt::hook<closed_point> on_closed;
inline molt::hook<void_closed_point> on_void_closed;
inline molt::hook<many_point> on_many;
inline molt::hook<task_point> on_task;

inline std::string file_of(const std::string& module) {
  return std::string(MODULE_FOLDER) + "/" + module + ".so";
}

// A result with its reason.
struct Answer {
  int result;
  std::string reason;
  Answer(int r) : result(r), reason(molt_last_error()) {}  // NOLINT: converts on purpose
};

// Whether the answer is `error` and its reason, one line, has all of `words`.
inline testing::AssertionResult is(const Answer& answer, int error,
                                   const std::vector<std::string>& words = {}) {
  auto text = [](int result) {
    return result < 0 ? std::string("-") + strerrorname_np(-result) : std::to_string(result);
  };
  auto failure = testing::AssertionFailure()
                 << text(answer.result) << " \"" << answer.reason << '"';
  if (answer.result != error) return failure << " instead of " << text(error);
  if (error < 0 && answer.reason.empty()) return failure << ": no reason given";
  if (answer.reason.find('\n') != std::string::npos) return failure << ": more than one line";
  for (const std::string& word : words) {
    if (answer.reason.find(word) == std::string::npos) {
      return failure << ": does not say \"" << word << '"';
    }
  }
  return testing::AssertionSuccess();
}

inline Answer load(const std::string& file, const char* args = nullptr) {
  return molt_load(file_of(file).c_str(), args, 0, -1);
}
inline Answer unload(const char* name, int timeout_ms = -1) {
  return molt_unload(name, 0, timeout_ms);
}
inline Answer replace(const char* name, const std::string& file, const char* args = nullptr,
                      int timeout_ms = -1) {
  return molt_replace(name, file_of(file).c_str(), args, 0, timeout_ms);
}

// Holds callbacks: they tell that they are there, and wait until they are released.
class Barrier {
 public:
  void enter() {
    entered_.release();
    open_.wait(false, std::memory_order_acquire);
  }
  void wait_for_one() { entered_.acquire(); }
  void release_all() {
    open_.store(true, std::memory_order_release);
    open_.notify_all();
  }

 private:
  std::counting_semaphore<> entered_{0};
  std::atomic<bool> open_{false};
};

// Which callbacks ran, in order.
class Log {
 public:
  void add(const std::string& who) {
    std::lock_guard lock(mutex_);
    text_ += (text_.empty() ? "" : " ") + who;
  }
  // Forgets it too.
  std::string take() {
    std::lock_guard lock(mutex_);
    return std::exchange(text_, "");
  }

 private:
  std::mutex mutex_;
  std::string text_;
};

class HookTest : public testing::Test {
 protected:
  // Modules that a test left behind would disturb the next one.
  ~HookTest() override {
    for (auto module = loaded_.rbegin(); module != loaded_.rend(); ++module) {
      EXPECT_TRUE(is(molt_unload(module->c_str(), 0, -1), 0)) << *module;
    }
    molt_hook_set_order(nullptr, nullptr);
    board().call = nullptr;
  }
  // Loads modules whose name is their file's; they are unloaded at the end.
  void load_all(const std::vector<std::string>& modules) {
    for (const std::string& module : modules) {
      ASSERT_TRUE(is(load(module), 0)) << module;
      loaded_.push_back(module);
    }
  }
  void unloaded(const std::string& module) { std::erase(loaded_, module); }

  // Lets every callback write its module's name into the log and answer the default of `first`.
  void log_calls() {
    board().call = [this](const Call& call) {
      log_.add(call.module);
      return 0;
    };
  }
  // The order in which one call of on_all reaches the modules.
  std::string call_all() {
    log_.take();
    on_all(0);
    return log_.take();
  }
  Log log_;

 private:
  std::vector<std::string> loaded_;
};
