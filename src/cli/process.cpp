#include "cli/process.hpp"

#include "abi/wire.hpp"

#include <dirent.h>
#include <fcntl.h>
#include <fmt/format.h>
#include <linux/openat2.h>
#include <pwd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/un.h>

#include <algorithm>
#include <cerrno>
#include <charconv>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <memory>
#include <sstream>
#include <string_view>
#include <system_error>

namespace molt::cli {
namespace {

int number(std::string_view text) {
  int value = -1;
  std::from_chars(text.data(), text.data() + text.size(), value);
  return value;
}

// The last of several values, which is the innermost namespace's, or the second, the effective id.
std::vector<std::string> words(const std::string& line) {
  std::istringstream in(line);
  std::vector<std::string> all;
  for (std::string word; in >> word;) all.push_back(word);
  return all;
}

// Opens PATH as the process itself would: its root, and links that cannot lead out of it.
Fd open_below(int root, const std::string& path) {
  open_how how{};
  how.flags = O_PATH | O_CLOEXEC | O_NOFOLLOW;
  how.resolve = RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS;
  long fd = ::syscall(SYS_openat2, root, path.c_str(), &how, sizeof how);
  // Filters of containers that do not know openat2 yet answer one or the other.
  if (fd < 0 && (errno == ENOSYS || errno == EPERM)) {
    fd = ::openat(root, path.c_str() + 1, O_PATH | O_CLOEXEC | O_NOFOLLOW);
  }
  return Fd(static_cast<int>(fd));
}

bool is_socket(const Fd& node) {
  struct stat info {};
  return ::fstat(node.get(), &info) == 0 && S_ISSOCK(info.st_mode);
}

std::string read_link(const std::string& path) {
  char target[4096];
  const ssize_t length = ::readlink(path.c_str(), target, sizeof target);
  return length < 0 ? "" : std::string(target, static_cast<std::size_t>(length));
}

// Empty where it may not be read.
std::string variable_of(const Process& process, std::string_view name) {
  std::ifstream in(fmt::format("/proc/{}/environ", process.pid), std::ios::binary);
  for (std::string entry; std::getline(in, entry, '\0');) {
    if (entry.size() > name.size() && entry.starts_with(name) && entry[name.size()] == '=') {
      return entry.substr(name.size() + 1);
    }
  }
  return "";
}

std::vector<std::string> candidates(const Process& process) {
  std::vector<std::string> directories = {variable_of(process, wire::directory_variable), "/run",
                                          variable_of(process, "XDG_RUNTIME_DIR"),
                                          fmt::format("/run/user/{}", process.uid), "/tmp"};
  if (const char* own = std::getenv(wire::directory_variable)) directories.emplace_back(own);

  std::vector<std::string> paths;
  for (const std::string& directory : directories) {
    if (!directory.starts_with('/')) continue;
    for (const std::string& folder :
         {std::string(wire::folder),
          fmt::format("{}{}", wire::shared_folder_prefix, process.uid)}) {
      std::string path =
          fmt::format("{}/{}/{}/{}", directory, folder, process.inner_pid, wire::socket_name);
      if (std::find(paths.begin(), paths.end(), path) == paths.end()) paths.push_back(path);
    }
  }
  return paths;
}

// Whether PATH ends in molt/PID/control or molt-UID/PID/control, or is an abstract @molt/PID/RANDOM.
bool is_socket_of(std::string_view path, const Process& process) {
  const std::string end = fmt::format("/{}/{}", process.inner_pid, wire::socket_name);
  if (path.starts_with('@')) {
    return path.starts_with(fmt::format("@{}{}/", wire::abstract_prefix, process.inner_pid));
  }
  if (!path.starts_with('/') || !path.ends_with(end)) return false;
  path.remove_suffix(end.size());
  const std::string_view folder = path.substr(path.rfind('/') + 1);
  return folder == wire::folder ||
         folder == fmt::format("{}{}", wire::shared_folder_prefix, process.uid);
}

}  // namespace

std::optional<Process> find_process(int pid) {
  std::ifstream in(fmt::format("/proc/{}/status", pid));
  Process process;
  for (std::string line; std::getline(in, line);) {
    const std::size_t colon = line.find(':');
    if (colon == std::string::npos) continue;
    const std::string_view key(line.data(), colon);
    const std::string value = line.substr(colon + 1);
    if (key == "Name") {
      process.comm = value.substr(std::min<std::size_t>(1, value.size()));
    } else if (const std::vector<std::string> all = words(value); all.empty()) {
      continue;
    } else if (key == "State") {
      process.state = all[0][0];
    } else if (key == "Tgid") {
      process.pid = number(all[0]);
    } else if (key == "PPid") {
      process.parent = number(all[0]);
    } else if (key == "Uid" && all.size() > 1) {
      process.uid = static_cast<uid_t>(std::strtoul(all[1].c_str(), nullptr, 10));
    } else if (key == "NStgid") {
      process.inner_pid = number(all.back());
    }
  }
  if (process.pid <= 0) return std::nullopt;
  if (process.pid != pid) return find_process(process.pid);
  if (process.inner_pid <= 0) process.inner_pid = process.pid;
  return process;
}

std::vector<int> list_pids() {
  std::vector<int> pids;
  const std::unique_ptr<DIR, int (*)(DIR*)> proc(::opendir("/proc"), ::closedir);
  if (!proc) return pids;
  while (const dirent* entry = ::readdir(proc.get())) {
    if (entry->d_name[0] >= '1' && entry->d_name[0] <= '9') pids.push_back(number(entry->d_name));
  }
  std::sort(pids.begin(), pids.end());
  return pids;
}

std::string user_name(uid_t uid) {
  passwd entry{};
  passwd* found = nullptr;
  char buffer[4096];
  if (::getpwuid_r(uid, &entry, buffer, sizeof buffer, &found) == 0 && found) return found->pw_name;
  return std::to_string(uid);
}

bool is_left_behind(const ControlSocket& socket) {
  if (!socket.node) return false;
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  fmt::format_to_n(address.sun_path, sizeof address.sun_path - 1, "/proc/self/fd/{}",
                   socket.node.get());
  const Fd probe(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  return probe &&
         ::connect(probe.get(), reinterpret_cast<sockaddr*>(&address), sizeof address) != 0 &&
         errno == ECONNREFUSED;
}

bool has_inherited(const Process& process) {
  std::ifstream in(fmt::format("/proc/{}/maps", process.pid));
  bool has_runtime = false, has_modules = false;
  // A process that uses Molt and did not ask to be controlled has a store of its own.
  const std::string own_store = fmt::format("/{}/store/", process.inner_pid);
  for (std::string line; std::getline(in, line);) {
    const auto has = [&](std::string_view part) { return line.find(part) != std::string::npos; };
    has_runtime |= has("/libmolt.so") || has("/memfd:libmolt.so");
    has_modules |= has("/memfd:molt:") || (has("/molt") && has("/store/") && !has(own_store));
    if (has_runtime && has_modules) return true;
  }
  return false;
}

bool has_own_threads(const Process& process) {
  namespace fs = std::filesystem;
  std::error_code error;
  for (fs::directory_iterator task(fmt::format("/proc/{}/task", process.pid), error), end;
       !error && task != end; task.increment(error)) {
    // The process may have "molt" in its own name; its first thread is never ours.
    if (task->path().filename() == std::to_string(process.pid)) continue;
    std::ifstream in(task->path() / "comm");
    std::string name;
    if (std::getline(in, name) && name.starts_with("molt")) return true;
  }
  return false;
}

ControlSocket SocketFinder::find(const Process& process) {
  const std::string root_path = fmt::format("/proc/{}/root", process.pid);
  Fd root(::open(root_path.c_str(), O_PATH | O_DIRECTORY | O_CLOEXEC));
  const bool may_look = static_cast<bool>(root);
  if (!may_look && errno == ENOENT) return {};  // gone, a zombie, or the kernel's own
  // Its files may be the same as ours even if its root may not be opened (another user's process).
  if (!may_look) root = Fd(::open("/", O_PATH | O_DIRECTORY | O_CLOEXEC));

  bool denied = false;
  const auto try_open = [&](const std::string& path) {
    Fd node = open_below(root.get(), path);
    if (!node) denied |= errno == EACCES;
    return node && is_socket(node) ? std::move(node) : Fd();
  };

  for (const std::string& path : candidates(process)) {
    if (Fd node = try_open(path)) return {ControlSocket::found, std::move(node), {}};
  }
  // Until here a refusal says only that there might be one.
  denied = false;
  std::vector<std::string> names;
  for (const std::string& path : listening(process)) {
    if (!is_socket_of(path, process)) continue;
    if (path.starts_with('@')) {
      names.push_back(path.substr(1));
    } else if (Fd node = try_open(path)) {
      return {ControlSocket::found, std::move(node), {}};
    }
  }
  if (!names.empty()) return {ControlSocket::found, {}, std::move(names)};
  if (denied) return {ControlSocket::denied, {}, {}};
  return {may_look ? ControlSocket::absent : ControlSocket::unknown, {}, {}};
}

const std::vector<std::string>& SocketFinder::listening(const Process& process) {
  const std::string net = read_link(fmt::format("/proc/{}/ns/net", process.pid));
  const auto [at, is_new] = listening_.try_emplace(net);
  if (is_new) {
    // An unreadable link is another user's process: most likely it is in our own namespace.
    std::ifstream in(net.empty() ? "/proc/self/net/unix"
                                 : fmt::format("/proc/{}/net/unix", process.pid));
    const std::string end = fmt::format("/{}", wire::socket_name);
    const std::string abstract = fmt::format(" @{}", wire::abstract_prefix);
    for (std::string line; std::getline(in, line);) {
      const std::size_t path = line.find('/');
      if (const std::size_t name = line.find(abstract); name != std::string::npos) {
        at->second.push_back(line.substr(name + 1));
      } else if (path != std::string::npos && line.ends_with(end)) {
        at->second.push_back(line.substr(path));
      }
    }
  }
  return at->second;
}

}  // namespace molt::cli
