#include "attach/attach.hpp"

#include "attach/helper.hpp"
#include "attach/obstacles.hpp"
#include "attach/tracer.hpp"

#include <fcntl.h>
#include <linux/close_range.h>
#include <linux/openat2.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <thread>
#include <utility>

namespace molt::attach {

namespace {

constexpr int rtld_now = 2;
constexpr int rtld_noload = 4;
constexpr const char* runtime_soname = "libmolt.so.0";
constexpr std::chrono::milliseconds moment{1};
constexpr std::chrono::seconds longest_exec{1};
// From these names the C library is known; before glibc 2.34 it was three libraries.
constexpr std::string_view libraries[] = {"libc.so.", "libc-2.", "libpthread", "libdl"};

// T1. The descriptor holds the lock.
Result<Fd> lock_process(const Target& target, Clock::time_point deadline) {
  Fd fd(::open(target.proc("").c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  if (!fd) return fail(ESRCH, "there is no process %d", target.pid());
  while (flock(fd.get(), LOCK_EX | LOCK_NB) != 0) {
    if (errno != EWOULDBLOCK && errno != EINTR) break;  // no such locks here
    if (Clock::now() > deadline) {
      return fail(EBUSY, "another program is attaching to process %d", target.pid());
    }
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
  return fd;
}

struct Place {
  Functions functions;
  std::uint64_t code = 0;
};

Result<Place> look(const Target& target) {
  std::vector<Object> objects;
  for (std::string_view name : libraries) {
    if (auto object = target.object(name)) objects.push_back(std::move(*object));
  }
  if (objects.empty()) {
    if (target.has_ended()) return fail(ESRCH, "process %d has ended", target.pid());
    return fail(ENOEXEC, "the C library of process %d cannot be read, or is not glibc",
                target.pid());
  }
  auto find = [&](const char* name) -> std::uint64_t {
    for (const Object& object : objects) {
      if (const std::uint64_t at = object.function(name)) return at;
    }
    return 0;
  };
  Place place;
  const std::pair<const char*, std::uint64_t*> wanted[] = {
      {"pthread_create", &place.functions.pthread_create},
      {"pthread_self", &place.functions.pthread_self},
      {"pthread_detach", &place.functions.pthread_detach},
      {"__errno_location", &place.functions.errno_location},
      {"munmap", &place.functions.munmap},
      {"dlopen", &place.functions.dlopen},
      {"dlsym", &place.functions.dlsym},
      {"dlerror", &place.functions.dlerror},
      {"memfd_create", &place.functions.memfd_create},
      {"close", &place.functions.close},
      {"syscall", &place.functions.syscall},
  };
  for (auto [name, at] : wanted) {
    *at = find(name);
    if (*at == 0) {
      return fail(ENOEXEC, "the C library of process %d has no %s; glibc 2.27 or newer is needed",
                  target.pid(), name);
    }
  }
  for (const Object& object : objects) {
    const auto room = object.room_for_code(stub().code.size());
    if (!room) continue;
    const Mapping* mapping = target.mapping_at(*room);
    std::vector<std::byte> there(stub().code.size());
    if (mapping == nullptr || !mapping->executable || *room + there.size() > mapping->end ||
        !target.read(*room, there)) {
      continue;
    }
    // Zeros, or what an attach that was killed has left.
    const bool zeros =
        std::all_of(there.begin(), there.end(), [](std::byte b) { return b == std::byte{0}; });
    if (zeros || std::equal(there.begin(), there.end(), stub().code.begin())) {
      place.code = *room;
      return place;
    }
  }
  return fail(ENOMEM, "no library of process %d has room for code", target.pid());
}

// All of one file into another.
Status copy_file(const std::string& path, const Fd& to, int pid) {
  const Fd from(::open(path.c_str(), O_RDONLY | O_CLOEXEC));
  if (!from) return fail_errno(errno, "cannot read %s", path.c_str());
  std::vector<char> buffer(1 << 20);
  for (;;) {
    const ssize_t got = ::read(from.get(), buffer.data(), buffer.size());
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) return fail_errno(errno, "cannot read %s", path.c_str());
    if (got == 0) return {};
    for (ssize_t done = 0; done < got;) {
      const ssize_t put =
          ::write(to.get(), buffer.data() + done, static_cast<std::size_t>(got - done));
      if (put < 0 && errno == EINTR) continue;
      if (put < 0) return fail_errno(errno, "cannot copy the runtime to process %d", pid);
      done += put;
    }
  }
}

// Our file in a folder of the target's root, for as long as it takes to be loaded: where the target has
// neither our path nor a /proc by which it could name a memfd.
class FileInRoot {
 public:
  FileInRoot(const Target& target, const char* folder) : folder_(folder) {
    const Fd root(::open(target.proc("root").c_str(), O_PATH | O_DIRECTORY | O_CLOEXEC));
    open_how how{};
    how.flags = O_PATH | O_DIRECTORY | O_CLOEXEC;
    how.resolve = RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS;
    // Nothing in there is followed out of it, whoever may write to it.
    at_.reset(static_cast<int>(::syscall(SYS_openat2, root.get(), folder, &how, sizeof how)));
    std::uint64_t random = 0;
    if (!at_ || getrandom(&random, sizeof random, 0) != sizeof random) return;
    char name[40];
    std::snprintf(name, sizeof name, ".libmolt-%016llx.so",
                  static_cast<unsigned long long>(random));
    name_ = name;
    file_.reset(
        openat(at_.get(), name, O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0500));
    if (file_) fchmod(file_.get(), 0555);  // the umask is no business of this
  }
  ~FileInRoot() {
    if (is_made_) unlinkat(at_.get(), name_.c_str(), 0);
  }
  FileInRoot(const FileInRoot&) = delete;
  FileInRoot& operator=(const FileInRoot&) = delete;

  // False: it cannot be made there.
  bool fill(const std::string& path, int pid) {
    if (!file_) return false;
    is_made_ = true;
    const bool done = copy_file(path, file_, pid).has_value();
    file_.reset();  // what is open for writing is not executed
    return done;
  }
  std::string path() const { return folder_ + (folder_ == "/" ? "" : "/") + name_; }

 private:
  const std::string folder_;
  std::string name_;
  Fd at_, file_;
  bool is_made_ = false;
};
constexpr const char* folders_in_root[] = {"/tmp", "/var/tmp", "/dev/shm", "/run", "/"};

class Attaching {
 public:
  Attaching(Target& target, const Options& options, Clock::time_point deadline)
      : target_(target), options_(options), deadline_(deadline) {}

  Result<Report> run() {
    auto place = look(target_);
    if (!place) return pass(place);
    functions_ = place->functions;
    Report report;
    // A helper that has left the descriptor table must start nothing: what it starts would be without
    // the host's descriptors as well. Another one does that then.
    bool is_first = true;
    for (;;) {
      auto helper = Helper::start(target_, functions_, place->code, deadline_);
      if (!helper) return pass(helper);
      report.stopped_us = std::max(report.stopped_us, helper->loan().stopped_us);
      auto handle = load(*helper, report);
      if (!handle) return pass(handle);
      if (has_left_table_) {
        has_left_table_ = false;
        if (!std::exchange(is_first, false)) return fail(EMFILE, "%s", complaint_.c_str());
        continue;
      }
      // T2: when it ends the helper unmaps its pages, from a place outside the stub, and the borrowed
      // thread had passed the last instruction but two.
      if (auto started = start(*helper, *handle, report); !started) return pass(started);
      if (!is_first) report.found = Found::nothing;
      return report;
    }
  }

 private:
  Result<std::uint64_t> open(Helper& helper, const std::string& path, int flags) {
    const std::uint64_t text = helper.put(path);
    if (text == 0) return fail(ENAMETOOLONG, "the path of the runtime is too long");
    return helper.call(functions_.dlopen, {text, static_cast<std::uint64_t>(flags)}, deadline_);
  }

  // What dlopen had to say.
  std::string complaint(Helper& helper) {
    auto text = helper.call(functions_.dlerror, {}, deadline_);
    return text && *text != 0 ? target_.text(*text) : "no reason given";
  }

  Result<std::uint64_t> load(Helper& helper, Report& report) {
    auto handle = open(helper, runtime_soname, rtld_now | rtld_noload);
    if (!handle) return handle;
    if (*handle != 0) {
      report.found = Found::not_started;
      return handle;
    }
    handle = open(helper, options_.runtime, rtld_now);
    if (!handle || *handle != 0) return handle;
    complaint_ = complaint(helper);
    if (complaint_.find(strerror(EMFILE)) != complaint_.npos) {
      // The file is opened for a moment only: for that any table will do, and an empty one has room.
      if (auto left = leave_table(helper); !left) return pass(left);
      handle = open(helper, options_.runtime, rtld_now);
      if (!handle || *handle != 0) return handle;
      complaint_ = complaint(helper);
    }
    // Another root, no permission, a file system without programs: through memory.
    handle = load_from_memory(helper);
    if (!handle) return handle;
    if (*handle != 0) {
      report.by_memfd = true;
      return handle;
    }
    const std::string by_memory = complaint_;
    for (const char* folder : folders_in_root) {
      FileInRoot file(target_, folder);
      if (!file.fill(options_.runtime, target_.pid())) continue;
      handle = open(helper, file.path(), rtld_now);
      if (!handle || *handle != 0) return handle;
      complaint_ = complaint(helper);
    }
    return fail(ENOEXEC, "process %d cannot load the runtime: %s; nor from a memfd: %s",
                target_.pid(), complaint_.c_str(), by_memory.c_str());
  }

  Result<std::uint64_t> system_call(Helper& helper, std::initializer_list<std::uint64_t> words) {
    return helper.call(functions_.syscall, words, deadline_);
  }

  // The helper's own, which is empty; nobody else's changes.
  Status leave_table(Helper& helper) {
    auto left = system_call(helper, {SYS_close_range, 0, ~0u, CLOSE_RANGE_UNSHARE});
    if (!left) return pass(left);
    if (static_cast<int>(*left) != 0) {
      return fail(
          EMFILE,
          "process %d has no descriptor left, and its kernel knows no close_range(); raise its "
          "limit (prlimit --nofile)",
          target_.pid());
    }
    has_left_table_ = true;
    return {};
  }

  // The helper may have a table of its own, and its number there is not the one that it has here.
  Fd open_memfd(int number) const {
    for (const pid_t tid : target_.threads()) {
      const std::string path =
          target_.proc("task/" + std::to_string(tid) + "/fd/" + std::to_string(number));
      char name[64] = {};
      if (readlink(path.c_str(), name, sizeof name - 1) > 0 &&
          std::string_view(name).starts_with("/memfd:libmolt.so")) {
        return Fd(::open(path.c_str(), O_WRONLY | O_CLOEXEC));
      }
    }
    errno = ENOENT;
    return {};
  }

  // A copy of our file in memory of the target's. 0: it could not be loaded from there, and
  // complaint_ says why.
  Result<std::uint64_t> load_from_memory(Helper& helper) {
    auto number =
        helper.call(functions_.memfd_create, {helper.put("libmolt.so"), MFD_CLOEXEC}, deadline_);
    if (!number) return number;
    const int remote = static_cast<int>(*number);
    if (remote < 0) {
      complaint_ = "no descriptor is left there, or no memory";
      return 0;
    }
    const Fd to = open_memfd(remote);
    const Status copied =
        to ? copy_file(options_.runtime, to, target_.pid())
           : fail_errno(errno, "cannot open descriptor %d of process %d", remote, target_.pid());
    Result<std::uint64_t> handle = 0;
    if (copied) {
      handle = open(helper, "/proc/thread-self/fd/" + std::to_string(remote), rtld_now);
      if (handle && *handle == 0) complaint_ = complaint(helper);
    } else {
      complaint_ = copied.error().detail;
    }
    auto closed = helper.call(functions_.close, {static_cast<std::uint64_t>(remote)}, deadline_);
    return closed ? handle : closed;
  }

  Result<std::uint64_t> symbol(Helper& helper, std::uint64_t handle, const char* name) {
    auto at = helper.call(functions_.dlsym, {handle, helper.put(name)}, deadline_);
    if (at && *at == 0) return fail(ENOEXEC, "the runtime has no %s: another version", name);
    return at;
  }

  // To be stopped ends the sleep of its thread, as it would end anybody's.
  void wake_runtime() const {
    for (const pid_t tid : target_.threads()) {
      const std::string name = read_text(target_.proc("task/" + std::to_string(tid) + "/comm"));
      if (tid == target_.pid() || name != "molt\n") continue;
      static_cast<void>(traced<bool>([&]() -> Result<bool> {
        Tracer tracer(tid);
        if (auto done = tracer.seize(); !done) return pass(done);
        return tracer.stop();
      }));
    }
  }

  Status start(Helper& helper, std::uint64_t handle, Report& report) {
    auto start = symbol(helper, handle, "molt_start_agent");
    if (!start) return pass(start);
    auto result = helper.call(*start, {}, deadline_);
    // It runs, and somebody has removed its socket (control/server.hpp, S7). Its thread may be stopped just before it
    // falls asleep.
    bool was_woken = false;
    while (result && static_cast<int>(*result) == -ENOTCONN && Clock::now() < deadline_) {
      wake_runtime();
      was_woken = true;
      result = helper.call(*start, {}, deadline_);
    }
    if (!result) return pass(result);
    const int code = static_cast<int>(*result);
    if (code == -EALREADY && !was_woken) report.found = Found::running;
    if (code == 0 || code == -EALREADY) return {};
    auto last = symbol(helper, handle, "molt_last_error");
    if (!last) return pass(last);
    auto text = helper.call(*last, {}, deadline_);
    return fail(-code, "the runtime in process %d does not start: %s", target_.pid(),
                text ? target_.text(*text).c_str() : "");
  }

  Target& target_;
  const Options& options_;
  Clock::time_point deadline_;
  Functions functions_;
  bool has_left_table_ = false;
  std::string complaint_;  // the loader's last
};

}  // namespace

namespace {

Result<Report> attach_once(int pid, const Options& options, Clock::time_point deadline) {
  if (auto none = refuse(pid); !none) return pass(none);
  auto target = Target::open(pid);
  if (!target) return pass(target);
  auto lock = lock_process(*target, deadline);
  if (!lock) return pass(lock);
  // Of a program that has just been executed little is there.
  const Clock::time_point begin = Clock::now();
  const auto is_loaded = [&] {
    return target->is_loaded() && (target->object("libc.so.") || target->object("libc-2.") ||
                                   Clock::now() - begin > longest_exec);
  };
  for (; !is_loaded() && Clock::now() < deadline; std::this_thread::sleep_for(moment)) {
    if (auto done = target->refresh(); !done) return pass(done);
  }
  return Attaching(*target, options, deadline).run();
}

}  // namespace

Result<Report> attach(int pid, const Options& options) {
  const Clock::time_point begin = Clock::now();
  const Clock::time_point deadline = begin + std::chrono::milliseconds(options.timeout_ms);
  auto report = attach_once(pid, options, deadline);
  // What was looked at is gone, and the process is there: it has executed another program meanwhile.
  while (!report && report.error().code == ESRCH && Clock::now() < deadline && refuse(pid)) {
    std::this_thread::sleep_for(moment);
    report = attach_once(pid, options, deadline);
  }
  if (!report) return report;
  report->total_us = std::chrono::duration<double, std::micro>(Clock::now() - begin).count();
  return report;
}

}  // namespace molt::attach
