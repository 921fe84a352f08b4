// target.hpp - a dlopen()ed object as the target of an audit.
#pragma once

#include <string>

#include "audit/audit.hpp"

namespace molt::audit {

// `file`: where its symbols can be read. EINVAL if the handle is none of the dynamic loader's.
[[nodiscard]] Result<Target> target_of(void* handle, const std::string& file);

// Runs the destructors of its static objects, and what it registered by atexit(), as dlclose() would;
// then dlclose() will not. Module code runs.
void run_destructors(const Target& target);

}  // namespace molt::audit
