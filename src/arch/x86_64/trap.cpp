#include "arch/x86_64/trap.hpp"

#include <errno.h>
#include <signal.h>
#include <string.h>
#include <sys/syscall.h>
#include <ucontext.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <new>

#include "arch/x86_64/signal_frame.hpp"
#include "base/own_memory.hpp"

// The linker's names for the ends of the handler's section.
extern "C" {
[[gnu::visibility("hidden")]] extern const char __start_molt_trap_text, __stop_molt_trap_text;
}

namespace molt::arch {
namespace {

struct Site {
  std::atomic<CodeAddress> address{0};
  std::atomic<CodeAddress> destination{0};
  std::atomic<std::uint32_t> changes{0};  // of destination, counted on either side of each
};

// Open addressing in tables of doubling size; a full one stays and the next is begun. Type-stable:
// a handler may look at any of them at any time.
struct Table {
  std::size_t capacity;  // a power of two
  std::size_t used;
  Table* older;
  Site* sites;
};
std::atomic<Table*> newest{nullptr};
std::atomic<std::uint64_t> forwarded{0};
std::atomic<std::uint32_t> armed{0};  // sites that have a destination

std::size_t place_of(CodeAddress address, std::size_t capacity) {
  return (address * 0x9e3779b97f4a7c15u >> 32) & (capacity - 1);
}

Site* find(CodeAddress address) {
  for (Table* table = newest.load(std::memory_order_acquire); table != nullptr;
       table = table->older) {
    for (std::size_t i = place_of(address, table->capacity);; i = (i + 1) & (table->capacity - 1)) {
      CodeAddress there = table->sites[i].address.load(std::memory_order_acquire);
      if (there == address) return &table->sites[i];
      if (there == 0) break;  // never full
    }
  }
  return nullptr;
}

// The count changes before and after, so that a handler that saw the byte of one time and the
// destination of another knows it.
void set(Site& site, CodeAddress destination) {
  const bool was = site.destination.load(std::memory_order_relaxed) != 0, is = destination != 0;
  if (is && !was) armed.fetch_add(1, std::memory_order_seq_cst);
  site.changes.fetch_add(1, std::memory_order_acq_rel);
  site.destination.store(destination, std::memory_order_release);
  site.changes.fetch_add(1, std::memory_order_acq_rel);
  if (was && !is) armed.fetch_sub(1, std::memory_order_seq_cst);
}

// A handler of ours for each that it was put over (S4), and what that was. Two actions, so that a handler
// never reads one that is being written: the writer fills the other and switches.
struct Layer {
  struct sigaction host[2];
  std::atomic<int> now{0};
};
constexpr std::size_t most_layers = 4;
Layer layers[most_layers];
std::size_t used_layers = 0;  // the writer's

// SA_SIGINFO says nothing of these two.
bool is_handled(const struct sigaction& action) {
  return action.sa_handler != SIG_DFL && action.sa_handler != SIG_IGN;
}

bool is_ours(const struct sigaction& action);

// What the host would have had, had it been alone.
[[maybe_unused]] void pass_to_host(Layer& layer, int signal, siginfo_t* info, void* context) {
  struct sigaction& kept = layer.host[layer.now.load(std::memory_order_acquire)];
  struct sigaction host = kept;
  if ((host.sa_flags & SA_RESETHAND) != 0) {
    kept.sa_handler = SIG_DFL;
    kept.sa_flags &= ~SA_SIGINFO;
  }
  if (!is_handled(host)) {
    // A trap cannot be ignored; one that was sent can.
    if (host.sa_handler == SIG_IGN && info->si_code <= 0) return;
    struct sigaction fatal = {};
    fatal.sa_handler = SIG_DFL;
    sigaction(SIGTRAP, &fatal, nullptr);
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, SIGTRAP);
    pthread_sigmask(SIG_UNBLOCK, &set, nullptr);
    syscall(SYS_tgkill, getpid(), syscall(SYS_gettid), SIGTRAP);
    return;
  }
  sigset_t mask = host.sa_mask, before;
  if ((host.sa_flags & SA_NODEFER) == 0) sigaddset(&mask, SIGTRAP);
  // S8: what ours blocks the host's does not, unless the host has called ours.
  struct sigaction installed;
  if (sigaction(SIGTRAP, nullptr, &installed) == 0 && is_ours(installed)) {
    sigorset(&mask, &mask, &static_cast<ucontext_t*>(context)->uc_sigmask);
    pthread_sigmask(SIG_SETMASK, &mask, &before);
  } else {
    pthread_sigmask(SIG_BLOCK, &mask, &before);
  }
#ifndef MOLT_MUTATE_HANDLER_BLOCKS
  if (armed.load(std::memory_order_seq_cst) != 0) {  // S5; partner: the witness's second look
    sigset_t trap;
    sigemptyset(&trap);
    sigaddset(&trap, SIGTRAP);
    pthread_sigmask(SIG_UNBLOCK, &trap, nullptr);
  }
#endif
  if ((host.sa_flags & SA_SIGINFO) == 0) {
    host.sa_handler(signal);
  } else {
    host.sa_sigaction(signal, info, context);
  }
  pthread_sigmask(SIG_SETMASK, &before, nullptr);
}

// In a section of its own, so that trap_handler_range() can name it.
[[gnu::section("molt_trap_text"), gnu::noinline]] void on_trap([[maybe_unused]] Layer& layer,
                                                               int signal, siginfo_t* info,
                                                               void* context) {
  int saved = errno;
#ifndef MOLT_MUTATE_TRUSTED_CONTEXT
  if (const SignalFrame frame =
          find_signal_frame(signal, info, context, __builtin_frame_address(0));
      frame.context != nullptr) {  // S7
    info = frame.info;
    context = frame.context;
  }
#endif
  auto& rip = static_cast<ucontext_t*>(context)->uc_mcontext.gregs[REG_RIP];
  CodeAddress site = static_cast<CodeAddress>(rip) - 1;
  Site* known = info->si_code > 0 ? find(site) : nullptr;
  while (known != nullptr) {
    std::uint32_t changes = known->changes.load(std::memory_order_acquire);
    CodeAddress to = known->destination.load(std::memory_order_acquire);
    // S2: delivered late. With the int3 gone the entry is whole again.
    if (to == 0 && *reinterpret_cast<const volatile unsigned char*>(site) != 0xcc) to = site;
    if (to != 0) {
      forwarded.fetch_add(1, std::memory_order_relaxed);
      rip = static_cast<greg_t>(to);
      errno = saved;
      return;
    }
    // An int3 without a destination is somebody else's, if all of that was seen at one time.
    std::atomic_thread_fence(std::memory_order_acquire);
    if (known->changes.load(std::memory_order_relaxed) == changes) break;
  }
#ifndef MOLT_MUTATE_NO_CHAIN
  pass_to_host(layer, signal, info, context);
#endif
  errno = saved;
}

// A template's section would be ignored.
#define MOLT_TRAP_LAYER(number)                                                         \
  [[gnu::section("molt_trap_text")]] void on_trap_##number(int signal, siginfo_t* info, \
                                                           void* at) {                  \
    on_trap(layers[number], signal, info, at);                                          \
  }
