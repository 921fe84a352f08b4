#include "interpose/dispatch.hpp"

#include <molt/host.hpp>

#include <unistd.h>

#include <cerrno>
#include <cstddef>

#include "base/own_memory.hpp"

namespace molt::interpose {
namespace {

// From the thread pointer to errno: the same in all threads. Asking for it is a call, which would be a
// third of all that a hook costs.
std::ptrdiff_t errno_offset = 0;

[[gnu::always_inline]] inline int& fast_errno() {
  return *reinterpret_cast<int*>(static_cast<char*>(__builtin_thread_pointer()) + errno_offset);
}

// A chain that was changed in the middle of it: the general walk's rules.
template <class Call>
[[gnu::noinline, gnu::cold]] bool changed(molt_hook& hook, const molt_chain* chain, std::uint32_t k,
                                          Call call) {
  detail::walk_scope scope;
  molt_walk_resume(&scope.walk, &hook, chain, k);
  while (molt_fn fn = molt_walk_next(&scope.walk)) {
    if (call(fn)) return true;
  }
  return false;
}

// The read side of molt.h ("Hooks: the read side"), not unrolled: host.hpp has the same for a hook
// whose type is known when it is compiled.
template <class Call>
[[gnu::always_inline]] inline bool walk_with(molt_hook& hook, const molt_chain* chain,
                                             const molt_entry** frame, Call call) {
  const std::uint64_t gen = __atomic_load_n(&chain->gen, __ATOMIC_ACQUIRE);
  for (std::uint32_t k = 0;; ++k) {
    const molt_fn fn = __atomic_load_n(&chain->entries[k].fn, __ATOMIC_RELAXED);
    if (fn == nullptr) return false;
    detail::publish_frame(frame, &chain->entries[k]);
    if (__atomic_load_n(&hook.gen, detail::validate_order) != gen) [[unlikely]] {
      return changed(hook, chain, k, call);
    }
    if (call(fn)) return true;
  }
}

template <class Call>
[[gnu::noinline, gnu::cold]] bool walk_extended(molt_hook& hook, const molt_chain* chain,
                                                Call call) {
  detail::extended_frame_scope scope;
  return walk_with(hook, chain, scope.get(), call);
}

// True: a callback ended the walk.
template <class Call>
[[gnu::always_inline]] inline bool walk(molt_hook& hook, const molt_chain* chain, Call call) {
  const molt_entry** end = __atomic_load_n(&molt_tls_self.end, __ATOMIC_RELAXED);
  __atomic_signal_fence(__ATOMIC_SEQ_CST);
  const molt_entry** frame = __atomic_load_n(&molt_tls_self.top, __ATOMIC_RELAXED);
  if (frame == end) [[unlikely]]
    return walk_extended(hook, chain, call);
  detail::frame_scope scope(frame);
  return walk_with(hook, chain, frame, call);
}

// N4: calls of hooked functions from frames below this address, on this thread, are not hooked. The
// runtime's own threads are below all the time. 0: not known yet whether this is one of them.
__thread std::uintptr_t quiet_below = 0;
constexpr std::uintptr_t never_quiet = 1;

// Whether a call is to be left alone; `here` is below or the thread not known yet.
[[gnu::noinline, gnu::cold]] bool is_quiet(std::uintptr_t here) {
  if (quiet_below == 0) {
    quiet_below = UINTPTR_MAX;  // should what is asked here be hooked
    quiet_below = is_own_thread(static_cast<int>(gettid())) ? UINTPTR_MAX : never_quiet;
  }
  return here < quiet_below;
}
[[gnu::always_inline]] inline bool may_be_quiet(std::uintptr_t here) {
  return here - 1 < quiet_below - 1;  // 0 is more than all
}

// From here down this thread's calls are not hooked. By the stack's address, so that a callback
// that is left by a jump ends it by that.
class Quiet {
 public:
  [[gnu::always_inline]] explicit Quiet(std::uintptr_t here) : before_(quiet_below) {
    quiet_below = here;
  }
  [[gnu::always_inline]] ~Quiet() { quiet_below = before_; }
  Quiet(const Quiet&) = delete;
  Quiet& operator=(const Quiet&) = delete;

 private:
  const std::uintptr_t before_;
};

[[gnu::always_inline]] inline const molt_chain* chain_of(const molt_hook& hook) {
  return __atomic_load_n(&hook.chain, __ATOMIC_ACQUIRE);
}

}  // namespace

void dispatch_setup() {
  errno_offset = reinterpret_cast<char*>(&errno) - static_cast<char*>(__builtin_thread_pointer());
}

arch::Passage call_before(arch::WrapRecord* f, molt_call* call) {
  const auto here = reinterpret_cast<std::uintptr_t>(__builtin_frame_address(0));
  if (may_be_quiet(here) && is_quiet(here)) [[unlikely]]
    return arch::Passage::pass;
  const molt_chain* chain = chain_of(f->before_hook);
  const auto otherwise =
      chain_of(f->after_hook) != nullptr ? arch::Passage::watch : arch::Passage::pass;
  if (chain == nullptr) return otherwise;
  const Quiet quiet(here);
  int& error = fast_errno();
  const int kept = error;
  call->error = 0;
  const bool answered = walk(f->before_hook, chain, [call](molt_fn fn) {
    return reinterpret_cast<int (*)(molt_call*)>(fn)(call) != 0;
  });
  error = answered && call->error != 0 ? call->error : kept;
  return answered ? arch::Passage::answer : otherwise;
}

void call_after(arch::WrapRecord* f, molt_call* call) {
  const auto here = reinterpret_cast<std::uintptr_t>(__builtin_frame_address(0));
  if (may_be_quiet(here) && is_quiet(here)) [[unlikely]]
    return;
  const molt_chain* chain = chain_of(f->after_hook);
  if (chain == nullptr) return;
  const Quiet quiet(here);
  int& error = fast_errno();
  const int kept = error;
  walk(f->after_hook, chain, [call](molt_fn fn) {
    reinterpret_cast<void (*)(molt_call*)>(fn)(call);
    return false;
  });
  error = kept;
}

}  // namespace molt::interpose
