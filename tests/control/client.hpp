// client.hpp - a client of the control socket that can also behave badly. Nothing waits longer than
// `patience`; what does not come in time is a null reply.
#pragma once

#include <functional>
#include <string>
#include <string_view>

#include "base/fd.hpp"
#include "control/json.hpp"

namespace test {

using molt::control::Json;

inline constexpr int patience_ms = 20'000;

// Whether `holds` comes true in time.
bool eventually(const std::function<bool()>& holds);

class Client {
 public:
  explicit Client(const std::string& socket_path);

  bool is_connected() const { return static_cast<bool>(socket_); }
  int socket() const { return socket_.get(); }
  void close() { socket_.reset(); }

  // A request and its reply.
  Json ask(std::string_view method, const Json& parameters = Json::object(), int fd = -1);
  // Only the request. False: the connection is broken.
  bool send(std::string_view method, const Json& parameters = Json::object(), int fd = -1);
  bool send_raw(std::string_view bytes, int fd = -1);
  // The next reply, or null.
  Json receive();
  // Whether the other end closes; replies that come before it are dropped.
  bool sees_close();

 private:
  molt::Fd socket_;
  std::string received_;
};

// reply.parameters[name], or null.
Json field(const Json& reply, const char* name);
std::string text(const Json& reply, const char* name);
// 0 of a success, -1 of no reply.
int error_code(const Json& reply);
std::string error_class(const Json& reply);

}  // namespace test
