// One member of the chains. TORTURE_LINEAGE and TORTURE_VERSION say which.
#include <pthread.h>
#include <sched.h>
#include <time.h>
#include <molt/module.hpp>

#include "torture.hpp"

#define TORTURE_TEXT2(x) #x
#define TORTURE_TEXT(x) TORTURE_TEXT2(x)

using namespace torture;

// The address of this instance's record in the host.
MOLT_PARAM(unsigned long, instance, 0, "address of the instance's record", 0)

// Which threads it starts: torture::counted_thread, torture::forgotten_thread.
MOLT_PARAM(unsigned, threads, 0, "which threads it starts", 0)

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

static void be_counted(void*) {
  while (!molt_thread_should_stop()) molt_thread_sleep(1000);
}

// Nobody knows of it, nobody joins it, and it may well be here when exit() is over.
static void* be_forgotten(void* given) {
  const auto random = reinterpret_cast<std::uintptr_t>(given);
  for (int i = 0; i < 3; ++i) {
    timespec nap{0, static_cast<long>(random >> (8 * i)) % 256 * 1000};
    nanosleep(&nap, nullptr);  // tidy: sleep-ok a thread that sleeps in the module is the subject
  }
  return nullptr;
}

static int start() {
  if (threads.get() & counted_thread) {
    const int result = molt_thread_start(&molt_this_module, "counted", be_counted, nullptr,
                                         MOLT_THREAD_STOPPABLE, nullptr);
    if (result != 0) return result;
  }
  if (threads.get() & forgotten_thread) {
    const auto random = static_cast<std::uintptr_t>(self().id * 0x9e3779b97f4a7c15u >> 32);
    pthread_attr_t attributes;
    pthread_attr_init(&attributes);
    pthread_attr_setdetachstate(&attributes, PTHREAD_CREATE_DETACHED);
    pthread_t thread;
    const int code =
        pthread_create(&thread, &attributes, be_forgotten, reinterpret_cast<void*>(random));
    pthread_attr_destroy(&attributes);
    if (code != 0) return -code;
  }
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
