// A client_count whose state no other version can take: cut off in the middle, or newer than all.
#include "http_files/hooks.hpp"

#include <molt/module.hpp>

#include <string_view>

namespace {

bool report(const http_files::CounterSink& sink) {
  sink.add(sink.context, "misfit", 7, 0);
  return true;
}

int save(molt::state_writer out) {
  if (int error = out.put(std::uint64_t{2})) return error;  // two clients, and here is one
  if (int error = out.put(std::string_view("misfit"))) return error;
  return out.put(std::uint64_t{7});
}

int restore(molt::state_reader) { return 0; }

}  // namespace

MOLT_MODULE("client_count", "0.9", "Apache-2.0", "hands over a state that cannot be taken")
MOLT_HOOK(http_files::counters_point, report)
#ifdef NEWER
MOLT_STATE(3, 3, save, restore)
#else
MOLT_STATE(1, 1, save, restore)
#endif
