// state.hpp - the state that moves from one version of a module to the next: bytes and a version.
#pragma once

#include <molt/molt.h>

#include <cstdint>

#include "base/memory.hpp"

struct molt_state {
  molt::Bytes bytes;
  std::uint32_t version = 0;
  bool final = false;
};
