// methods.hpp - the table of all that can be asked.
#pragma once

#include <span>
#include <string_view>

#include "control/arguments.hpp"
#include "control/request.hpp"

namespace molt::control {

using Reply = tl::expected<Json, Failure>;

struct Method {
  std::string_view name;
  bool is_slow;  // may block or run module code
  bool takes_file;
  Reply (*run)(Arguments& arguments, const Caller& caller);  // the reply without its `schema`
};

[[nodiscard]] std::span<const Method> methods();

[[nodiscard]] Json events_json(const log::Batch& batch);

}  // namespace molt::control
