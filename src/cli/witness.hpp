// witness.hpp - tells a process which words on its sleeping threads' stacks no frame returns by.
//
// The process takes every word that points into a module for a return address (threads/residency.hpp); it
// carries no unwinder. This program has one (unwind/walk.hpp): while a request waits for threads to
// leave, the witness asks who holds it up, unwinds those threads from outside, and hands over what it
// found. The process believes it for as long as a thread has not run since.
#pragma once

#include "cli/failure.hpp"
#include "cli/options.hpp"
#include "cli/process.hpp"

#include <condition_variable>
#include <mutex>
#include <string>
#include <thread>

namespace molt::cli {

class Session;

// Gives each uncertain holder of a `blocking` reply what unwinding says of its word: "word", and
// "certain" where it is a live frame. With `session`, testifies to the process. Answers how many
// testimonies that took.
int unwind_threads(const Process& process, Json& holders, Session* session);

// One round: who blocks `name` ("": the patch in transition), and testimonies. How many were taken.
int testify(Session& session, const std::string& name);

// Testifies again and again, on a thread and a connection of its own, until it is destroyed; not where
// the user does not wait (--timeout 0). What goes wrong there is not told: the request that it helps
// tells what it waits for.
class Witness {
 public:
  Witness(const Session& session, std::string name);
  ~Witness();
  Witness(const Witness&) = delete;
  Witness& operator=(const Witness&) = delete;

 private:
  void run(const Process& process, const Options& options, const std::string& name);

  std::mutex mutex_;
  std::condition_variable changed_;
  bool done_ = false;
  std::thread thread_;
};

}  // namespace molt::cli
