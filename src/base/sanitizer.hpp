// sanitizer.hpp - whether this process is watched by a sanitizer.
//
// The runtime may be built with one, or be an ordinary one in a host that is.
#pragma once

namespace molt {

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
inline constexpr bool built_with_sanitizer = true;
#else
inline constexpr bool built_with_sanitizer = false;
#endif

// Address, thread or leak sanitizer. The same for the life of the process.
bool under_sanitizer();

}  // namespace molt
