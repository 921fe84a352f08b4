// target.hpp - a dlopen()ed object as the target of an audit.
#pragma once

#include <string>

#include "audit/audit.hpp"

namespace molt::audit {

// `file`: where its symbols can be read. EINVAL if the handle is none of the dynamic loader's.
[[nodiscard]] Result<Target> target_of(void* handle, const std::string& file);

}  // namespace molt::audit
