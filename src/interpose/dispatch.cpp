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

// A variable of this thread, by address: by its name, each access would first load where it is.
template <class T>
[[gnu::always_inline]] inline T& held(T& variable) {
  T* at = &variable;
  asm("" : "+r"(at));
  return *at;
}

// A chain that was changed in the middle of it: the general walk's rules.
template <class Call>
[[gnu::noinline, gnu::cold]] bool changed(molt_hook& hook, const molt_chain* chain,
                                          const molt_entry* entry, Call call) {
  detail::walk_scope scope;
  molt_walk_resume(&scope.walk, &hook, chain, static_cast<std::uint32_t>(entry - chain->entries));
  while (molt_fn fn = molt_walk_next(&scope.walk)) {
    if (call(fn)) return true;
  }
  return false;
}

// The read side of molt.h ("Hooks: the read side"), not unrolled: host.hpp has the same for a hook
// whose type is known when it is compiled. A chain that was ever published has an entry.
template <class Call>
[[gnu::always_inline]] inline bool walk_with(molt_hook& hook, const molt_chain* chain,
                                             const molt_entry** frame, Call call) {
  const std::uint64_t gen = __atomic_load_n(&chain->gen, __ATOMIC_ACQUIRE);
  const molt_entry* entry = chain->entries;
  molt_fn fn = __atomic_load_n(&entry->fn, __ATOMIC_RELAXED);
  do {
    detail::publish_frame(frame, entry);
    if (__atomic_load_n(&hook.gen, detail::validate_order) != gen) [[unlikely]] {
      return changed(hook, chain, entry, call);
    }
    if (call(fn)) return true;
    ++entry;
    fn = __atomic_load_n(&entry->fn, __ATOMIC_RELAXED);
  } while (fn != nullptr);
  return false;
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
  molt_tls& self = held(molt_tls_self);
  const molt_entry** end = __atomic_load_n(&self.end, __ATOMIC_RELAXED);
  __atomic_signal_fence(__ATOMIC_SEQ_CST);
  const molt_entry** frame = __atomic_load_n(&self.top, __ATOMIC_RELAXED);
  if (frame == end) [[unlikely]]
    return walk_extended(hook, chain, call);
  // As detail::frame_scope.
  __atomic_store_n(&self.top, frame + 1, __ATOMIC_RELAXED);
  __atomic_signal_fence(__ATOMIC_SEQ_CST);
  const bool ended = walk_with(hook, chain, frame, call);
  __atomic_store_n(frame, nullptr, __ATOMIC_RELEASE);
  __atomic_store_n(&self.top, frame, __ATOMIC_RELAXED);
  return ended;
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
[[gnu::always_inline]] inline bool may_be_quiet(std::uintptr_t here, std::uintptr_t below) {
  return here - 1 < below - 1;  // 0 is more than all
}

// A call's own place on the stack: a call from within its callbacks lies below it.
[[gnu::always_inline]] inline std::uintptr_t place_of(const molt_call* call) {
  return reinterpret_cast<std::uintptr_t>(call);
}

[[gnu::always_inline]] inline const molt_chain* chain_of(const molt_hook& hook) {
  return __atomic_load_n(&hook.chain, __ATOMIC_ACQUIRE);
}

}  // namespace

void dispatch_setup() {
  errno_offset = reinterpret_cast<char*>(&errno) - static_cast<char*>(__builtin_thread_pointer());
}

// While callbacks run, calls from further down this thread's stack are not hooked. By the stack's
// address, so that a callback that is left by a jump ends it by that.
arch::Passage call_before(arch::WrapRecord* f, molt_call* call) {
  const std::uintptr_t here = place_of(call);
  std::uintptr_t& quiet = held(quiet_below);
  const std::uintptr_t before = quiet;
  if (may_be_quiet(here, before)) [[unlikely]] {
    if (is_quiet(here)) return arch::Passage::pass;
    return call_before(f, call);  // it is known by now
  }
  if (const molt_chain* chain = chain_of(f->before_hook)) [[likely]] {
    int& error = fast_errno();
    const int kept = error;
    quiet = here;
    call->error = 0;
    const bool answered = walk(f->before_hook, chain, [call](molt_fn fn) {
      return reinterpret_cast<int (*)(molt_call*)>(fn)(call) != 0;
    });
    quiet = before;
    if (answered) [[unlikely]] {
      error = call->error != 0 ? call->error : kept;
      return arch::Passage::answer;
    }
    error = kept;
  }
  return chain_of(f->after_hook) != nullptr ? arch::Passage::watch : arch::Passage::pass;
}

void call_after(arch::WrapRecord* f, molt_call* call) {
  const std::uintptr_t here = place_of(call);
  std::uintptr_t& quiet = held(quiet_below);
  const std::uintptr_t before = quiet;
  if (may_be_quiet(here, before)) [[unlikely]] {
    if (is_quiet(here)) return;
    return call_after(f, call);
  }
  const molt_chain* chain = chain_of(f->after_hook);
  if (chain == nullptr) [[unlikely]]
    return;
  int& error = fast_errno();
  const int kept = error;
  quiet = here;
  walk(f->after_hook, chain, [call](molt_fn fn) {
    reinterpret_cast<void (*)(molt_call*)>(fn)(call);
    return false;
  });
  quiet = before;
  error = kept;
}

}  // namespace molt::interpose
