// P2: whoever sleeps is not disturbed. A victim sits in each blocking call that signals or ptrace
// would interrupt (and in those that they would not), is looked at a thousand times, and must see no
// EINTR, no early return and no other time-out; nor may the kernel have run it.

#include <fcntl.h>
#include <mqueue.h>
#include <poll.h>
#include <semaphore.h>
#include <signal.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/file.h>
#include <sys/ipc.h>
#include <sys/msg.h>
#include <sys/select.h>
#include <sys/sem.h>
#include <sys/socket.h>
#include <sys/un.h>

#include <memory>
#include <string>
#include <vector>

#include "threads/procfs.hpp"
#include "victims.hpp"

namespace {

using namespace molt;
using namespace molt::threads;
using victims::Code;
using victims::until;
using victims::Victim;

constexpr int looks = 1000;
// Timed calls wait so long; longer than the looks take, with a lot to spare.
constexpr std::int64_t wait_ns = 8'000'000'000;
constexpr timespec wait_time{wait_ns / 1'000'000'000, wait_ns % 1'000'000'000};

timespec wait_until(clockid_t clock) {
  timespec t;
  clock_gettime(clock, &t);
  t.tv_sec += wait_time.tv_sec;
  return t;
}

// What the calls sleep on.
struct Things {
  int pipe_in, pipe_out;
  int sockets[2];
  int timed_sockets[2];
  int listener, timed_listener;
  int epoll;
  int event;
  int messages, semaphores;
  std::string lock_path;
  sem_t semaphore, timed_semaphore;
  std::atomic<std::uint32_t> word{0};
  pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
  pthread_cond_t condition = PTHREAD_COND_INITIALIZER;
  bool condition_holds = false;

  static int listen_anywhere() {
    const int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    sockaddr_un address{};
    address.sun_family = AF_UNIX;  // the kernel finds a name
    EXPECT_EQ(bind(fd, reinterpret_cast<sockaddr*>(&address), sizeof(sa_family_t)), 0);
    EXPECT_EQ(listen(fd, 1), 0);
    return fd;
  }
  static void time_out(int fd) {
    const timeval t{wait_time.tv_sec, 0};
    EXPECT_EQ(setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &t, sizeof t), 0);
  }

  Things() {
    int pipes[2];
    EXPECT_EQ(pipe2(pipes, O_CLOEXEC), 0);
    pipe_in = pipes[1];
    pipe_out = pipes[0];
    EXPECT_EQ(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, sockets), 0);
    EXPECT_EQ(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, timed_sockets), 0);
    time_out(timed_sockets[0]);
    listener = listen_anywhere();
    timed_listener = listen_anywhere();
    time_out(timed_listener);
    epoll = epoll_create1(EPOLL_CLOEXEC);
    event = eventfd(0, EFD_CLOEXEC);
    messages = msgget(IPC_PRIVATE, 0600);
    semaphores = semget(IPC_PRIVATE, 1, 0600);
    sem_init(&semaphore, 0, 0);
    sem_init(&timed_semaphore, 0, 0);
    char path[] = "/tmp/molt-undisturbed.XXXXXX";
    const int lock = mkstemp(path);
    lock_path = path;
    EXPECT_EQ(flock(lock, LOCK_EX), 0);
    lock_ = lock;
  }
  // Lets go everyone who waits without a time-out, each in its own way.
  void release() {
    for (int i = 0; i < 2; ++i) EXPECT_EQ(write(pipe_in, "x", 1), 1);
    EXPECT_EQ(write(sockets[1], "x", 1), 1);
    sockaddr_un address{};
    socklen_t length = sizeof address;
    getsockname(listener, reinterpret_cast<sockaddr*>(&address), &length);
    connected_ = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    EXPECT_EQ(connect(connected_, reinterpret_cast<sockaddr*>(&address), length), 0);
    eventfd_write(event, 1);
    const struct {
      long type;
      char text[4];
    } message{1, "x"};
    EXPECT_EQ(msgsnd(messages, &message, sizeof message.text, 0), 0);
    sembuf up{0, 1, 0};
    EXPECT_EQ(semop(semaphores, &up, 1), 0);
    sem_post(&semaphore);
    word.store(1, std::memory_order_release);
    futex_wake_all(word);
    pthread_mutex_lock(&mutex);
    condition_holds = true;
    pthread_cond_broadcast(&condition);
    pthread_mutex_unlock(&mutex);
    flock(lock_, LOCK_UN);
  }
  ~Things() {
    for (int fd : {pipe_in, pipe_out, sockets[0], sockets[1], timed_sockets[0], timed_sockets[1],
                   listener, timed_listener, epoll, event, lock_, connected_}) {
      close(fd);
    }
    msgctl(messages, IPC_RMID, nullptr);
    semctl(semaphores, 0, IPC_RMID);
    unlink(lock_path.c_str());
  }

 private:
  int lock_ = -1;
  int connected_ = -1;
};

