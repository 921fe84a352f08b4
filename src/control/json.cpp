#include "control/json.hpp"

namespace molt::control {
namespace {

// Seen to before the parser begins: it needs memory for each level, whoever walks the result needs
// stack, and looking for a field in an ordered object takes time for each of its fields. A text that
// is no JSON may be judged wrongly here; the parser refuses it.
bool is_within(std::string_view text, int deepest, int most_fields) {
  int depth = 0;
  int fields = 0;
  bool in_string = false;
  for (std::size_t i = 0; i < text.size(); ++i) {
    const char c = text[i];
    if (in_string) {
      if (c == '\\') ++i;
      if (c == '"') in_string = false;
    } else if (c == '"') {
      in_string = true;
    } else if (c == '[' || c == '{') {
      if (++depth > deepest) return false;
    } else if (c == ']' || c == '}') {
      --depth;
    } else if (c == ':') {
      if (++fields > most_fields) return false;
    }
  }
  return true;
}

}  // namespace

Json parse_object(std::string_view text, int deepest, int most_fields) {
  const Json discarded(Json::value_t::discarded);
  if (!is_within(text, deepest, most_fields)) return discarded;
  Json json = Json::parse(text, nullptr, false);
  return json.is_object() ? json : discarded;
}

std::string to_text(const Json& json) {
  return json.dump(-1, ' ', false, Json::error_handler_t::replace);
}

}  // namespace molt::control
