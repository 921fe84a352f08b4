#include "base/result.hpp"

#include <cstdarg>
#include <cstdio>
#include <cstring>

namespace molt {

namespace {

Error make_error(ErrorCode code, const char* format, va_list arguments) {
  Error error;
  error.code = code.code;
  error.site = code.site;
  std::vsnprintf(error.detail, sizeof error.detail, format, arguments);
  return error;
}

}  // namespace

tl::unexpected<Error> fail(ErrorCode code, const char* format, ...) {
  va_list arguments;
  va_start(arguments, format);
  Error error = make_error(code, format, arguments);
  va_end(arguments);
  return tl::unexpected<Error>(error);
}

tl::unexpected<Error> fail_errno(ErrorCode code, const char* format, ...) {
  va_list arguments;
  va_start(arguments, format);
  Error error = make_error(code, format, arguments);
  va_end(arguments);

  // strerror() may allocate and translate; this one is a table.
  const char* meaning = strerrordesc_np(error.code);
  std::size_t used = std::strlen(error.detail);
  std::snprintf(error.detail + used, sizeof error.detail - used, ": %s",
                meaning != nullptr ? meaning : "unknown error");
  return tl::unexpected<Error>(error);
}

const char* errno_name(int code) {
  const char* name = strerrorname_np(code);
  return name != nullptr ? name : "E?";
}

}  // namespace molt