// What a call gave: its result, and errno if that was -1.
struct Outcome {
  long result;
  int error;
  bool operator==(const Outcome&) const = default;
};
Outcome of(long result) { return {result, result == -1 ? errno : 0}; }

struct Call {
  const char* name;
  long number;  // of the system call in which it sleeps
  bool timed;
  Outcome expected;
  std::function<Outcome(Things&)> make;
};

pid_t sleeping_child() {
  const pid_t child = fork();
  if (child == 0) {
    nanosleep(&wait_time, nullptr);  // tidy: sleep-ok the subject
    _exit(7);
  }
  return child;
}

const std::vector<Call>& calls() {
  static const std::vector<Call> all = {
      {"poll",
       SYS_poll,
       true,
       {0, 0},
       [](Things& t) {
         pollfd p{t.event, POLLPRI, 0};
         return of(poll(&p, 1, wait_ns / 1'000'000));
       }},
      {"ppoll",
       SYS_ppoll,
       true,
       {0, 0},
       [](Things& t) {
         pollfd p{t.event, POLLPRI, 0};
         return of(ppoll(&p, 1, &wait_time, nullptr));
       }},
      {"select",
       SYS_pselect6,
       true,
       {0, 0},
       [](Things&) {
         timeval time{wait_time.tv_sec, 0};
         return of(select(0, nullptr, nullptr, nullptr, &time));
       }},
      {"epoll_wait",
       SYS_epoll_wait,
       true,
       {0, 0},
       [](Things& t) {
         epoll_event event;
         return of(epoll_wait(t.epoll, &event, 1, wait_ns / 1'000'000));
       }},
      {"nanosleep",
       SYS_clock_nanosleep,
       true,
       {0, 0},
       [](Things&) { return of(nanosleep(&wait_time, nullptr)); }},  // tidy: sleep-ok the subject
      {"clock_nanosleep until",
       SYS_clock_nanosleep,
       true,
       {0, 0},
       [](Things&) {
         const timespec time = wait_until(CLOCK_MONOTONIC);
         constexpr clockid_t clock = CLOCK_MONOTONIC;
         return of(
             clock_nanosleep(clock, TIMER_ABSTIME, &time, nullptr));  // tidy: sleep-ok subject
       }},
      {"sleep",
       SYS_clock_nanosleep,
       true,
       {0, 0},
       [](Things&) {
         constexpr unsigned seconds = wait_time.tv_sec;
         return of(sleep(seconds));  // tidy: sleep-ok the subject
       }},
      {"usleep",
       SYS_clock_nanosleep,
       true,
       {0, 0},
       [](Things&) { return of(usleep(wait_ns / 1000)); }},  // tidy: sleep-ok the subject
      {"futex with a time-out",
       SYS_futex,
       true,
       {-1, ETIMEDOUT},
       [](Things&) {
         std::uint32_t word = 0;
         return of(syscall(SYS_futex, &word, FUTEX_WAIT_PRIVATE, 0, &wait_time, nullptr, 0));
       }},
      {"sem_timedwait",
       SYS_futex,
       true,
       {-1, ETIMEDOUT},
       [](Things& t) {
         const timespec time = wait_until(CLOCK_REALTIME);
         return of(sem_timedwait(&t.timed_semaphore, &time));
       }},
      {"sigtimedwait",
       SYS_rt_sigtimedwait,
       true,
       {-1, EAGAIN},
       [](Things&) {
         sigset_t set;
         sigemptyset(&set);
         sigaddset(&set, SIGWINCH);
         return of(sigtimedwait(&set, nullptr, &wait_time));
       }},
      {"recv with SO_RCVTIMEO",
       SYS_recvfrom,
       true,
       {-1, EAGAIN},
       [](Things& t) {
         char c;
         return of(recv(t.timed_sockets[0], &c, 1, 0));
       }},
      {"accept with SO_RCVTIMEO",
       SYS_accept,
       true,
       {-1, EAGAIN},
       [](Things& t) { return of(accept(t.timed_listener, nullptr, nullptr)); }},
      {"semtimedop",
       SYS_semtimedop,
       true,
       {-1, EAGAIN},
       [](Things& t) {
         sembuf down{0, -100, 0};
         return of(semtimedop(t.semaphores, &down, 1, &wait_time));
       }},
      {"waitpid",
       SYS_wait4,
       true,
       {7, 0},
       [](Things&) {
         const pid_t child = sleeping_child();
         int status = 0;
         const pid_t ended = waitpid(child, &status, 0);
         return Outcome{ended == child ? WEXITSTATUS(status) : -1, ended < 0 ? errno : 0};
       }},
      {"read of a pipe",
       SYS_read,
       false,
       {1, 0},
       [](Things& t) {
         char c;
         return of(read(t.pipe_out, &c, 1));
       }},
      {"poll of a pipe",
       SYS_poll,
       false,
       {1, 0},
       [](Things& t) {
         pollfd p{t.pipe_out, POLLIN, 0};
         const Outcome outcome = of(poll(&p, 1, -1));
         return outcome;
       }},
      {"read of an eventfd",
       SYS_read,
       false,
       {8, 0},
       [](Things& t) {
         std::uint64_t value;
         return of(read(t.event, &value, sizeof value));
       }},
      {"recv",
       SYS_recvfrom,
       false,
       {1, 0},
       [](Things& t) {
         char c;
         return of(recv(t.sockets[0], &c, 1, 0));
       }},
      {"accept",
       SYS_accept,
       false,
       {0, 0},
       [](Things& t) {
         const int fd = accept(t.listener, nullptr, nullptr);
         const int error = errno;
         if (fd >= 0) close(fd);
         return fd >= 0 ? Outcome{0, 0} : Outcome{-1, error};
       }},
      {"msgrcv",
       SYS_msgrcv,
       false,
       {4, 0},
       [](Things& t) {
         struct {
           long type;
           char text[4];
         } message;
         return of(msgrcv(t.messages, &message, sizeof message.text, 0, 0));
       }},
      {"semop",
       SYS_semtimedop,
       false,
       {0, 0},
       [](Things& t) {
         sembuf down{0, -1, 0};
         return of(semop(t.semaphores, &down, 1));
       }},
      {"futex",
       SYS_futex,
       false,
       {0, 0},
       [](Things& t) {
         return of(syscall(SYS_futex, &t.word, FUTEX_WAIT_PRIVATE, 0, nullptr, nullptr, 0));
       }},
      {"sem_wait", SYS_futex, false, {0, 0}, [](Things& t) { return of(sem_wait(&t.semaphore)); }},
      {"pthread_cond_wait",
       SYS_futex,
       false,
       {1, 0},
       [](Things& t) {
         // A wake without a reason would be allowed; what is counted is that there is exactly one.
         pthread_mutex_lock(&t.mutex);
         long wakes = 0;
         while (!t.condition_holds) {
           pthread_cond_wait(&t.condition, &t.mutex);
           ++wakes;
         }
         pthread_mutex_unlock(&t.mutex);
         return Outcome{wakes, 0};
       }},
      {"flock",
       SYS_flock,
       false,
       {0, 0},
       [](Things& t) {
         const int fd = open(t.lock_path.c_str(), O_RDWR | O_CLOEXEC);
         const Outcome outcome = of(flock(fd, LOCK_EX));
         close(fd);
         return outcome;
       }},
  };
  return all;
}

