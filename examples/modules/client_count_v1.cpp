// client_count, version 1.0 - counts the requests of every client.
//
//     molt load    -p PID client_count_v1.so
//     molt replace -p PID client_count client_count_v2.so      (the counts move over)
//
// Each request is counted exactly once, also while this module is being replaced: no callback is
// under way when save() reads the counts, and none runs again before the successor has them.
//
// The host's threads count all the time; reading is rare. So there is one table for each CPU or so,
// each with its own lock: threads that run at the same time hardly ever meet at one.

#include "../http_files/hooks.hpp"

#include <molt/module.hpp>

#include <sched.h>

#include <array>
#include <map>
#include <mutex>
#include <string>

namespace {

// std::less<>: found by `const char*`, without making a string of it.
using Table = std::map<std::string, std::uint64_t, std::less<>>;

struct alignas(64) Shard {
  std::mutex lock;
  Table requests;
};
std::array<Shard, 16> shards;

Shard& local_shard() { return shards[static_cast<unsigned>(sched_getcpu()) % shards.size()]; }

void count(const char* client, const char* /*method*/, const char* /*path*/) {
  Shard& mine = local_shard();
  std::lock_guard guard(mine.lock);
  auto found = mine.requests.find(client);
  if (found == mine.requests.end()) found = mine.requests.emplace(client, 0).first;
  ++found->second;
}

Table totals() {
  Table sum;
  for (Shard& each : shards) {
    std::lock_guard guard(each.lock);
    for (const auto& [client, requests] : each.requests) sum[client] += requests;
  }
  return sum;
}

bool report(const http_files::CounterSink& sink) {
  for (const auto& [client, requests] : totals()) {
    sink.add(sink.context, client.c_str(), requests, 0);
  }
  return true;
}

// State version 1: the number of clients; for each, its name and its requests.
int save(molt::state_writer out) {
  Table sum = totals();
  if (int error = out.put(static_cast<std::uint64_t>(sum.size()))) return error;
  for (const auto& [client, requests] : sum) {
    if (int error = out.put(std::string_view(client))) return error;
    if (int error = out.put(requests)) return error;
  }
  return 0;
}

int restore(molt::state_reader in) {
  Table restored;
  std::uint64_t clients = 0;
  if (int error = in.get(clients)) return error;
  for (; clients > 0; --clients) {
    std::string client;
    std::uint64_t requests = 0;
    if (int error = in.get(client)) return error;
    if (int error = in.get(requests)) return error;
    restored[client] += requests;
  }
  if (!in.at_end()) return -EINVAL;
  shards[0].requests = std::move(restored);
  return 0;
}

}  // namespace

MOLT_MODULE("client_count", "1.0", "Apache-2.0", "counts the requests of every client")
MOLT_HOOK(http_files::request_point, count)
MOLT_HOOK(http_files::counters_point, report)
MOLT_STATE(1, 1, save, restore)
