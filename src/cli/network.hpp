// network.hpp - in the network namespace of a process: there abstract names are looked up that its
// sockets have. The calling thread comes back to its own with the end of this.
#pragma once

#include "base/fd.hpp"
#include "cli/process.hpp"

namespace molt::cli {

class NetworkOf {
 public:
  explicit NetworkOf(const Process& process);
  ~NetworkOf();
  NetworkOf(const NetworkOf&) = delete;
  NetworkOf& operator=(const NetworkOf&) = delete;

 private:
  Fd own_;
};

}  // namespace molt::cli
