// request.hpp - one request of a client, from its bytes to the answer's. docs/protocol.md.
//
// Nothing here knows of sockets or threads; the server decides where a call runs.
#pragma once

#include <atomic>
#include <cstdint>
#include <map>
#include <string>
#include <string_view>

#include "abi/wire.hpp"
#include "base/log.hpp"
#include "base/result.hpp"
#include "control/json.hpp"
#include "control/object.hpp"

namespace molt::control {

// Of a request, and more than any has.
inline constexpr int depth_max = 16;
inline constexpr int fields_max = 64;

// What one connection keeps between requests. It has one request under way at most, so one thread at
// a time.
struct Session {
  static constexpr std::size_t handles_max = 256;
  std::map<std::int64_t, Ref> handles;
  std::int64_t next_handle = 1;
};

// What a call gets beside its parameters.
struct Caller {
  log::Requester requester;
  int file = -1;  // the file that came along, in the running thread's descriptor table; borrowed
  const std::atomic<bool>* cancelled = nullptr;
  Session* session = nullptr;
};

// What is wrong, and what that means for the client.
struct Failure {
  Error error;
  wire::ErrorClass kind = wire::ErrorClass::failed;
};

struct Method;

// A request that makes sense so far: its method exists, its parameters are an object.
class Call {
 public:
  // EBADMSG: no JSON object at all; what else the connection brings is not to be trusted either.
  [[nodiscard]] static Result<Call> read(std::string_view message);

  // May block, or run module code: not for the `molt` thread.
  bool is_slow() const;
  bool takes_file() const;
  // Asks for events for ever. Then stream_from() is where they begin; run() is not for such a call.
  bool is_stream() const;
  std::uint64_t stream_from() const;

  // Does it, and gives the reply, without the NUL that ends it.
  [[nodiscard]] std::string run(const Caller& caller) const;

 private:
  Call(const Method& method, Json parameters);
  const Method* method_;
  Json parameters_;
};

[[nodiscard]] std::string error_reply(const Failure& failure);

struct EventsReply {
  std::string text;
  std::uint64_t next = 0;
  bool is_empty = false;  // nothing new; `text` says so
  bool has_more = false;  // `most` was reached
};
[[nodiscard]] EventsReply events_reply(std::uint64_t since, std::size_t most);

}  // namespace molt::control
