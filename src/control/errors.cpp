#include "control/errors.hpp"

#include <cerrno>
#include <string_view>

#include "module/manager.hpp"

namespace molt::control {
namespace {

using wire::ErrorClass;

struct Rule {
  Asked asked;
  int code;
  ErrorClass kind;
};

constexpr Rule rules[] = {
    // The file does not fit this process: unknown symbols, another format, parameters, signatures.
    {Asked::load, ENOENT, ErrorClass::refused},
    {Asked::load, ENOEXEC, ErrorClass::refused},
    {Asked::load, EINVAL, ErrorClass::refused},
    // A patch for another build, or one whose code cannot be placed here.
    {Asked::load, ESTALE, ErrorClass::refused},
    {Asked::load, ERANGE, ErrorClass::refused},
    {Asked::load, ENOTSUP, ErrorClass::refused},
    {Asked::module, ENOENT, ErrorClass::missing},
    {Asked::hook, ENOENT, ErrorClass::missing},
    {Asked::attribute, ENOENT, ErrorClass::missing},
    {Asked::attribute, ENODEV, ErrorClass::missing},
    {Asked::attribute, EISDIR, ErrorClass::usage},
};

// Errors name the function in which they were made. These hand on what module code answered, which
// may be any errno and has none of its usual meanings.
bool came_from_module(const Error& error) {
  const std::string_view site = error.site;
  return site == "run_init" || site == "notify" || site == "transfer";
}

// Molt's own refusals, as against an EPERM or EACCES from a module's init or a parameter's setter.
bool is_about_permission(const Error& error) {
  const std::string_view site = error.site;
  if (error.code == EPERM) return module::loading_locked();
  return error.code == EACCES && (site == "get_attribute" || site == "set_attribute");
}

}  // namespace

ErrorClass classify(Asked asked, const Error& error) {
  if (asked == Asked::request) return ErrorClass::usage;
  if (came_from_module(error)) return ErrorClass::failed;
  if (error.code == ETIMEDOUT) return ErrorClass::stalled;
  if (is_about_permission(error)) return ErrorClass::permission;
  for (const Rule& rule : rules) {
    if (rule.asked == asked && rule.code == error.code) return rule.kind;
  }
  return ErrorClass::failed;
}

Error explain_closed(const Error& error) {
  if (error.code != EBADF) return error;
  return fail(
             {EBADF, error.site},
             "%s; another thread of the process closes descriptors that it did not open: try again",
             error.detail)
      .value();
}

}  // namespace molt::control
