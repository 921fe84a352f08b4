// attach_many RUNTIME ATTACHES[k|t|s][/SECONDS] PROGRAM [ARGUMENT...]: starts a program that says "ready", attaches to
// it again and again, ends its input, and expects it to end well. Only the first attach loads the
// runtime; each borrows a thread. Prints how long threads were stopped. With "k" behind the number each
// attach but the last is killed at a random moment; with "s" the program is stopped and continued before. After SECONDS only the last one is begun: on a busy
// machine one may take a second.

#include "attach/attach.hpp"
#include "attach/seccomp.hpp"
#include "attach/tracer.hpp"

#include <dirent.h>
#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <vector>

using namespace molt;

// In a process of its own, which ends after at most `us` microseconds. True: it was killed.
static bool attach_and_die(pid_t pid, const attach::Options& options, unsigned us) {
  const pid_t child = fork();
  if (child == 0) {
    const bool done = attach::attach(pid, options).has_value();
    _exit(done ? 0 : 1);
  }
  const timespec wait{us / 1'000'000, us % 1'000'000 * 1000};
  nanosleep(&wait, nullptr);  // tidy: sleep-ok the moment is random on purpose
  kill(child, SIGKILL);
  int status = 0;
  waitpid(child, &status, 0);
  return WIFSIGNALED(status);
}

// The process that traces for this one, if there is one now.
static pid_t tracer_of(pid_t attaching) {
  const std::string path =
      "/proc/" + std::to_string(attaching) + "/task/" + std::to_string(attaching) + "/children";
  char text[200] = {};
  const int fd = open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (fd >= 0 && read(fd, text, sizeof text - 1) < 0) text[0] = '\0';
  if (fd >= 0) close(fd);
  return std::atoi(text);
}

