// control_client.hpp - one connection to a process's control socket (docs/protocol.md).
#pragma once

#include <nlohmann/json.hpp>
#include <string>

class ControlClient {
 public:
  // Connects; error() tells if that failed.
  explicit ControlClient(const std::string& socket_path);
  ~ControlClient();
  ControlClient(const ControlClient&) = delete;
  ControlClient& operator=(const ControlClient&) = delete;

  // 0, or the errno of connecting.
  int error() const { return error_; }
  // Sends one request, `fd` with it unless -1, and waits for its reply, which holds "parameters" and,
  // on failure, "error". A connection that broke gives an error reply of its own: EPIPE.
  nlohmann::json call(const std::string& method, const nlohmann::json& parameters, int fd = -1);

 private:
  int socket_ = -1;
  int error_ = 0;
};

// The errno in an error reply; 0 in a good one.
int error_of(const nlohmann::json& reply);
