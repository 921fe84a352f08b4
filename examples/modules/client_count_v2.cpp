// client_count, version 2 - counts the requests of every client, and the bytes sent to it.
//
// Its state is version 2: requests and bytes. It goes on from a version 1 as well, whose clients
// then start with no bytes: MOLT_STATE(2, 1, ...) at the end says so. Version 1 does not understand
// version 2, so the way back is refused, before anything is changed, and version 2 goes on.
//
// How it counts is described in client_count_v1.cpp. New is a second callback, on the answer: a
// request that version 1 has counted may be answered under version 2.

#include "../http_files/hooks.hpp"

#include <molt/module.hpp>

#include <sched.h>

#include <array>
#include <map>
#include <mutex>
#include <string>

// This file is built twice, so that there is something to replace it by.
#ifndef CLIENT_COUNT_VERSION
#define CLIENT_COUNT_VERSION "2.0"
#endif

namespace {

struct Tally {
  std::uint64_t requests = 0;
  std::uint64_t bytes = 0;
};
using Table = std::map<std::string, Tally, std::less<>>;

struct alignas(64) Shard {
  std::mutex lock;
  Table clients;
};
std::array<Shard, 16> shards;

void add(const char* client, Tally more) {
  Shard& mine = shards[static_cast<unsigned>(sched_getcpu()) % shards.size()];
  std::lock_guard guard(mine.lock);
  auto found = mine.clients.find(client);
  if (found == mine.clients.end()) found = mine.clients.emplace(client, Tally{}).first;
  found->second.requests += more.requests;
  found->second.bytes += more.bytes;
}

void count_request(const char* client, const char* /*method*/, const char* /*path*/) {
  add(client, {1, 0});
}
void count_answer(const char* client, int /*status*/, std::uint64_t bytes) {
  add(client, {0, bytes});
}

Table totals() {
  Table sum;
  for (Shard& each : shards) {
    std::lock_guard guard(each.lock);
    for (const auto& [client, counted] : each.clients) {
      Tally& total = sum[client];
      total.requests += counted.requests;
      total.bytes += counted.bytes;
    }
  }
  return sum;
}

bool report(const http_files::CounterSink& sink) {
  for (const auto& [client, total] : totals()) {
    sink.add(sink.context, client.c_str(), total.requests, total.bytes);
  }
  return true;
}

// State version 2: the number of clients; for each, its name, its requests and its bytes.
int save(molt::state_writer out) {
  Table sum = totals();
  if (int error = out.put(static_cast<std::uint64_t>(sum.size()))) return error;
  for (const auto& [client, total] : sum) {
    if (int error = out.put(std::string_view(client))) return error;
    if (int error = out.put(total)) return error;
  }
  return 0;
}

int restore(molt::state_reader in) {
  Table restored;
  std::uint64_t clients = 0;
  if (int error = in.get(clients)) return error;
  for (; clients > 0; --clients) {
    std::string client;
    Tally total;
    if (int error = in.get(client)) return error;
    if (int error = in.get(total.requests)) return error;
    if (in.version() >= 2) {
      if (int error = in.get(total.bytes)) return error;
    }
    restored[client] = total;
  }
  if (!in.at_end()) return -EINVAL;
  shards[0].clients = std::move(restored);
  return 0;
}

}  // namespace

MOLT_MODULE("client_count", CLIENT_COUNT_VERSION, "Apache-2.0",
            "counts the requests of every client, and the bytes sent to it")
MOLT_HOOK(http_files::request_point, count_request)
MOLT_HOOK(http_files::answer_point, count_answer)
MOLT_HOOK(http_files::counters_point, report)
MOLT_STATE(2, 1, save, restore)
