// call KIND: waits in one system call, and says what it returned: "1", or "-1 Interrupted system call".
#define _GNU_SOURCE
#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <semaphore.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <sys/msg.h>
#include <sys/select.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static sem_t semaphore;
static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t condition = PTHREAD_COND_INITIALIZER;

static void in(struct timespec* t, int clock) {
  clock_gettime(clock, t);
  t->tv_sec += 1;
}

int main(int argc, char** argv) {
  if (argc != 2) return 2;
  const char* kind = argv[1];
#define IS(name) (strcmp(kind, name) == 0)
  char c;
  long result = -2;
  struct pollfd p = {0, POLLIN, 0};
  struct timespec t = {1, 0};
  struct timeval second = {20, 0};
  fd_set set;
  FD_ZERO(&set);
  FD_SET(0, &set);
  sigset_t mask;
  sigemptyset(&mask);
  int e = epoll_create1(0);
  struct epoll_event event = {.events = EPOLLIN};
  if (strncmp(kind, "epoll", 5) == 0) epoll_ctl(e, EPOLL_CTL_ADD, 0, &event);
  pid_t child = -1;
  if (IS("wait4") || IS("waitid")) {
    child = fork();
    if (child == 0) {
      while (read(0, &c, 1) < 0) {
      }
      _exit(0);
    }
  }
  setsockopt(0, SOL_SOCKET, SO_RCVTIMEO, &second, sizeof second);
  puts("ready");
  fflush(stdout);
  errno = 0;
  if (IS("read")) result = read(0, &c, 1);
  if (IS("recv")) result = recv(0, &c, 1, 0);
  if (IS("recvmsg")) {
    struct iovec v = {&c, 1};
    struct msghdr m = {.msg_iov = &v, .msg_iovlen = 1};
    result = recvmsg(0, &m, 0);
  }
  if (IS("poll")) result = poll(&p, 1, -1);
  if (IS("poll_timed")) result = poll(&p, 1, 20000);
  if (IS("ppoll")) result = ppoll(&p, 1, NULL, &mask);
  if (IS("select")) result = select(1, &set, NULL, NULL, NULL);
  if (IS("pselect")) result = pselect(1, &set, NULL, NULL, NULL, &mask);
  if (IS("epoll_wait")) result = epoll_wait(e, &event, 1, -1);
  if (IS("epoll_timed")) result = epoll_wait(e, &event, 1, 20000);
  if (IS("epoll_pwait")) result = epoll_pwait(e, &event, 1, -1, &mask);
  if (IS("wait4")) result = wait4(child, NULL, 0, NULL) == child;
  if (IS("waitid")) {
    siginfo_t info;
    result = waitid(P_PID, (id_t)child, &info, WEXITED) == 0;
  }
  // These end by themselves.
  // tidy: sleep-ok to sleep is what is tested
  if (IS("nanosleep")) result = 1 + nanosleep(&t, NULL);
  if (IS("clock_nanosleep")) {
    in(&t, CLOCK_MONOTONIC);
    // tidy: sleep-ok to sleep is what is tested
    errno = clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &t, NULL);
    result = errno == 0 ? 1 : -1;
  }
  if (IS("sem_timedwait")) {
    sem_init(&semaphore, 0, 0);
    in(&t, CLOCK_REALTIME);
    result = sem_timedwait(&semaphore, &t) == -1 && errno == ETIMEDOUT ? 1 : -1;
  }
  if (IS("cond_timedwait")) {
    pthread_mutex_lock(&mutex);
    in(&t, CLOCK_REALTIME);
    errno = pthread_cond_timedwait(&condition, &mutex, &t);
    result = errno == ETIMEDOUT ? 1 : -1;
  }
  printf("%ld %s\n", result, result < 0 ? strerror(errno) : "");
  return result == 1 ? 0 : 1;
}
