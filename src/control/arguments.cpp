#include "control/arguments.hpp"

#include <algorithm>
#include <cerrno>

namespace molt::control {

const Json* Arguments::find(const char* name) {
  known_.emplace_back(name);
  const auto at = parameters_.find(name);
  return at == parameters_.end() ? nullptr : &*at;
}

const Json* Arguments::require(const char* name) {
  const Json* value = find(name);
  if (value == nullptr) refuse(name, "is missing");
  return value;
}

void Arguments::refuse(const char* name, const char* why) {
  if (problem_.empty()) problem_ = std::string("`") + name + "` " + why;
}

std::string Arguments::text_of(const char* name, const Json& value) {
  const auto* text = value.get_ptr<const std::string*>();
  if (text == nullptr || text->find('\0') != std::string::npos) {
    refuse(name, "must be a text without a NUL");
    return "";
  }
  return *text;
}

std::int64_t Arguments::number_of(const char* name, const Json& value, std::int64_t least,
                                  std::int64_t most) {
  const auto* natural = value.get_ptr<const std::uint64_t*>();
  const auto* integer = value.get_ptr<const std::int64_t*>();
  const bool is_huge = natural != nullptr && *natural > static_cast<std::uint64_t>(INT64_MAX);
  if (integer == nullptr || is_huge || *integer < least || *integer > most) {
    refuse(name,
           ("must be a whole number from " + std::to_string(least) + " to " + std::to_string(most))
               .c_str());
    return least;
  }
  return *integer;
}

std::string Arguments::text(const char* name) {
  const Json* value = require(name);
  return value ? text_of(name, *value) : "";
}

std::string Arguments::text_or(const char* name, const char* otherwise) {
  const Json* value = find(name);
  return value ? text_of(name, *value) : otherwise;
}

bool Arguments::has(const char* name) { return find(name) != nullptr; }

bool Arguments::flag(const char* name) {
  const Json* value = find(name);
  if (value == nullptr) return false;
  const auto* on = value->get_ptr<const bool*>();
  if (on == nullptr) refuse(name, "must be true or false");
  return on != nullptr && *on;
}

std::int64_t Arguments::number(const char* name, std::int64_t least, std::int64_t most) {
  const Json* value = require(name);
  return value ? number_of(name, *value, least, most) : least;
}

std::int64_t Arguments::number_or(const char* name, std::int64_t otherwise, std::int64_t least,
                                  std::int64_t most) {
  const Json* value = find(name);
  return value ? number_of(name, *value, least, most) : otherwise;
}

std::vector<std::string> Arguments::texts(const char* name, bool& is_null) {
  std::vector<std::string> all;
  is_null = false;
  const Json* value = require(name);
  if (value == nullptr) return all;
  if (value->is_null()) {
    is_null = true;
    return all;
  }
  const auto* array = value->get_ptr<const Json::array_t*>();
  if (array == nullptr) {
    refuse(name, "must be an array of texts, or null");
    return all;
  }
  for (const Json& element : *array) all.push_back(text_of(name, element));
  return all;
}

Status Arguments::complete() const {
  for (auto at = parameters_.begin(); at != parameters_.end(); ++at) {
    if (std::find(known_.begin(), known_.end(), at.key()) == known_.end()) {
      return fail(EINVAL, "there is no parameter `%s`", at.key().c_str());
    }
  }
  if (!problem_.empty()) return fail(EINVAL, "%s", problem_.c_str());
  return {};
}

}  // namespace molt::control
