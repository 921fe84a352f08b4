#include "attach/freezer.hpp"

#include "attach/target.hpp"

#include <sstream>
#include <string_view>
#include <vector>

namespace molt::attach {

namespace {

// Both versions of control groups, which one machine may use side by side.
struct Version {
  std::string_view filesystem;
  std::string_view controller;  // of whose hierarchy it is; none: there is only one
  const char* is_frozen;        // begins with 1: this group was frozen, and with it all below it
  const char* switch_file;
  const char* thawed;
};
constexpr Version versions[] = {
    {"cgroup2", "", "cgroup.freeze", "cgroup.freeze", "0"},
    {"cgroup", "freezer", "freezer.self_freezing", "freezer.state", "THAWED"},
};

// Of a list with commas.
bool has_word(const std::string& list, std::string_view word) {
  std::istringstream in(list);
  for (std::string one; std::getline(in, one, ',');) {
    if (one == word) return true;
  }
  return word.empty() && list.empty();
}

// Of one hierarchy, the part below `from` is mounted at `to`.
struct Mount {
  const Version* version;
  std::string from;
  std::string to;
};

std::vector<Mount> read_mounts() {
  std::vector<Mount> all;
  std::istringstream mounts(read_text("/proc/self/mountinfo"));
  for (std::string line; std::getline(mounts, line);) {
    std::istringstream fields(line);
    std::string skipped, from, to, filesystem, options;
    fields >> skipped >> skipped >> skipped >> from >> to;
    while (fields >> skipped && skipped != "-") continue;
    fields >> filesystem >> skipped >> options;
    if (from == "/") from.clear();
    for (const Version& version : versions) {
      if (filesystem != version.filesystem) continue;
      if (!version.controller.empty() && !has_word(options, version.controller)) continue;
      all.push_back({&version, from, to});
    }
  }
  return all;
}

// `path`: of a group in that hierarchy, as /proc/PID/cgroup has it.
std::optional<Frozen> frozen_at(const std::string& path, const Mount& mount) {
  if (!path.starts_with(mount.from)) return std::nullopt;
  const std::string below = path.substr(mount.from.size());
  if (!below.empty() && below.front() != '/') return std::nullopt;
  std::string folder = mount.to + below;
  for (; folder.size() > mount.to.size(); folder.resize(folder.rfind('/'))) {
    if (read_text(folder + "/" + mount.version->is_frozen).starts_with('1')) {
      return Frozen{folder + "/" + mount.version->switch_file, mount.version->thawed};
    }
  }
  return std::nullopt;
}

}  // namespace

std::optional<Frozen> find_freezer(int pid) {
  static const std::vector<Mount> mounts = read_mounts();  // one process is one of many
  // "ID:CONTROLLERS:PATH"; the path may have colons.
  std::istringstream groups(read_text("/proc/" + std::to_string(pid) + "/cgroup"));
  for (std::string id, controllers, path; std::getline(groups, id, ':') &&
                                          std::getline(groups, controllers, ':') &&
                                          std::getline(groups, path);) {
    for (const Mount& mount : mounts) {
      if (!has_word(controllers, mount.version->controller)) continue;
      if (auto frozen = frozen_at(path, mount)) return frozen;
    }
  }
  return std::nullopt;
}

}  // namespace molt::attach
