// busy KIND THREADS: a program that is in the middle of something all the time, and notices when it is
// disturbed. Says "ready", and at the end of its input "ok" if each thread has gone on until then.
#define _GNU_SOURCE
#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

enum { most_threads = 512 };
static atomic_ulong rounds[most_threads];
static atomic_int wrong;
static pthread_mutex_t locks[8];
static int pipe_fds[2];

static void complain(const char* what) {
  fprintf(stderr, "busy: %s: %s\n", what, strerror(errno));
  wrong = 1;
}

static int sleeps_between;

static void short_sleep(void) {
  struct timespec t = {0, 200000};
  // tidy: sleep-ok to sleep is what this program is for
  if (nanosleep(&t, NULL) != 0) complain("nanosleep");
}

static void* allocate(void* arg) {
  unsigned seed = (unsigned)(long)arg + 1;
  void* kept[64] = {0};
  for (;; ++rounds[(long)arg]) {
    for (int i = 0; i < 200; ++i) {
      unsigned at = (unsigned)rand_r(&seed) % 64;
      free(kept[at]);
      kept[at] = malloc(1u << (unsigned)rand_r(&seed) % 17);
    }
    if (rounds[(long)arg] % 8 == 0) short_sleep();
  }
  return NULL;
}

static void* lock(void* arg) {
  unsigned seed = (unsigned)(long)arg + 1;
  for (;; ++rounds[(long)arg]) {
    unsigned first = (unsigned)rand_r(&seed) % 7;
    pthread_mutex_lock(&locks[first]);
    pthread_mutex_lock(&locks[first + 1]);
    if (rounds[(long)arg] % 4 == 0) short_sleep();
    free(malloc(100));
    pthread_mutex_unlock(&locks[first + 1]);
    pthread_mutex_unlock(&locks[first]);
  }
  return NULL;
}

// Sleeps and allocates in handlers that interrupt allocations: what no program should, and some do.
static void on_signal(int number) {
  (void)number;
  int before = errno;
  for (int i = 0; i < (sleeps_between ? 1 : 20); ++i) short_sleep();
  errno = before;
}
static void* be_signalled(void* arg) {
  for (;; ++rounds[(long)arg]) {
    void* p[50];
    for (int i = 0; i < 50; ++i) p[i] = malloc(2000);  // under the lock of an arena
    for (int i = 0; i < 50; ++i) free(p[i]);
    // tidy: sleep-ok to sleep is what this program is for
    if (sleeps_between && rounds[(long)arg] % 64 == 0) usleep(100);  // our own signals interrupt it
  }
  return NULL;
}

// Many registers in use across the call, and the vector ones; errno looked at.
static void* wait_for_events(void* arg) {
  int e = epoll_create1(0);
  struct epoll_event event = {.events = EPOLLIN};
  if (e < 0 || epoll_ctl(e, EPOLL_CTL_ADD, pipe_fds[0], &event) != 0) complain("epoll");
  unsigned long pattern[8], after[8];
  for (int i = 0; i < 8; ++i)
    pattern[i] = 0x0123456789abcdefUL * (unsigned long)(i + 3 + (long)arg);
  for (;; ++rounds[(long)arg]) {
    struct epoll_event got;
    long result = 232;  // epoll_wait(e, &got, 1, 5)
    register long r10 __asm__("r10") = 5;
    __asm__ volatile(
        "movdqu (%[p]), %%xmm0\n movdqu 16(%[p]), %%xmm7\n movdqu 32(%[p]), %%xmm15\n"
        "mov 48(%[p]), %%r12\n mov 56(%[p]), %%r13\n mov 40(%[p]), %%r8\n mov 8(%[p]), %%r9\n"
        "syscall\n"
        "movdqu %%xmm0, (%[a])\n movdqu %%xmm7, 16(%[a])\n movdqu %%xmm15, 32(%[a])\n"
        "mov %%r12, 48(%[a])\n mov %%r13, 56(%[a])\n"
        "cmp %%r8, 40(%[p])\n je 1f\n movl $1, %[w]\n1: cmp %%r9, 8(%[p])\n je 2f\n"
        "movl $1, %[w]\n2:"
        : "+a"(result), [w] "+m"(wrong)
        : "D"((long)e), "S"(&got), "d"(1L), "r"(r10), [p] "b"(pattern), [a] "r"(after)
        : "rcx", "r11", "r8", "r9", "r12", "r13", "xmm0", "xmm7", "xmm15", "memory", "cc");
    if (result < 0) {
      errno = (int)-result;
      complain("epoll_wait");
    }
    if (memcmp(pattern, after, sizeof after) != 0) {
      errno = 0;
      complain("registers changed");
    }
  }
  return NULL;
}

int main(int argc, char** argv) {
  if (argc != 3) return 2;
  const int count = atoi(argv[2]);
  void* (*run)(void*) = strcmp(argv[1], "malloc") == 0     ? allocate
                        : strcmp(argv[1], "locks") == 0    ? lock
                        : strcmp(argv[1], "signals") == 0  ? be_signalled
                        : strcmp(argv[1], "handlers") == 0 ? be_signalled
                                                           : wait_for_events;
  sleeps_between = strcmp(argv[1], "signals") == 0;
  if (pipe(pipe_fds) != 0 || count > most_threads) return 2;
  for (int i = 0; i < 8; ++i) pthread_mutex_init(&locks[i], NULL);
  struct sigaction action = {.sa_handler = on_signal};
  sigaction(SIGUSR1, &action, NULL);
  pthread_t threads[most_threads];
  pthread_attr_t attributes;
  pthread_attr_init(&attributes);
  pthread_attr_setstacksize(&attributes, 256 << 10);
  for (long i = 0; i < count; ++i) {
    if (pthread_create(&threads[i], &attributes, run, (void*)i) != 0) return 2;
  }
  puts("ready");
  fflush(stdout);
  // The main thread waits in a call that is never borrowed: it shall be one of the others.
  int input = epoll_create1(0);
  struct epoll_event event = {.events = EPOLLIN};
  struct timespec pause = {run == be_signalled ? 0 : 3600, 500000};
  if (epoll_ctl(input, EPOLL_CTL_ADD, 0, &event) != 0) return 2;
  for (unsigned n = 0; syscall(SYS_epoll_pwait2, input, &event, 1, &pause, NULL, 8) != 1; ++n) {
    if (run == be_signalled) pthread_kill(threads[n % (unsigned)count], SIGUSR1);
  }
  unsigned long before[most_threads];
  for (int i = 0; i < count; ++i) before[i] = rounds[i];
  for (int i = 0; i < count; ++i) {
    for (int tries = 0; rounds[i] == before[i]; ++tries) {
      if (tries == 20000) {
        fprintf(stderr, "busy: thread %d stands still\n", i);
        return 1;
      }
      usleep(1000);  // tidy: sleep-ok between two looks, bounded
    }
  }
  if (wrong) return 1;
  puts("ok");
  return 0;
}
