// targets.hpp - the processes that a verb is for, and the verb run over all of them at once.
#pragma once

#include "cli/client.hpp"
#include "cli/options.hpp"

#include <functional>
#include <optional>
#include <string>
#include <vector>

namespace molt::cli {

// What the process waits where the user set no --timeout, see docs/protocol.md. A replacement loads
// first, and its own limit is for the pause only.
inline constexpr int load_ms = 30'000;
inline constexpr int unload_ms = 10'000;
// However little time the user gave: to take back what was begun has so much of its own.
inline constexpr int take_back_ms = 5'000;

// How much longer than the process itself this program waits.
inline constexpr int default_grace_ms = 2'000;
// An unload looks for pointers when its time for threads is over, twice at most, which takes what the memory takes.
inline constexpr int unload_grace_ms = 20'000 + default_grace_ms;

// Processes with a control socket, or with one that this user may not use, or children of a fork of
// such a process.
struct Seen {
  Process process;
  bool denied = false;
  bool inherited = false;  // it will have one once something is asked of it
};
std::vector<Seen> see_all();

// The processes that are selected, by pid. A pid that was named is not looked for: whether one can
// talk to it shows when one does. The others are those that see_all() gives; for verbs that bring Molt with
// them (`attaches`) --exe, --name and --tree find the others too. Throws when there is none.
std::vector<Process> choose_targets(const Selection& selection, bool attaches = false);

// A verb's conversation with one process. Lives on a thread of its own.
class Session {
 public:
  Session(const Process& process, const Options& options) : process_(process), options_(options) {}

  const Process& process() const { return process_; }
  const Options& options() const { return options_; }

  // For requests that the process answers at once.
  Json call(std::string_view method, const Json& parameters = Json::object());
  // For those that wait: at most `default_ms` (-1: for ever) where the user set no --timeout. The
  // parameter timeout_ms is added. The answer may come `grace_ms` after that time.
  Json call_waiting(std::string_view method, Json parameters, int default_ms, int fd = -1,
                    int grace_ms = default_grace_ms);
  void stream(std::string_view method, const Json& parameters,
              const std::function<void(const Json&)>& take);

  // From now on call_waiting() waits for so long at least.
  void wait_at_least(int ms) { least_ms_ = ms; }

  // Closes the connection; the next call makes another.
  void hang_up() { connection_.reset(); }

  // For verbs that do several things in one process: a failure of one is told at the end, and the
  // others go on.
  void part_done() { tally_.done(); }
  void part_failed(const Failure& failure);
  // Told on stderr although all went well.
  void note(std::string text) { notes_.push_back(std::move(text)); }

  const std::vector<Failure>& failures() const { return failures_; }
  const std::vector<std::string>& notes() const { return notes_; }
  const Tally& tally() const { return tally_; }

 private:
  Connection& connection(Deadline deadline);

  Process process_;
  const Options& options_;
  int least_ms_ = 0;
  std::optional<Connection> connection_;
  std::vector<Failure> failures_;
  std::vector<std::string> notes_;
  Tally tally_;
};

struct Task {
  // Runs for each process on a thread of its own. What it returns is what --json shows.
  std::function<Json(Session&)> ask;
  // Makes that readable; the text is printed as it is, "" for a quiet verb.
  std::function<std::string(const Json&)> show;
  // `ask` prints by itself what comes, and with --json an object a line.
  bool streams = false;
  // Also for processes that have no Molt yet.
  bool attaches = false;
};

// Returns the exit code; prints results, notes and failures by process.
int run_on_targets(const Options& options, std::string_view verb, const Task& task);

// A process that answers slower than this is taken for one that does not answer.
inline constexpr int answer_ms = 10'000;

// Runs f(i) for i in [0, count) on as many threads as are useful.
void in_parallel(std::size_t count, const std::function<void(std::size_t)>& f);

}  // namespace molt::cli
