#include "attach/attach.hpp"

#include "attach/helper.hpp"
#include "attach/obstacles.hpp"

#include <fcntl.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <thread>

namespace molt::attach {

namespace {

constexpr int rtld_now = 2;
constexpr int rtld_noload = 4;
constexpr const char* runtime_soname = "libmolt.so.0";
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

// A copy of our file in memory of the target's, for processes that cannot open it by a path.
Result<std::string> give_in_memory(const Target& target, Helper& helper, const Functions& functions,
                                   const std::string& path, Clock::time_point deadline) {
  const Fd from(::open(path.c_str(), O_RDONLY | O_CLOEXEC));
  struct stat info;
  if (!from || fstat(from.get(), &info) != 0)
    return fail_errno(errno, "cannot read %s", path.c_str());
  auto number =
      helper.call(functions.memfd_create, {helper.put("libmolt.so"), MFD_CLOEXEC}, deadline);
  if (!number) return pass(number);
  const int remote = static_cast<int>(*number);
  if (remote < 0) return fail(EMFILE, "process %d has no descriptor left", target.pid());
  const std::string name = "/proc/self/fd/" + std::to_string(remote);
  const Fd to(::open(target.proc("fd/" + std::to_string(remote)).c_str(), O_WRONLY | O_CLOEXEC));
  if (!to)
    return fail_errno(errno, "cannot open descriptor %d of process %d", remote, target.pid());
  std::vector<char> buffer(1 << 20);
  for (;;) {
    const ssize_t got = ::read(from.get(), buffer.data(), buffer.size());
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) return fail_errno(errno, "cannot read %s", path.c_str());
    if (got == 0) return name;
    for (ssize_t done = 0; done < got;) {
      const ssize_t put =
          ::write(to.get(), buffer.data() + done, static_cast<std::size_t>(got - done));
      if (put < 0 && errno == EINTR) continue;
      if (put < 0)
        return fail_errno(errno, "cannot copy the runtime into process %d", target.pid());
      done += put;
    }
  }
}

class Attaching {
 public:
  Attaching(Target& target, const Options& options, Clock::time_point deadline)
      : target_(target), options_(options), deadline_(deadline) {}

  Result<Report> run() {
    auto place = look(target_);
    if (!place) return pass(place);
    functions_ = place->functions;
    Report report;
    {
      auto helper = Helper::start(target_, functions_, place->code, deadline_);
      if (!helper) return pass(helper);
      report.stopped_us = helper->loan().stopped_us;
      auto handle = load(*helper, report);
      if (!handle) return pass(handle);
      auto started = start(*helper, *handle, report);
      if (!started) return pass(started);
    }
    // T2: the helper has unmapped its pages, from a place outside the stub, and the borrowed thread
    // had passed the last instruction but two.
    return report;
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
    const std::string first = complaint(helper);
    // Another root, no permission, a file system without programs: through memory.
    auto path = give_in_memory(target_, helper, functions_, options_.runtime, deadline_);
    if (!path) {
      return fail(path.error().code, "process %d cannot load the runtime (%s), nor by memory: %s",
                  target_.pid(), first.c_str(), path.error().detail);
    }
    report.by_memfd = true;
    handle = open(helper, *path, rtld_now);
    const std::string second = handle && *handle == 0 ? complaint(helper) : "";
    const int number = std::atoi(path->substr(path->rfind('/') + 1).c_str());
    auto closed = helper.call(functions_.close, {static_cast<std::uint64_t>(number)}, deadline_);
    if (!handle) return handle;
    if (!closed) return closed;
    if (*handle == 0) {
      return fail(ENOEXEC, "process %d cannot load the runtime: %s", target_.pid(), second.c_str());
    }
    return handle;
  }

  Result<std::uint64_t> symbol(Helper& helper, std::uint64_t handle, const char* name) {
    auto at = helper.call(functions_.dlsym, {handle, helper.put(name)}, deadline_);
    if (at && *at == 0) return fail(ENOEXEC, "the runtime has no %s: another version", name);
    return at;
  }

  Status start(Helper& helper, std::uint64_t handle, Report& report) {
    auto start = symbol(helper, handle, "molt_start");
    if (!start) return pass(start);
    auto result = helper.call(*start, {0}, deadline_);
    if (!result) return pass(result);
    const int code = static_cast<int>(*result);
    if (code == -EALREADY) report.found = Found::running;
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
};

}  // namespace

Result<Report> attach(int pid, const Options& options) {
  const Clock::time_point begin = Clock::now();
  const Clock::time_point deadline = begin + std::chrono::milliseconds(options.timeout_ms);
  if (auto none = refuse(pid); !none) return pass(none);
  auto target = Target::open(pid);
  if (!target) return pass(target);
  auto lock = lock_process(*target, deadline);
  if (!lock) return pass(lock);
  auto report = Attaching(*target, options, deadline).run();
  if (!report) return report;
  report->total_us = std::chrono::duration<double, std::micro>(Clock::now() - begin).count();
  return report;
}

}  // namespace molt::attach
