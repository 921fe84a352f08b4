// task.hpp - a coroutine that is started by whoever awaits it, and may be resumed on any thread.
#pragma once

#include <coroutine>
#include <exception>

// A plain handle, so that it can be the result of a hook. Awaiting it runs it to its end and frees
// it; one that is not awaited leaks.
struct Task {
  struct promise_type {
    std::coroutine_handle<> waiting;
    Task get_return_object() {
      return {std::coroutine_handle<promise_type>::from_promise(*this).address()};
    }
    std::suspend_always initial_suspend() noexcept { return {}; }
    struct Final {
      bool await_ready() noexcept { return false; }
      std::coroutine_handle<> await_suspend(std::coroutine_handle<promise_type> self) noexcept {
        return self.promise().waiting;
      }
      void await_resume() noexcept {}
    };
    Final final_suspend() noexcept { return {}; }
    void return_void() {}
    void unhandled_exception() { std::terminate(); }
  };
  using Handle = std::coroutine_handle<promise_type>;

  bool await_ready() const { return false; }
  std::coroutine_handle<> await_suspend(std::coroutine_handle<> waiting) const {
    Handle handle = Handle::from_address(address);
    handle.promise().waiting = waiting;
    return handle;
  }
  void await_resume() const { Handle::from_address(address).destroy(); }

  void* address = nullptr;
};
