#include "builder/workspace.hpp"

#include "base/hash.hpp"
#include "builder/line_guard.hpp"

#include <fcntl.h>
#include <fmt/format.h>
#include <linux/fs.h>
#include <poll.h>
#include <sched.h>
#include <sys/file.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <chrono>
#include <csignal>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <filesystem>
#include <fstream>
#include <map>
#include <span>
#include <thread>

namespace molt::builder {
namespace {

namespace fs = std::filesystem;

bool is_inside(const std::string& path, const std::string& folder) {
  return path == folder || folder == "/" ||
         (path.starts_with(folder) && path[folder.size()] == '/');
}

std::string default_cache() {
  if (const char* given = std::getenv("XDG_CACHE_HOME"); given != nullptr && *given == '/') {
    return std::string(given) + "/molt/builds";
  }
  if (const char* home = std::getenv("HOME"); home != nullptr && *home == '/') {
    return std::string(home) + "/.cache/molt/builds";
  }
  return fmt::format("/tmp/molt-builds-{}", ::getuid());
}

// What tells that a file of the user's was changed.
struct Seen {
  std::uint64_t size = 0;
  std::int64_t seconds = 0;
  std::int64_t nanoseconds = 0;
  std::uint32_t mode = 0;

  friend bool operator==(const Seen&, const Seen&) = default;
};

using Manifest = std::map<std::string, Seen>;

Seen seen(const struct stat& status) {
  return {S_ISDIR(status.st_mode) ? 0 : static_cast<std::uint64_t>(status.st_size),
          S_ISDIR(status.st_mode) ? 0 : status.st_mtim.tv_sec,
          S_ISDIR(status.st_mode) ? 0 : status.st_mtim.tv_nsec, status.st_mode};
}

Manifest read_manifest(const std::string& path) {
  Manifest manifest;
  std::ifstream file(path);
  Seen one;
  std::string name;
  while (file >> one.size >> one.seconds >> one.nanoseconds >> one.mode && file.get() == ' ' &&
         std::getline(file, name, '\0')) {
    manifest.emplace(name, one);
  }
  return manifest;
}

// Whole, or as it was: a run may be killed here.
Status write_whole(const std::string& path, const std::string& text) {
  const std::string temporary = path + ".new";
  {
    errno = 0;
    std::ofstream file(temporary, std::ios::binary | std::ios::trunc);
    file << text;
    file.flush();
    if (!file) return fail(errno != 0 ? errno : EIO, "cannot write %s", temporary.c_str());
  }
  if (::rename(temporary.c_str(), path.c_str()) != 0) {
    return fail_errno(errno, "cannot write %s", path.c_str());
  }
  return {};
}

Status write_manifest(const std::string& path, const Manifest& manifest) {
  std::string text;
  for (const auto& [name, one] : manifest) {
    text += fmt::format("{} {} {} {} {}", one.size, one.seconds, one.nanoseconds, one.mode, name);
    text += '\0';
  }
  return write_whole(path, text);
}

struct Copying {
  const std::string& from;
  const std::string& to;
  timespec built;       // when the copy was last built; 0: it is a new one
  const Manifest& old;  // by path in the user's tree
};

// A file that changed may be older than what was built since, where it comes out of an archive or a
// backup: `make` would leave its object alone. And where the user has built in the tree, his objects come
// along: nobody knows what they include, so in a new copy the sources are newer than they (W3).
timespec time_of(const std::string& path, const struct stat& status, const timespec& built) {
  const std::string ending = fs::path(path).extension().string();
  const bool is_source = is_c_family(path) && (ending.starts_with(".c") || ending == ".C");
  if (built.tv_sec == 0 && is_source) return {0, UTIME_NOW};
  const bool is_older =
      status.st_mtim.tv_sec < built.tv_sec ||
      (status.st_mtim.tv_sec == built.tv_sec && status.st_mtim.tv_nsec <= built.tv_nsec);
  return is_older ? timespec{0, UTIME_NOW} : status.st_mtim;
}

// Between file systems. (std::filesystem's says that there was some error, where there is no room.)
bool copy_by_hand(int in, int out) {
  std::vector<char> buffer(1 << 16);
  for (;;) {
    const ssize_t n = ::read(in, buffer.data(), buffer.size());
    if (n < 0 && errno == EINTR) continue;
    if (n <= 0) return n == 0;
    for (ssize_t done = 0; done < n;) {
      const ssize_t w = ::write(out, buffer.data() + done, static_cast<std::size_t>(n - done));
      if (w < 0 && errno != EINTR) return false;
      if (w > 0) done += w;
    }
  }
}

Status copy_file(const std::string& from, const std::string& to, const struct stat& status,
                 const timespec& built) {
  const Fd in(::open(from.c_str(), O_RDONLY | O_CLOEXEC | O_NOFOLLOW));
  if (!in) return fail_errno(errno, "cannot read %s", from.c_str());
  ::unlink(to.c_str());
  const Fd out(::open(to.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, status.st_mode & 07777));
  if (!out) return fail_errno(errno, "cannot write %s", to.c_str());
  if (::ioctl(out.get(), FICLONE, in.get()) != 0) {
    for (;;) {
      const ssize_t n = ::copy_file_range(in.get(), nullptr, out.get(), nullptr, 1 << 30, 0);
      if (n < 0 && (errno == EXDEV || errno == EINVAL || errno == ENOSYS)) {
        if (!copy_by_hand(in.get(), out.get()))
          return fail_errno(errno, "cannot copy %s", from.c_str());
        break;
      }
      if (n < 0) return fail_errno(errno, "cannot copy %s", from.c_str());
      if (n == 0) break;
    }
  }
  ::fchmod(out.get(), status.st_mode & 07777);
  const timespec times[2] = {status.st_atim, time_of(to, status, built)};
  ::futimens(out.get(), times);
  return {};
}

// Copies what the manifest does not know as it is, and adds it. Sockets and the like are left out.
Status copy_changes(const Copying& copying, const std::string& relative, Manifest& now) {
  std::error_code error;
  for (const auto& entry : fs::directory_iterator(copying.from + relative, error)) {
    const std::string name = relative + "/" + entry.path().filename().string();
    const std::string from = copying.from + name;
    const std::string to = copying.to + name;
    struct stat status {};
    if (::lstat(from.c_str(), &status) != 0) continue;
    const Seen is = seen(status);
    now.emplace(from, is);
    const auto was = copying.old.find(from);
    const bool is_same = was != copying.old.end() && was->second == is;
    if (S_ISDIR(status.st_mode)) {
      if (!is_same && ::mkdir(to.c_str(), status.st_mode & 07777) != 0 && errno != EEXIST) {
        return fail_errno(errno, "cannot make the folder %s", to.c_str());
      }
      if (auto done = copy_changes(copying, name, now); !done) return done;
      continue;
    }
    if (is_same) continue;
    if (S_ISLNK(status.st_mode)) {
      const fs::path target = fs::read_symlink(from, error);
      ::unlink(to.c_str());
      fs::create_symlink(target, to, error);
      if (error) return fail_errno(error.value(), "cannot make the link %s", to.c_str());
      const timespec times[2] = {status.st_atim, time_of(to, status, copying.built)};
      ::utimensat(AT_FDCWD, to.c_str(), times, AT_SYMLINK_NOFOLLOW);
    } else if (S_ISREG(status.st_mode)) {
      if (auto done = copy_file(from, to, status, copying.built); !done) return done;
    }
  }
  if (error) {
    return fail_errno(error.value(), "cannot list %s%s", copying.from.c_str(), relative.c_str());
  }
  return {};
}

// Enters what copy_changes() will copy as something that nobody has seen. True: there is such.
bool announce(const std::string& folder, Manifest& known) {
  bool any = false;
  std::error_code error;
  for (const auto& entry : fs::directory_iterator(folder, error)) {
    const std::string name = entry.path().string();
    struct stat status {};
    if (::lstat(name.c_str(), &status) != 0) continue;
    const auto was = known.find(name);
    if (was == known.end() || was->second != seen(status)) {
      known.insert_or_assign(name, Seen{});
      any = true;
    }
    if (S_ISDIR(status.st_mode)) any |= announce(name, known);
  }
  return any;
}

std::string tail_of(const std::string& path) {
  std::ifstream file(path);
  const auto has_one_of = [](const std::string& line, std::initializer_list<const char*> words) {
    return std::ranges::any_of(words,
                               [&](const char* word) { return line.find(word) != line.npos; });
  };
  std::string line;
  std::string why;    // a compiler's or linker's reason
  std::string error;  // whatever has the word, and is not told of others
  std::string last;
  while (std::getline(file, line)) {
    if (line.empty()) continue;
    if (why.starts_with("ld.lld: ") && line.starts_with(">>> ") && why.find(">>>") == why.npos) {
      why += " " + line;
    }
    last = line;
    const bool is_of_others =
        has_one_of(line, {"collect2: error", "linker command failed", "ld returned"});
    const bool is_why =
        has_one_of(line, {"error: ", "Error: ", "undefined reference", "multiple definition of",
                          "cannot find ", "No such file or directory"});
    if (is_of_others) continue;
    if (why.empty() && is_why) why = line;
    if (error.empty() && line.find("error") != line.npos) error = line;
  }
  if (last.empty()) return "it said nothing";
  std::string best = !why.empty() ? why : !error.empty() ? error : last;
  // The linker's own name says nothing, and the file does.
  for (const char* linker : {"/usr/bin/ld: ", "/usr/bin/ld.gold: "}) {
    if (best.starts_with(linker)) best.erase(0, std::string_view(linker).size());
  }
  return best;
}

bool write_text(const char* path, const std::string& text) {
  const Fd fd(::open(path, O_WRONLY | O_CLOEXEC));
  return fd && ::write(fd.get(), text.data(), text.size()) == static_cast<ssize_t>(text.size());
}

// A mount namespace, as root or in a user namespace in which everybody is who he was.
bool enter_namespace() {
  if (::unshare(CLONE_NEWNS) == 0) return true;
  const uid_t user = ::geteuid();
  const gid_t group = ::getegid();
  if (::unshare(CLONE_NEWUSER | CLONE_NEWNS) != 0) return false;
  write_text("/proc/self/setgroups", "deny");
  return write_text("/proc/self/uid_map", fmt::format("{} {} 1", user, user)) &&
         write_text("/proc/self/gid_map", fmt::format("{} {} 1", group, group));
}

// Whoever has it wrote down who he is. If he is gone, his guard is ending what he left (stand_guard()),
// and that is waited for.
bool lock(int file) {
  if (::flock(file, LOCK_EX | LOCK_NB) != 0) {
    char text[16] = {};
    if (::pread(file, text, sizeof text - 1, 0) <= 0) return false;
    const auto owner = static_cast<pid_t>(std::strtol(text, nullptr, 10));
    if (owner <= 0 || ::kill(owner, 0) == 0 || errno != ESRCH) return false;
    while (::flock(file, LOCK_EX) != 0) {
      if (errno != EINTR) return false;
    }
  }
  const std::string own = std::to_string(::getpid());
  return ::ftruncate(file, 0) == 0 &&
         ::pwrite(file, own.data(), own.size(), 0) == static_cast<ssize_t>(own.size());
}

sigset_t guarded_signals() {
  sigset_t set;
  ::sigemptyset(&set);
  for (const int signal : {SIGTERM, SIGINT, SIGHUP, SIGQUIT, SIGCHLD}) ::sigaddset(&set, signal);
  return set;
}

void signal_children(int signal) {
  std::ifstream file(fmt::format("/proc/self/task/{}/children", ::getpid()));
  for (pid_t child; file >> child;) ::kill(child, signal);
}

// Until the last child is gone, or the time is over.
bool reap_until(std::chrono::steady_clock::time_point end) {
  const sigset_t set = guarded_signals();
  for (;;) {
    pid_t ended;
    while ((ended = ::waitpid(-1, nullptr, WNOHANG)) > 0) {
    }
    if (ended < 0 && errno == ECHILD) return true;
    const auto left = std::chrono::duration_cast<std::chrono::milliseconds>(
        end - std::chrono::steady_clock::now());
    if (left.count() <= 0) return false;
    const timespec time{left.count() / 1000, left.count() % 1000 * 1'000'000};
    (void)::sigtimedwait(&set, nullptr, &time);
  }
}

// Between the builder and its build. A build is a tree of processes, of which a signal reaches one: if the
// builder is gone the guard, to whom all orphans come, ends them all, and has the lock until then. Tools
// have a moment to clear up after themselves.
[[noreturn]] void stand_guard(pid_t builder, pid_t build, int lock_file) {
  // Of what the builder has open it needs the lock alone: ends of pipes of other jobs would stay open.
  ::close_range(3, static_cast<unsigned>(lock_file) - 1, 0);
  ::close_range(static_cast<unsigned>(lock_file) + 1, ~0U, 0);
  constexpr auto patience = std::chrono::seconds(2);
  const sigset_t set = guarded_signals();
  ::prctl(PR_SET_CHILD_SUBREAPER, 1);
  ::prctl(PR_SET_PDEATHSIG, SIGTERM);
  while (::getppid() == builder) {
    int status = 0;
    for (pid_t ended; (ended = ::waitpid(-1, &status, WNOHANG)) > 0;) {
      if (ended != build) continue;
      if (!WIFSIGNALED(status)) ::_exit(WEXITSTATUS(status));
      ::signal(WTERMSIG(status), SIG_DFL);
      ::sigprocmask(SIG_UNBLOCK, &set, nullptr);
      ::raise(WTERMSIG(status));
      ::_exit(128 + WTERMSIG(status));
    }
    // The terminal's go to the build as well; the builder's end is seen above.
    (void)::sigwaitinfo(&set, nullptr);
  }
  signal_children(SIGTERM);
  if (!reap_until(std::chrono::steady_clock::now() + patience)) {
    do {
      signal_children(SIGKILL);
    } while (!reap_until(std::chrono::steady_clock::now() + std::chrono::milliseconds(10)));
  }
  ::_exit(128 + SIGTERM);
}

constexpr const char* namespace_advice =
    "no mount namespace is permitted here: allow user namespaces "
    "(kernel.unprivileged_userns_clone, or "
    "the container's seccomp profile), or run as root";

// In a child, since there is no way back. A namespace in which nothing can be mounted is none.
bool has_namespaces() {
  const pid_t child = ::fork();
  if (child < 0) return true;
  if (child == 0) {
    const bool may =
        enter_namespace() && ::mount("none", "/", nullptr, MS_REC | MS_PRIVATE, nullptr) == 0;
    ::_exit(may ? 0 : 1);
  }
  int status = 0;
  while (::waitpid(child, &status, 0) < 0 && errno == EINTR) {
  }
  return WIFEXITED(status) && WEXITSTATUS(status) == 0;
}

}  // namespace

std::string Workspace::in_copy(const std::string& path) const {
  for (std::size_t i = 0; i < folders_.size(); ++i) {
    if (is_inside(path, folders_[i])) return copy_of(i) + path.substr(folders_[i].size());
  }
  return path;
}

// W4: what is known to write down where the tree is.
Status Workspace::check_elsewhere() const {
  for (const auto& [name, one] : read_manifest(folder_ + "/manifest")) {
    const std::string file = fs::path(name).filename().string();
    if (file != "CMakeCache.txt" && file != "build.ninja" && file != "meson-private") continue;
    return fail(EPERM, "%s has absolute paths, and %s", name.c_str(), namespace_advice);
  }
  for (const std::string& folder : folders_) {
    for (const std::string& word : options_.command) {
      if (word.find(folder) == word.npos) continue;
      return fail(EPERM, "the build command names %s, and %s", folder.c_str(), namespace_advice);
    }
  }
  return {};
}

bool Workspace::is_in_copy(const std::string& path) const {
  return std::ranges::any_of(
      folders_, [&path](const std::string& folder) { return is_inside(path, folder); });
}

std::string Workspace::copy_of(std::size_t index) const {
  return index == 0 ? tree_ : fmt::format("{}.{}", tree_, index);
}

Result<Workspace> Workspace::open(WorkspaceOptions options) {
  Workspace space;
  const std::string cache = options.cache.empty() ? default_cache() : options.cache;
  space.folders_ = {options.source};
  for (const std::string& folder : options.build_folders) {
    for (const std::string& other : space.folders_) {
      if (is_inside(folder, other) || is_inside(other, folder)) {
        return fail(EINVAL,
                    "%s and %s are inside of each other: name the outer one as the source tree",
                    folder.c_str(), other.c_str());
      }
    }
    space.folders_.push_back(folder);
  }
  for (const std::string& folder : space.folders_) {
    if (is_inside(cache, folder)) {
      return fail(EINVAL,
                  "the cache %s is inside of the tree %s: name another one in XDG_CACHE_HOME",
                  cache.c_str(), folder.c_str());
    }
  }
  std::string identity = options.source + '\n' + options.folder;
  for (const std::string& word : options.command) identity += '\n' + word;
  for (const std::string& folder : options.build_folders) identity += "\nbuild " + folder;
  const std::string hash = content_hash(std::as_bytes(std::span(identity))).substr(0, 16);
  space.folder_ =
      fmt::format("{}/{}-{}", cache, fs::path(options.source).filename().string(), hash);
  space.tree_ = space.folder_ + "/tree";
  space.options_ = std::move(options);
  std::error_code error;
  fs::create_directories(space.folder_, error);
  if (error) return fail_errno(error.value(), "cannot make the folder %s", space.folder_.c_str());
  fs::permissions(space.folder_, fs::perms::owner_all, error);
  space.lock_ = Fd(::open((space.folder_ + "/lock").c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0600));
  if (!space.lock_) return fail_errno(errno, "cannot lock %s", space.folder_.c_str());
  if (!lock(space.lock_.get())) {
    return fail(EBUSY, "another molt build works on %s: wait for it",
                space.options_.source.c_str());
  }
  if (auto done = space.copy_all(); !done) return pass(done);
  space.is_in_place_ = has_namespaces();
  if (!space.is_in_place_) {
    if (auto done = space.check_elsewhere(); !done) return pass(done);
  }
  return space;
}

Status Workspace::copy_all() {
  std::string state;
  {
    std::ifstream file(folder_ + "/state");
    std::getline(file, state);
  }
  std::error_code error;
  is_warm_ = state == "clean";
  is_resumed_ = !is_warm_ && resume(state);
  Manifest old;
  if (is_warm_ || is_resumed_) {
    old = read_manifest(folder_ + "/manifest");
  } else {
    // W2
    for (const char* name : {"/manifest", "/undo", "/pending"}) fs::remove(folder_ + name, error);
    std::vector<std::string> parts = {folder_ + "/base", folder_ + "/new", folder_ + "/old"};
    for (std::size_t i = 0; i < folders_.size(); ++i) parts.push_back(copy_of(i));
    for (const std::string& part : parts) {
      fs::remove_all(part, error);
      if (error) return fail_errno(error.value(), "cannot remove %s", part.c_str());
    }
  }
  // When the copy was last built: what the user changed since has to be newer than that.
  struct stat built {};
  if (::stat((folder_ + "/state").c_str(), &built) != 0) built = {};
  // Objects of a run that was broken off are younger than what it wrote down.
  if (is_resumed_) ::clock_gettime(CLOCK_REALTIME, &built.st_mtim);
  // Until all that was broken off is made good, the state says that it is not.
  if (!is_resumed_) {
    if (auto done = mark("copying"); !done) return done;
  }
  // A run that ends while it copies leaves nothing in the copy that the manifest does not know: what the
  // user takes away before the next one is taken away there too.
  Manifest known = old;
  bool is_more = false;
  for (const std::string& folder : folders_) is_more |= !old.empty() && announce(folder, known);
  if (is_more) {
    if (auto done = write_manifest(folder_ + "/manifest", known); !done) return done;
  }
  Manifest now;
  for (std::size_t i = 0; i < folders_.size(); ++i) {
    const std::string to = copy_of(i);
    fs::create_directories(to, error);
    const Copying copying{folders_[i], to, old.empty() ? timespec{} : built.st_mtim, old};
    if (auto done = copy_changes(copying, "", now); !done) return done;
    for (const auto& [name, was] : old) {
      if (!name.starts_with(folders_[i] + "/") || now.contains(name) || S_ISDIR(was.mode)) continue;
      fs::remove(to + name.substr(folders_[i].size()), error);
    }
  }
  for (const auto& [name, was] : old) {
    const auto is = now.find(name);
    if (is != now.end() && is->second != was) changed_.push_back(name);
  }
  std::string pending;
  for (const std::string& name : changed_) pending += "changed " + name + '\0';
  for (const std::string& name : lost_) pending += "lost " + name + '\0';
  if (auto done = write_whole(folder_ + "/pending", pending); !done) return done;
  forget_broken_off();
  return write_manifest(folder_ + "/manifest", now);
}

// W2. False: nothing there is worth going on with.
bool Workspace::resume(std::string_view state) {
  std::error_code error;
  const bool is_known = state == "copying" || state == "building" || state == "patched";
  if (!is_known || !fs::exists(folder_ + "/manifest", error)) return false;
  std::ifstream pending(folder_ + "/pending", std::ios::binary);
  for (std::string line; std::getline(pending, line, '\0');) {
    const std::size_t space = line.find(' ');
    (line.starts_with("lost ") ? lost_ : changed_).push_back(line.substr(space + 1));
  }
  if (state == "patched") {
    auto files = read_old(folder_ + "/undo");
    if (!files || !write_old(*files, tree_)) return false;
    for (const PatchedFile& file : *files) changed_.push_back(options_.source + "/" + file.path);
  }
  for (const char* phase : {"base", "new", "old"}) {
    for (const std::string& output : read_begun(folder_of(phase))) {
      lost_.push_back(output);
      if (is_in_copy(output)) fs::remove(in_copy(output), error);
    }
  }
  return true;
}

void Workspace::forget_broken_off() {
  for (const char* phase : {"base", "new", "old"}) remove_begun(folder_of(phase));
}

Status Workspace::begin_anew() {
  changed_.clear();
  lost_.clear();
  if (auto done = mark("given up"); !done) return done;
  return copy_all();
}

bool Workspace::is_full() const {
  constexpr std::uintmax_t no_room = 64 << 10;
  std::error_code error;
  const auto room = fs::space(folder_, error);
  return !error && room.available < no_room;
}

Status Workspace::mark(std::string_view state) {
  std::error_code error;
  if (state == "clean") {
    for (const char* name : {"/undo", "/pending"}) fs::remove(folder_ + name, error);
  }
  return write_whole(folder_ + "/state", std::string(state) + '\n');
}

Status Workspace::mark_patched(const std::vector<PatchedFile>& files) {
  if (auto done = save_old(files, folder_ + "/undo"); !done) return done;
  return mark("patched");
}

void Workspace::become(const Job& job, std::string_view phase, bool with_shadows,
                       int error_fd) const {
  const auto give_up = [error_fd](const std::string& text) {
    (void)!::write(error_fd, text.data(), text.size());
    ::_exit(127);
  };
  // In case somebody kills the guard.
  ::prctl(PR_SET_PDEATHSIG, SIGTERM);
  const std::string folder = is_in_place_ ? job.folder : in_copy(job.folder);
  if (is_in_place_) {
    if (!enter_namespace()) give_up(namespace_advice);
    if (::mount("none", "/", nullptr, MS_REC | MS_PRIVATE, nullptr) != 0) {
      give_up(fmt::format("cannot make the mounts private: {}", std::strerror(errno)));
    }
    for (std::size_t i = 0; i < folders_.size(); ++i) {
      if (::mount(copy_of(i).c_str(), folders_[i].c_str(), nullptr, MS_BIND, nullptr) != 0) {
        give_up(
            fmt::format("cannot mount the copy over {}: {}", folders_[i], std::strerror(errno)));
      }
    }
  } else {
    std::string map;
    for (std::size_t i = 0; i < folders_.size(); ++i) {
      map += fmt::format("{}={}\n", copy_of(i), folders_[i]);
    }
    ::setenv(capture::map_variable, map.c_str(), 1);
  }
  if (::chdir(folder.c_str()) != 0) {
    give_up(fmt::format("no folder {}: {}", folder, std::strerror(errno)));
  }
  ::setenv("PWD", folder.c_str(), 1);
  const char* before = std::getenv("LD_PRELOAD");
  const std::string preload = before != nullptr && *before != '\0'
                                  ? fmt::format("{}:{}", options_.preload, before)
                                  : options_.preload;
  ::setenv("LD_PRELOAD", preload.c_str(), 1);
  ::setenv(capture::wrapper_variable, options_.wrapper.c_str(), 1);
  ::setenv(capture::store_variable, folder_of(phase).c_str(), 1);
  ::setenv(capture::shadows_variable, with_shadows ? "1" : "0", 1);
  ::unsetenv(capture::inside_variable);
  ::setenv("CCACHE_DISABLE", "1", 1);
  const Fd out(::open(job.log.c_str(), O_WRONLY | O_CREAT | O_TRUNC, 0600));
  const Fd in(::open("/dev/null", O_RDONLY));
  ::dup2(in.get(), 0);
  ::dup2(out.get(), 1);
  ::dup2(out.get(), 2);
  std::vector<char*> words;
  for (const std::string& word : job.words) words.push_back(const_cast<char*>(word.c_str()));
  words.push_back(nullptr);
  ::execvp(job.program.c_str(), words.data());
  give_up(fmt::format("cannot start {}: {}", job.program, std::strerror(errno)));
  __builtin_unreachable();
}

Status Workspace::build(std::string_view phase, bool with_shadows, bool keep) {
  std::error_code error;
  if (!keep) fs::remove_all(folder_of(phase), error);
  fs::create_directories(folder_of(phase), error);
  if (error)
    return fail_errno(error.value(), "cannot make the folder %s", folder_of(phase).c_str());
  // The command may be a compiler itself, and this process is not the one that is preloaded.
  Job job{"env", {"env"}, options_.folder, log(phase)};
  job.words.insert(job.words.end(), options_.command.begin(), options_.command.end());
  return run(job, phase, with_shadows);
}

Status Workspace::compile_again(std::string_view phase, const std::vector<Record>& records) {
  std::atomic<std::size_t> next{0};
  std::vector<Status> results(records.size());
  const auto work = [&] {
    for (;;) {
      const std::size_t i = next.fetch_add(1, std::memory_order_relaxed);
      if (i >= records.size()) return;
      const Record& record = records[i];
      Job job{options_.wrapper,
              {capture::program_name},
              record.directory,
              fmt::format("{}.again.{}.log", folder_of(phase), i)};
      job.words.insert(job.words.end(), record.command.begin(), record.command.end());
      results[i] = run(job, phase, true);
      std::error_code error;
      if (results[i]) fs::remove(job.log, error);
    }
  };
  const std::size_t most = std::max(1u, std::thread::hardware_concurrency());
  std::vector<std::thread> threads;
  for (std::size_t i = 1; i < std::min(most, records.size()); ++i) threads.emplace_back(work);
  work();
  for (std::thread& thread : threads) thread.join();
  const auto failed = std::ranges::find_if(results, [](const Status& one) { return !one; });
  return failed == results.end() ? Status{} : *failed;
}

Status Workspace::run_beside(std::string_view phase, const std::vector<std::string>& words,
                             const std::string& folder) {
  return run({words[0], words, folder, log(phase)}, phase, false);
}

Status Workspace::run(const Job& job, std::string_view phase, bool with_shadows) {
  std::error_code error;
  int ends[2];
  if (::pipe2(ends, O_CLOEXEC) != 0) return fail_errno(errno, "no pipe");
  const Fd read_end(ends[0]);
  Fd write_end(ends[1]);
  const pid_t builder = ::getpid();
  const pid_t child = ::fork();
  if (child < 0) return fail_errno(errno, "cannot start the build");
  if (child == 0) {
    const sigset_t set = guarded_signals();
    sigset_t before;
    ::sigprocmask(SIG_BLOCK, &set, &before);
    const pid_t build = ::fork();
    if (build == 0) {
      ::sigprocmask(SIG_SETMASK, &before, nullptr);
      become(job, phase, with_shadows, write_end.get());
    }
    if (build < 0) ::_exit(127);
    stand_guard(builder, build, lock_.get());
  }
  write_end.reset();

  int status = 0;
  auto next = std::chrono::steady_clock::now() + std::chrono::seconds(1);
  for (;;) {
    const pid_t ended = ::waitpid(child, &status, options_.progress ? WNOHANG : 0);
    if (ended == child) break;
    if (ended < 0 && errno != EINTR) return fail_errno(errno, "lost the build");
    if (std::chrono::steady_clock::now() >= next) {
      next += std::chrono::seconds(1);
      std::size_t count = 0;
      for (const auto& entry : fs::directory_iterator(folder_of(phase), error)) {
        count += entry.path().extension() == ".json" ? 1 : 0;
      }
      options_.progress(count);
    }
    std::this_thread::sleep_for(std::chrono::milliseconds(5));
  }
  char text[256] = {};
  const ssize_t bytes = ::read(read_end.get(), text, sizeof text - 1);
  if (bytes > 0) return fail(EPERM, "%s", text);
  if (WIFEXITED(status) && WEXITSTATUS(status) == 0) return {};
  // The log may lack the line that says so.
  if (is_full()) {
    return fail(ENOSPC, "the build command failed: %s", folder_.c_str());
  }
  return fail(EIO, "%s failed (%s): %.140s; all of it is in %s",
              job.program == "env" ? "the build command" : job.program.c_str(),
              WIFEXITED(status) ? fmt::format("exit {}", WEXITSTATUS(status)).c_str() : "killed",
              tail_of(job.log).c_str(), job.log.c_str());
}

}  // namespace molt::builder
