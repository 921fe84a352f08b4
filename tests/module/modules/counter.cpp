// A module with state: a sum of what its callback was given. VERSION, STATE (what save writes),
// OLDEST (what restore understands) and HANDOVER (MOLT_STATE or MOLT_STATE_LIVE) come from the build.
#include <molt/module.hpp>

#include <atomic>

#include "../board.hpp"
#include "../points.hpp"

static std::atomic<long> sum{0};

// Answers VERSION * 1000 + the sum so far, so that a test sees who answered and what it remembers.
static int call(int argument) {
  ++board().calls;
  long now = sum.fetch_add(argument) + argument;
  if (board().call) {
    if (int answer = board().call(&molt_this_module, argument)) return answer;
  }
  return VERSION * 1000 + static_cast<int>(now);
}

static int save(molt::state_writer out) {
  ++board().saves;
  if (board().save) {
    if (int error = board().save(&molt_this_module)) return error;
  }
  return out.put(sum.load());
}

static int restore(molt::state_reader in) {
  ++board().restores;
  if (board().restore) {
    if (int error = board().restore(&molt_this_module)) return error;
  }
  long value = 0;
  if (int error = in.get(value)) return error;
  // What came in since, in a live hand-over, stays counted.
  static long before = 0;
  sum += value - before;
  before = value;
  return 0;
}

static int start() {
  ++board().inits;
  return board().init ? board().init(&molt_this_module) : 0;
}

static void finish() { ++board().exits; }

#define TEXT2(x) #x
#define TEXT(x) TEXT2(x)
MOLT_MODULE("counter", TEXT(VERSION), "Apache-2.0", "adds up")
MOLT_INIT(start)
MOLT_EXIT(finish)
MOLT_HOOK(probe_point, call)
HANDOVER(STATE, OLDEST, save, restore)
