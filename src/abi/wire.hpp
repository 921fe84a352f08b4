// wire.hpp - the names and limits that a process and the `molt` program agree on. What they mean
// is in docs/protocol.md; a change here is a change of the protocol.
#pragma once

#include <array>
#include <cstddef>
#include <string_view>

namespace molt::wire {

// Within one schema, fields are only added.
inline constexpr int schema = 1;

// Without the NUL that ends a message.
inline constexpr std::size_t request_bytes_max = 65'536;
// More than this is no reply: a thousand modules with full information stay far below.
inline constexpr std::size_t reply_bytes_max = std::size_t{16} << 20;
inline constexpr char terminator = '\0';

// DIRECTORY/molt/PID/control; in a world-writable DIRECTORY the folder is shared_folder_prefix
// followed by the effective user's number.
inline constexpr const char* directory_variable = "MOLT_DIRECTORY";
inline constexpr std::string_view folder = "molt";
inline constexpr std::string_view shared_folder_prefix = "molt-";
inline constexpr std::string_view socket_name = "control";
// Where no DIRECTORY will do: an abstract socket whose name is this, the process's id in its own pid
// namespace, a slash and something random. Who connects compares the peer's process id.
inline constexpr std::string_view abstract_prefix = "molt/";

namespace method {
inline constexpr std::string_view get_info = "molt.GetInfo";
inline constexpr std::string_view load = "molt.Load";
inline constexpr std::string_view unload = "molt.Unload";
inline constexpr std::string_view replace = "molt.Replace";
inline constexpr std::string_view list = "molt.List";
inline constexpr std::string_view info = "molt.Info";
inline constexpr std::string_view hook_list = "molt.HookList";
inline constexpr std::string_view hook_order = "molt.HookOrder";
inline constexpr std::string_view get = "molt.Get";
inline constexpr std::string_view set = "molt.Set";
inline constexpr std::string_view tree = "molt.Tree";
inline constexpr std::string_view open = "molt.Open";
inline constexpr std::string_view get_attribute = "molt.GetAttribute";
inline constexpr std::string_view close = "molt.Close";
inline constexpr std::string_view events = "molt.Events";
inline constexpr std::string_view gc = "molt.Gc";
inline constexpr std::string_view blocking = "molt.Blocking";
inline constexpr std::string_view testify = "molt.Testify";
inline constexpr std::string_view lend = "molt.Lend";
inline constexpr std::string_view audit = "molt.Audit";
inline constexpr std::string_view wait = "molt.Wait";
inline constexpr std::string_view patches = "molt.Patches";
inline constexpr std::string_view detach = "molt.Detach";
}  // namespace method

// The only error there is; what went wrong is in its parameters.
inline constexpr std::string_view error = "molt.Error";

enum class ErrorClass { failed, usage, missing, permission, refused, stalled };

struct ErrorClassInfo {
  std::string_view name;
  int exit_code;
};

// Indexed by ErrorClass.
inline constexpr std::array<ErrorClassInfo, 6> error_classes{{
    {"failed", 1},
    {"usage", 2},
    {"missing", 3},
    {"permission", 4},
    {"refused", 5},
    {"stalled", 6},
}};

constexpr const ErrorClassInfo& info(ErrorClass of) {
  return error_classes[static_cast<std::size_t>(of)];
}

// What happened to a module's memory: the `result` of an unload, the `old` of a replacement.
namespace result {
inline constexpr std::string_view unmapped = "unmapped";
inline constexpr std::string_view resident = "resident";
inline constexpr std::string_view pinned = "pinned";
inline constexpr std::string_view quarantined = "quarantined";
}  // namespace result

}  // namespace molt::wire
