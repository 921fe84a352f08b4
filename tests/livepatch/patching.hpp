// What the tests of livepatches share: loading patch modules by name, and waiting.
#pragma once

#include <gtest/gtest.h>
#include <molt/livepatch.h>
#include <molt/molt.h>

#include <chrono>
#include <cstdlib>
#include <functional>
#include <string>
#include <thread>

inline std::string patch_path(const std::string& name) {
  return std::string(std::getenv("MOLT_LIB")) + "/livepatch/" + name + ".so";
}

inline int load_patch(const std::string& name, const char* args = nullptr) {
  return molt_load(patch_path(name).c_str(), args, 0, -1);
}

// "" or why not.
inline std::string apply(const std::string& name, const char* args = nullptr, int wait_ms = 5000) {
  if (load_patch(name, args) != 0) return molt_last_error();
  if (molt_patch_wait(wait_ms) != 0) return molt_last_error();
  return "";
}

inline std::string revert(const std::string& name, int wait_ms = 5000) {
  if (molt_patch_set_enabled(name.c_str(), 0) != 0) return molt_last_error();
  if (molt_patch_wait(wait_ms) != 0) return molt_last_error();
  if (molt_unload(name.c_str(), 0, -1) != 0) return molt_last_error();
  return "";
}

inline bool eventually(const std::function<bool()>& holds) {
  const auto until = std::chrono::steady_clock::now() + std::chrono::seconds(10);
  while (!holds()) {
    if (std::chrono::steady_clock::now() > until) return false;
    // tidy: sleep-ok between two looks at something that tells nobody when it changes
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
  return true;
}