MOLT_TRAP_LAYER(0)
MOLT_TRAP_LAYER(1)
MOLT_TRAP_LAYER(2)
MOLT_TRAP_LAYER(3)
#undef MOLT_TRAP_LAYER
constexpr std::array<void (*)(int, siginfo_t*, void*), most_layers> handlers{on_trap_0, on_trap_1,
                                                                             on_trap_2, on_trap_3};

bool is_ours(const struct sigaction& action) {
  return (action.sa_flags & SA_SIGINFO) != 0 &&
         std::ranges::find(handlers, action.sa_sigaction) != handlers.end();
}

bool are_same(const struct sigaction& one, const struct sigaction& other) {
  // As the C library tells them: a mask's unused bits are zero.
  return one.sa_handler == other.sa_handler && one.sa_flags == other.sa_flags &&
         memcmp(&one.sa_mask, &other.sa_mask, sizeof one.sa_mask) == 0;
}

// S4. Of more than most_layers different ones the last have to share theirs.
std::size_t layer_over(const struct sigaction& host) {
  for (std::size_t i = 0; i < used_layers; ++i) {
    if (are_same(layers[i].host[layers[i].now.load(std::memory_order_relaxed)], host)) return i;
  }
#ifndef MOLT_MUTATE_ONE_LAYER
  if (used_layers < most_layers) ++used_layers;
#else
  used_layers = 1;
#endif
  Layer& layer = layers[used_layers - 1];
  const int other = 1 - layer.now.load(std::memory_order_relaxed);
  layer.host[other] = host;
  layer.now.store(other, std::memory_order_release);
  return used_layers - 1;
}

