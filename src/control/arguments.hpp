// arguments.hpp - the parameters of a request, asked for by name.
//
// A method asks for everything it knows, then whether all was well: so what it did not ask for is
// known to be unknown, and a misspelt option is refused before anything is done.
#pragma once

#include <climits>
#include <cstdint>
#include <string>
#include <vector>

#include "base/result.hpp"
#include "control/json.hpp"

namespace molt::control {

class Arguments {
 public:
  explicit Arguments(const Json& parameters) : parameters_(parameters) {}

  // Without a NUL. The first must be there.
  std::string text(const char* name);
  std::string text_or(const char* name, const char* otherwise);
  bool has(const char* name);
  bool flag(const char* name);
  std::int64_t number(const char* name, std::int64_t least, std::int64_t most);
  std::int64_t number_or(const char* name, std::int64_t otherwise, std::int64_t least,
                         std::int64_t most);
  int timeout_ms() { return static_cast<int>(number_or("timeout_ms", -1, -1, INT_MAX)); }
  // Must be there; null makes `is_null` true.
  std::vector<std::string> texts(const char* name, bool& is_null);

  // EINVAL: the first thing that was wrong, a parameter unasked for included.
  [[nodiscard]] Status complete() const;

 private:
  const Json* find(const char* name);
  const Json* require(const char* name);
  std::string text_of(const char* name, const Json& value);
  std::int64_t number_of(const char* name, const Json& value, std::int64_t least,
                         std::int64_t most);
  void refuse(const char* name, const char* why);

  const Json& parameters_;
  std::vector<std::string> known_;
  std::string problem_;
};

}  // namespace molt::control