std::uint64_t runs_of(int tid) {
  std::uint64_t count = 0;
  EXPECT_TRUE(inspect([&](Census& census) {
    Thread* thread = census.find(tid);
    ASSERT_NE(thread, nullptr);
    EXPECT_TRUE(read_run_count(thread->schedstat.get(), count));
  }));
  return count;
}

struct Watched {
  const Call* call;
  Outcome outcome{-2, 0};
  std::int64_t took_ns = 0;
  std::unique_ptr<Victim> victim;
  std::uint64_t runs = 0;
};

TEST(Undisturbed, InEveryBlockingCall) {
  Code code;
  const RangeSet ranges = code.range();
  Things things;
  std::vector<Watched> watched(calls().size() + 1);
  // pause() has no other end than a signal: its victim is told at the end to leave by one.
  static const Call pause_call{
      "pause", SYS_pause, false, {-1, EINTR}, [](Things&) { return of(pause()); }};
  struct sigaction action {
  }, before;
  action.sa_handler = [](int) {};
  sigaction(SIGUSR1, &action, &before);

  for (std::size_t i = 0; i < watched.size(); ++i) {
    Watched& w = watched[i];
    w.call = i < calls().size() ? &calls()[i] : &pause_call;
    w.victim = std::make_unique<Victim>([&w, &things] {
      sigset_t set;
      sigemptyset(&set);
      sigaddset(&set, SIGWINCH);
      pthread_sigmask(SIG_BLOCK, &set, nullptr);
      const std::int64_t from = now_ns();
      w.outcome = w.call->make(things);
      w.took_ns = now_ns() - from;
    });
  }
  for (Watched& w : watched) {
    until([&] { return victims::sleeps_in(w.victim->tid(), w.call->number); });
  }
  ASSERT_TRUE(inspect([](Census& census) { ASSERT_TRUE(census.refresh()); }));
  for (Watched& w : watched) w.runs = runs_of(w.victim->tid());
  const Deadline in_time = Deadline::in_ms(wait_ns / 1'000'000 * 3 / 4);

  // Every one is looked at a thousand times; a proof over all is made in between.
  for (int i = 0; i < looks; ++i) {
    ASSERT_TRUE(inspect([&](Census& census) {
      for (Watched& w : watched) {
        Thread* thread = census.find(w.victim->tid());
        ASSERT_NE(thread, nullptr);
        const Finding f = look(census, *thread, ranges);
        ASSERT_EQ(f.verdict, Verdict::out) << w.call->name << ": " << f.reason;
      }
    }));
    if (i % 50 == 0) {
      ProofOptions options;
      options.deadline = Deadline::in_ms(0);
      options.last_means = LastMeans::signal;  // not for sleepers, whatever is allowed
      options.last_means_after = Deadline::in_ms(0);
      ASSERT_TRUE(prove_out(ranges, options));
    }
  }
  const bool was_slow = in_time.passed();
  for (Watched& w : watched) {
    if (was_slow && w.call->timed) continue;
    EXPECT_EQ(runs_of(w.victim->tid()), w.runs) << w.call->name;
    EXPECT_TRUE(victims::sleeps_in(w.victim->tid(), w.call->number)) << w.call->name;
  }
  things.release();
  tgkill(getpid(), watched.back().victim->tid(), SIGUSR1);
  for (Watched& w : watched) w.victim.reset();
  for (const Watched& w : watched) {
    EXPECT_EQ(w.outcome, w.call->expected)
        << w.call->name << ": " << w.outcome.result << ", " << strerrorname_np(w.outcome.error);
    if (!w.call->timed || was_slow) continue;
    EXPECT_GE(w.took_ns, wait_ns * 99 / 100) << w.call->name;
    // Relative time-outs that had begun anew would take longer. A busy machine takes longer too, but
    // not as long as the looks took together.
    EXPECT_LT(w.took_ns, wait_ns + wait_ns / 2) << w.call->name;
  }
  sigaction(SIGUSR1, &before, nullptr);
  if (was_slow) GTEST_SKIP() << "a thousand looks took longer than the time-outs: machine too busy";
}

}  // namespace
