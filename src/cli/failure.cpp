#include "cli/failure.hpp"

#include "base/result.hpp"

#include <cerrno>

namespace molt::cli {

Json Failure::json() const {
  return {{"errno", errno_name},
          {"code", code},
          {"class", wire::info(kind).name},
          {"message", message}};
}

Failure make_failure(ErrorClass kind, int code, std::string message) {
  return {kind, errno_name(code), code, std::move(message)};
}

ErrorClass class_of_errno(int code) {
  switch (code) {
    case ENOENT:
    case ENOTDIR:
    case ESRCH:
    case ENXIO:
    case ECONNREFUSED:
      return ErrorClass::missing;
    case EACCES:
    case EPERM:
      return ErrorClass::permission;
    case EAGAIN:
    case ETIMEDOUT:
      return ErrorClass::stalled;
    default:
      return ErrorClass::failed;
  }
}

Failure failure_of_reply(const Json& parameters) {
  Failure failure;
  failure.errno_name = parameters.value("errno", "");
  failure.code = parameters.value("code", 0);
  failure.message = parameters.value("message", "failed without saying why");
  // A class of a later schema is at least a failure.
  const std::string name = parameters.value("class", "");
  for (std::size_t i = 0; i < wire::error_classes.size(); ++i) {
    if (wire::error_classes[i].name == name) failure.kind = static_cast<ErrorClass>(i);
  }
  return failure;
}

void Tally::failed(int exit_code) {
  common_code_ = failed_ == 0 || common_code_ == exit_code ? exit_code : int{exit_failed};
  ++failed_;
}

int Tally::exit_code() const {
  if (failed_ == 0) return exit_done;
  return done_ > 0 ? int{exit_partly} : common_code_;
}

void Tally::add(const Tally& other) {
  done_ += other.done_;
  if (other.failed_ > 0) failed(other.common_code_);
}

}  // namespace molt::cli
