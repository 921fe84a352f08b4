#include "control/control.hpp"

namespace molt::control {
Status start(const Options&) { return fail(ENOSYS, "the control socket is being written"); }
void stop() {}
void after_fork_child() {}
const module::Observer* observer() { return nullptr; }
}  // namespace molt::control
