// running.hpp - a server for a test, on a directory of its own, with the fake beneath.
#pragma once

#include <gtest/gtest.h>

#include <string>

#include "client.hpp"
#include "control/start.hpp"

namespace test {

class Running : public testing::Test {
 protected:
  void SetUp() override;
  void TearDown() override;

  // With the limits given, in a fresh process directory.
  void start();
  void restart();
  Client connect() const { return Client(molt::control::socket_path()); }

  // Whether a client that behaves well gets its answers.
  bool serves_others() const;

  std::string directory_;
  molt::control::Options options_;
  molt::control::Limits limits_;
};

// A file with this content, open for reading.
molt::Fd file_with(const std::string& content);

// The thread that serves the socket; 0 where there is none.
pid_t molt_thread();

// What is in this thread's table.
int count_descriptors();

}  // namespace test
