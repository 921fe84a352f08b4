#include "cli/witness.hpp"

#include "cli/targets.hpp"
#include "unwind/walk.hpp"

#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <optional>

namespace molt::cli {
namespace {

// Most requests are done before the first round; a thread that only happens to run leaves by itself.
constexpr std::chrono::milliseconds first_pause(200);
constexpr std::chrono::milliseconds longest_pause(2000);

std::uint64_t number_of(const Json& holder, const char* key) {
  return std::strtoull(holder.value(key, "0").c_str(), nullptr, 16);
}

std::string hex(std::uint64_t address) { return fmt::format("{:#x}", address); }

bool testify(Session& session, const Json& holder, const unwind::Walk& walk) {
  Json slots = Json::array();
  for (const unwind::Frame& frame : walk.frames) {
    if (frame.return_slot != 0) slots.push_back(hex(frame.return_slot));
  }
  try {
    session.call(wire::method::testify, {{"tid", holder.at("tid")},
                                         {"serial", holder.at("serial")},
                                         {"runs", walk.runs},
                                         {"from", hex(walk.sp)},
                                         {"to", hex(walk.proven_end)},
                                         {"slots", std::move(slots)}});
    return true;
  } catch (const Failure& failure) {
    // The next one would be waited for as long.
    if (failure.kind == ErrorClass::stalled) throw;
    return false;  // it has run since, or ended: the next look tells
  }
}

}  // namespace

int unwind_threads(const Process& process, Json& holders, Session* session) {
  // Threads have other numbers there than here.
  if (process.inner_pid != process.pid) return 0;
  int testimonies = 0;
  std::optional<Result<unwind::Process>> objects;
  for (Json& holder : holders) {
    if (!holder.contains("tid") || !holder.contains("address") || holder.value("certain", false)) {
      continue;
    }
    const std::uint64_t at = number_of(holder, "stack_address");
    if (at == 0) continue;
    if (!objects) objects.emplace(unwind::Process::open(process.pid));
    if (!*objects) return 0;
    const auto walk = (*objects)->walk(holder.at("tid").get<int>());
    if (!walk) continue;  // it has run since: the next look tells
    const unwind::Word word = walk->judge(at);
    holder["word"] = unwind::to_text(word);
    if (word == unwind::Word::live) holder["certain"] = true;
    if (word == unwind::Word::stale && session != nullptr && walk->runs != 0 &&
        holder.value("serial", 0) != 0) {
      testimonies += testify(*session, holder, *walk);
    }
  }
  return testimonies;
}

int testify(Session& session, const std::string& name) {
  Json request = Json::object();
  if (!name.empty()) request["name"] = name;
  Json reply = session.call(wire::method::blocking, request);
  return unwind_threads(session.process(), reply["holders"], &session);
}

Witness::Witness(const Session& session, std::string name) {
  const Options& options = session.options();
  if (options.timeout_s == 0.0) return;
  thread_ = std::thread([this, process = session.process(), &options, name = std::move(name)] {
    run(process, options, name);
  });
}

Witness::~Witness() {
  {
    std::lock_guard lock(mutex_);
    done_ = true;
  }
  changed_.notify_all();
  if (thread_.joinable()) thread_.join();
}

void Witness::run(const Process& process, const Options& options, const std::string& name) {
  std::unique_lock lock(mutex_);
  for (auto pause = first_pause;; pause = std::min(2 * pause, longest_pause)) {
    if (changed_.wait_for(lock, pause, [this] { return done_; })) return;
    lock.unlock();
    try {
      Session session(process, options);
      testify(session, name);
    } catch (const Failure&) {
    } catch (const std::exception&) {  // a reply that is none
    }
    lock.lock();
  }
}

}  // namespace molt::cli
