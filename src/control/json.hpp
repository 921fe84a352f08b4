// json.hpp - JSON as the runtime may use it. Included by nobody but this layer and its tests.
//
// There are no exceptions here: whatever would throw ends the host instead. So a document is parsed
// with allow_exceptions = false, looked at with find() and get_ptr() after a test of its type, and
// written with error_handler_t::replace; at(), get<T>(), and value() are never used.
#pragma once

#ifndef JSON_NOEXCEPTION
#define JSON_NOEXCEPTION
#endif
#define JSON_USE_IMPLICIT_CONVERSIONS 0
#define JSON_ASSERT(condition) static_cast<void>(0)

#include <nlohmann/json.hpp>

#include <string>
#include <string_view>

namespace molt::control {

// Keeps the order of fields.
using Json = nlohmann::ordered_json;

// An object with at most `deepest` levels and `most_fields` fields in all; discarded if the text is
// no such thing.
[[nodiscard]] Json parse_object(std::string_view text, int deepest, int most_fields);
// Invalid UTF-8 is replaced. Does not recurse deeper than what was put in.
[[nodiscard]] std::string to_text(const Json& json);

}  // namespace molt::control
