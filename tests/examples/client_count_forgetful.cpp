// A client_count that takes over the state and loses it. The demo has to notice.
#include "http_files/hooks.hpp"

#include <molt/module.hpp>

namespace {

bool report(const http_files::CounterSink&) { return true; }
int save(molt::state_writer) { return 0; }
int restore(molt::state_reader) { return 0; }

}  // namespace

MOLT_MODULE("client_count", "2.0", "Apache-2.0", "forgets all counts")
MOLT_HOOK(http_files::counters_point, report)
MOLT_STATE(2, 1, save, restore)
