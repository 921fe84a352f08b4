// refuse.hpp - inside of this layer: an error that carries a Refusal.
#pragma once

#include "arch/x86_64/entry.hpp"

namespace molt::arch {

[[nodiscard]] tl::unexpected<Error> refuse(Refusal refusal, const char* format, ...)
    __attribute__((format(printf, 2, 3)));

}  // namespace molt::arch
