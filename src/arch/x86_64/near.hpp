// near.hpp - memory within reach of code that is there already.
#pragma once

#include "arch/x86_64/code.hpp"
#include "base/result.hpp"

namespace molt::arch {

// Whether code anywhere in `block` and anything in `near` can name each other.
bool within_reach(CodeRange block, CodeRange near);

// A new private mapping of whole pages, readable and executable, not writable, zeroed: in the free
// stretch nearest to `near` that is large enough and into which neither heap nor stack grow. Its
// address is a multiple of `alignment`, a power of two of at least a page; `below`: it ends there at
// the latest, 0: anywhere. Another thread may map the place first: then the next one is tried.
// ENOMEM "no near memory": there is none.
Result<CodeAddress> map_near(CodeRange near, std::size_t size, std::size_t alignment,
                             CodeAddress below = 0);

}  // namespace molt::arch
