// One member of the chains. TORTURE_LINEAGE and TORTURE_VERSION say which.
#include <sched.h>
#include <time.h>
#include <molt/module.hpp>

#include "torture.hpp"

#define TORTURE_TEXT2(x) #x
#define TORTURE_TEXT(x) TORTURE_TEXT2(x)

using namespace torture;

// The address of this instance's record in the host.
MOLT_PARAM(unsigned long, instance, 0, "address of the instance's record", 0)

static Instance& self() { return *reinterpret_cast<Instance*>(instance.get()); }

static void linger(Call& call) {
  std::uint64_t r = call.next_random();
  if (r % 64 == 0) {
    timespec nap{0, static_cast<long>(r >> 16) % 50'000};
    nanosleep(&nap, nullptr);  // tidy: sleep-ok callbacks that sleep are the subject
  } else if (r % 16 == 0) {
    sched_yield();
  }
}

static int callback(Call& call) {
  Instance& me = self();
  // Read before and after: a module that is taken away under a callback shows in between.
  if (me.state.load(std::memory_order_acquire) != Instance::live) {
    call.violation = "a callback ran in a version that was not live";
  }
  me.inside.fetch_add(1, std::memory_order_acq_rel);
  if (me.id < call.seen[TORTURE_LINEAGE])
    call.violation = "a thread saw an old version after a new";
  call.seen[TORTURE_LINEAGE] = me.id;
  if (call.count < 2 * members) call.steps[call.count++] = {TORTURE_LINEAGE, me.id};
  linger(call);
  if (call.nested && call.depth < 3 && call.next_random() % 32 == 0) call.nested(call);
  me.inside.fetch_sub(1, std::memory_order_acq_rel);
  if (me.state.load(std::memory_order_acquire) != Instance::live) {
    call.violation = "a version went away while a callback ran in it";
  }
  return call.stop_at == TORTURE_LINEAGE ? 1 : 0;
}

static int start() {
  self().state.store(Instance::live, std::memory_order_release);
  return 0;
}
static void finish() {
  if (self().inside.load(std::memory_order_acquire) != 0) {
    molt_log(&molt_this_module, "VIOLATION: exit() while a thread is inside");
    self().state.store(Instance::unloaded, std::memory_order_release);
    return;
  }
  self().state.store(Instance::exited, std::memory_order_release);
}

MOLT_MODULE("torture_" TORTURE_TEXT(TORTURE_LINEAGE), TORTURE_TEXT(TORTURE_VERSION), "Apache-2.0",
            "a member of the torture's chains")
MOLT_HOOK(Point<0>, callback, TORTURE_ORDER)
MOLT_HOOK(Point<1>, callback, TORTURE_ORDER)
MOLT_INIT(start)
MOLT_EXIT(finish)
