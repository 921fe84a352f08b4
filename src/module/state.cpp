#include "module/state.hpp"

#include <cerrno>
#include <cstring>

namespace {
// A module that saves more than this has a bug; it must not take the host's memory with it.
constexpr std::size_t largest_state = std::size_t{1} << 30;
}  // namespace

extern "C" int molt_state_write(molt_state* state, const void* data, std::size_t bytes) {
  if (bytes > largest_state - state->bytes.size()) return -ENOMEM;
  std::size_t at = state->bytes.size();
  if (!state->bytes.try_resize(at + bytes)) return -ENOMEM;
  std::memcpy(state->bytes.data() + at, data, bytes);
  return 0;
}
extern "C" const void* molt_state_data(const molt_state* state) { return state->bytes.data(); }
extern "C" std::size_t molt_state_size(const molt_state* state) { return state->bytes.size(); }
extern "C" std::uint32_t molt_state_version(const molt_state* state) { return state->version; }
extern "C" int molt_state_final(const molt_state* state) { return state->final; }
