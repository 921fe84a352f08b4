// A program as a user would write it: it answers "N" on stdin with what its hook says.
#include <molt/host.hpp>

#include <iostream>

#include "points.hpp"

static molt::hook<ask_point> on_ask;

int main() {
  if (molt::start("user-host") != 0) {
    std::cerr << molt_last_error() << '\n';
    return 1;
  }
  std::cout << "ready" << std::endl;
  for (int n; std::cin >> n;) std::cout << on_ask(n) << std::endl;
}