[[maybe_unused]] bool is_blocking(const struct sigaction& action) {
  return is_handled(action) && sigismember(&action.sa_mask, SIGTRAP) == 1;
}

bool g_masks_opened = false;  // by the last trap_prepare()

// S6. What the host puts there meanwhile comes back from sigaction(), and is put there again.
void open_masks() {
  g_masks_opened = false;
#ifndef MOLT_MUTATE_MASKS_STAY
  for (int signal = 1; signal < _NSIG; ++signal) {
    struct sigaction action;
    if (signal == SIGTRAP || sigaction(signal, nullptr, &action) != 0) continue;
    while (is_blocking(action)) {
      sigdelset(&action.sa_mask, SIGTRAP);
      struct sigaction opened = action, was;
      if (sigaction(signal, &opened, &was) != 0) break;
      g_masks_opened = true;
      sigdelset(&was.sa_mask, SIGTRAP);
      if (are_same(was, opened)) break;
      sigaction(signal, &was, &action);
    }
  }
#endif
}

}  // namespace

Status trap_prepare() {
  open_masks();
  return trap_stay();
}

Status trap_stay() {
  struct sigaction now;
  if (sigaction(SIGTRAP, nullptr, &now) != 0) return fail_errno(errno, "cannot look at SIGTRAP");
  if (is_ours(now)) return {};
  struct sigaction ours = {};
  ours.sa_sigaction = handlers[layer_over(now)];
  // NODEFER: the host's own handler, which this one calls, may meet an int3 as well.
  ours.sa_flags = SA_SIGINFO | SA_NODEFER | SA_ONSTACK | (now.sa_flags & SA_RESTART);
  sigfillset(&ours.sa_mask);  // S8
  for (const int open : {SIGTRAP, SIGSEGV, SIGBUS, SIGILL, SIGFPE, SIGSYS}) {
    sigdelset(&ours.sa_mask, open);
  }
  if (sigaction(SIGTRAP, &ours, nullptr) != 0) return fail_errno(errno, "cannot handle SIGTRAP");
  return {};
}

Status trap_arm(CodeAddress address, CodeAddress destination) {
  if (Site* site = find(address)) {
    set(*site, destination);
    return {};
  }
  Table* table = newest.load(std::memory_order_relaxed);
  if (table == nullptr || table->used * 2 >= table->capacity) {
    const std::size_t capacity = table == nullptr ? 64 : table->capacity * 2;
    // Its addresses stay when the functions have gone: that is nobody's pointer.
    void* memory = map_own_memory(sizeof(Table) + capacity * sizeof(Site));
    if (memory == nullptr) return fail_errno(ENOMEM, "no memory for a breakpoint");
    auto* places = reinterpret_cast<Site*>(static_cast<Table*>(memory) + 1);
    for (std::size_t i = 0; i < capacity; ++i) new (places + i) Site;
    table = new (memory) Table{capacity, 0, table, places};
    newest.store(table, std::memory_order_release);
  }
  std::size_t i = place_of(address, table->capacity);
  while (table->sites[i].address.load(std::memory_order_relaxed) != 0) {
    i = (i + 1) & (table->capacity - 1);
  }
  ++table->used;
  if (destination != 0) armed.fetch_add(1, std::memory_order_seq_cst);
  table->sites[i].destination.store(destination, std::memory_order_relaxed);
  table->sites[i].address.store(address, std::memory_order_release);
  return {};
}

void trap_disarm(CodeAddress address) {
  if (Site* site = find(address)) set(*site, 0);
}

bool trap_host_may_block() {
  if (g_masks_opened) return true;
  struct sigaction host;
  if (sigaction(SIGTRAP, nullptr, &host) != 0) return true;
  if (is_ours(host)) {
    const auto at = std::ranges::find(handlers, host.sa_sigaction) - handlers.begin();
    const Layer& layer = layers[static_cast<std::size_t>(at)];
    host = layer.host[layer.now.load(std::memory_order_relaxed)];
  }
  return is_handled(host) && (host.sa_flags & SA_NODEFER) == 0;
}

CodeRange trap_handler_range() {
  return {reinterpret_cast<CodeAddress>(&__start_molt_trap_text),
          reinterpret_cast<CodeAddress>(&__stop_molt_trap_text)};
}

std::uint64_t trap_count() { return forwarded.load(std::memory_order_relaxed); }

}  // namespace molt::arch
