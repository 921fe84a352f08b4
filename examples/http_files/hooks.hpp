// hooks.hpp - the hook points of http-files: what the server and its modules share.
//
// A module includes this file and attaches callbacks; the server includes it and calls the hooks.
// Callbacks run on the server's worker threads, many at a time. All text is valid for the call only.
#pragma once

#include <molt/hook_point.hpp>

#include <cerrno>
#include <cstdint>

namespace http_files {

// A request has arrived and is about to be served. `client` is the peer's address.
struct request_point
    : molt::hook_point<void(const char* client, const char* method, const char* path)> {
  static constexpr const char* name = "http.request";
  static constexpr const char* description = "a request has arrived";
};

// The answer to it is complete and about to be sent. `bytes` is the size of its body.
struct answer_point : molt::hook_point<void(const char* client, int status, std::uint64_t bytes)> {
  static constexpr const char* name = "http.answer";
  static constexpr const char* description = "an answer is about to be sent";
};

// A file is about to be opened, or created (O_CREAT). `path` is below the server's root, begins
// with '/' and has no empty, "." or ".." parts; `flags` are those of open(2). The first negative
// errno of a callback is the answer; 0 objects to nothing. A policy that fails must not let through
// what it was put there to stop, so an exception refuses.
struct open_point : molt::hook_point<int(const char* path, int flags, const char* client)> {
  static constexpr const char* name = "http.open";
  static constexpr const char* description = "a file is about to be opened or created";
  static constexpr int default_result = 0;
  static constexpr auto on_exception = molt::fail_closed(-EACCES);
};

// Takes one client's totals. No C++ library type crosses a module's edge: the two sides may be built
// with different ones.
struct CounterSink {
  void (*add)(void* context, const char* client, std::uint64_t requests, std::uint64_t bytes);
  void* context;
};

// Somebody asks for /counters. The first module that keeps totals reports them and answers true.
struct counters_point : molt::hook_point<bool(const CounterSink& sink)> {
  static constexpr const char* name = "http.counters";
  static constexpr const char* description = "the totals of every client are wanted";
  static constexpr bool default_result = false;
};

}  // namespace http_files