// In a process of its own, whose tracing process is killed. How often.
static int attach_and_lose_tracers(pid_t pid, const attach::Options& options) {
  const pid_t child = fork();
  if (child == 0) {
    const bool done = attach::attach(pid, options).has_value();
    _exit(done ? 0 : 1);
  }
  int killed = 0;
  int status = 0;
  while (waitpid(child, &status, WNOHANG) == 0) {
    const pid_t tracer = killed < 3 ? tracer_of(child) : 0;
    if (tracer <= 0) {
      sched_yield();
      continue;
    }
    const timespec wait{0, static_cast<long>(std::rand()) % 150'000};
    nanosleep(&wait, nullptr);  // tidy: sleep-ok the moment is random on purpose
    killed += kill(tracer, SIGKILL) == 0;
  }
  if (WIFSIGNALED(status)) {
    std::printf("who lost its tracer died of signal %d\n", WTERMSIG(status));
    return -1;
  }
  return killed;
}

// What a tracing process has done to its memory before it was killed is not seen here.
static int check_memory() {
  int seen = 0;
  const auto lost = attach::traced<int>([&]() -> Result<int> {
    seen = 1;
    raise(SIGKILL);
    return 2;
  });
  const auto kept = attach::traced<int>([&]() -> Result<int> {
    seen = 3;
    return 4;
  });
  std::printf("a killed one: %d, another: %d, seen: %d\n", lost ? *lost : -1, kept ? *kept : -1,
              seen);
  return !lost && lost.error().code == EAGAIN && kept && *kept == 4 && seen == 0 ? 0 : 1;
}

// Where its threads are, and how long each has had a processor and has waited for one.
static void show_threads(pid_t pid) {
  const std::string tasks = "/proc/" + std::to_string(pid) + "/task/";
  DIR* folder = opendir(tasks.c_str());
  if (folder == nullptr) return;
  while (const dirent* entry = readdir(folder)) {
    if (entry->d_name[0] == '.') continue;
    std::printf("thread %s:", entry->d_name);
    for (const char* file : {"comm", "stat", "syscall", "schedstat", "wchan"}) {
      char text[300] = {};
      const int fd = open((tasks + entry->d_name + "/" + file).c_str(), O_RDONLY | O_CLOEXEC);
      if (fd >= 0 && read(fd, text, sizeof text - 1) > 0) {
        const char* from = std::strcmp(file, "stat") == 0 ? std::strrchr(text, ')') : nullptr;
        std::printf(" %.*s", from != nullptr ? 1 : static_cast<int>(std::strcspn(text, "\n")),
                    from != nullptr ? from + 2 : text);
      }
      if (fd >= 0) close(fd);
    }
    std::printf("\n");
  }
  closedir(folder);
}

// Until the kernel has gone on with its call by one of its own, which is what a stop makes of some.
static bool stop_and_continue(pid_t pid) {
  constexpr int tries = 500;
  for (int i = 0; i < tries; ++i) {
    int status = 0;
    kill(pid, SIGSTOP);
    if (waitpid(pid, &status, WUNTRACED) != pid || !WIFSTOPPED(status)) return false;
    kill(pid, SIGCONT);
    const timespec nap{0, 10'000'000};
    nanosleep(&nap, nullptr);  // tidy: sleep-ok between two looks, bounded
    const std::string file = "/proc/" + std::to_string(pid) + "/syscall";
    const int fd = open(file.c_str(), O_RDONLY | O_CLOEXEC);
    char text[8] = {};
    const bool is_read = read(fd, text, 4) == 4;
    close(fd);
    if (is_read && std::strcmp(text, "219 ") == 0) return true;
  }
  return false;
}

int main(int argc, char** argv) {
  if (argc == 2 && std::strcmp(argv[1], "calls") == 0) {
    for (const long number : attach::calls_made()) std::printf("%ld\n", number);
    return 0;
  }
  if (argc == 2 && std::strcmp(argv[1], "memory") == 0) return check_memory();
  if (argc < 4) return 2;
  signal(SIGPIPE, SIG_IGN);  // the program may have ended
  // Tracers whose program was killed end a moment later: somebody has to wait for them.
  prctl(PR_SET_CHILD_SUBREAPER, 1);
  const int attaches = std::atoi(argv[2]);
  int in[2];
  int out[2];
  if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, in) != 0 || pipe(out) != 0) return 2;
  const pid_t pid = fork();
  if (pid == 0) {
    dup2(in[0], 0);
    dup2(out[1], 1);
    close(out[0]);
    close(out[1]);
    execv(argv[3], argv + 3);
    _exit(127);
  }
  close(in[0]);
  close(out[1]);
  FILE* says = fdopen(out[0], "r");
  char line[200];
  bool good = std::fgets(line, sizeof line, says) != nullptr && std::strcmp(line, "ready\n") == 0;
  if (std::strchr(argv[2], 's') != nullptr) good = good && stop_and_continue(pid);
  std::vector<double> stopped;
  const attach::Options options{argv[1], 15'000};
  const bool tracers = std::strchr(argv[2], 't') != nullptr;
  const bool kills = tracers || std::strchr(argv[2], 'k') != nullptr;
  const char* limit = std::strchr(argv[2], '/');
  const time_t end = limit != nullptr ? time(nullptr) + std::atoi(limit + 1) : 0;
  int killed = 0;
  int begun = 0;
  for (int i = 0; good && i < attaches; ++i, ++begun) {
    if (end != 0 && time(nullptr) > end) i = std::max(i, attaches - 1);
    if (tracers && i + 1 < attaches) {
      const int lost = attach_and_lose_tracers(pid, options);
      good &= lost >= 0;
      killed += std::max(lost, 0);
      continue;
    }
    // The whole takes some 3 ms, on a busy machine many more.
    if (kills && i + 1 < attaches) {
      killed += attach_and_die(pid, options, static_cast<unsigned>(std::rand()) % (1000 << i % 8));
      continue;
    }
    auto report = attach::attach(pid, options);
    if (!report) {
      std::printf("attach %d: %s: %s\n", i + 1, errno_name(report.error().code),
                  report.error().detail);
      show_threads(pid);
      good = false;
      break;
    }
    const auto expected = i == 0 ? attach::Found::nothing : attach::Found::running;
    if (report->found != expected && !kills) {
      std::printf("attach %d found %d\n", i + 1, static_cast<int>(report->found));
      good = false;
    }
    stopped.push_back(report->stopped_us);
  }
  if (kills) {
    std::printf("%d of %d were killed\n", killed, begun - 1);
    // A tracer that lives for less than it takes to find it is not met.
    good &= (tracers ? 12 : 4) * killed >= begun - 1;
  }
  if (write(in[1], "x", 1) != 1) good = false;
  close(in[1]);
  // A program that hangs shall not hang the test: it is ours to end.
  int status = -1;
  for (const time_t stuck = time(nullptr) + 15; waitpid(pid, &status, WNOHANG) != pid;) {
    if (time(nullptr) > stuck) {
      std::printf("the program does not end: it is stuck\n");
      show_threads(pid);
      kill(pid, SIGKILL);
      waitpid(pid, &status, 0);
      break;
    }
    const timespec nap{0, 10'000'000};
    nanosleep(&nap, nullptr);  // tidy: sleep-ok between two looks, bounded
  }
  while (waitpid(-1, nullptr, 0) > 0) continue;
  while (std::fgets(line, sizeof line, says) != nullptr) std::printf("%s: %s", argv[3], line);
  if (WIFSIGNALED(status)) std::printf("it died of signal %d\n", WTERMSIG(status));
  good &= WIFEXITED(status) && WEXITSTATUS(status) == 0;
  std::sort(stopped.begin(), stopped.end());
  if (!stopped.empty()) {
    std::printf("%zu attaches; stopped for %.0f us at least, %.0f median, %.0f at most\n",
                stopped.size(), stopped.front(), stopped[stopped.size() / 2], stopped.back());
  }
  return good ? 0 : 1;
}
