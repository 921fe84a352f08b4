/* closer: closes all descriptors that it knows nothing of, in each way there is, again and again, as daemons
   and their children do; and notices if somebody else closes its own or writes to them. "children":
   only in children. "hostile": without a pause, so that whatever anybody has open is closed at any moment. */
#define _GNU_SOURCE
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

static int is_over(void) {
  struct pollfd input = {0, POLLIN, 0};
  return poll(&input, 1, 1) > 0;
}

static int good(int fd) {
  char text[16];
  return pread(fd, text, sizeof text, 0) == 5 && memcmp(text, "mine\n", 5) == 0;
}

static int hostile(void) {
  long rounds = 0;
  for (; !is_over(); rounds += 100) {
    for (int i = 0; i < 100; ++i) closefrom(3);
  }
  puts(rounds > 1000 ? "ok" : "few rounds");
  return 0;
}

static volatile sig_atomic_t is_paused;
static void pause_or_go_on(int signal) { is_paused = signal == SIGUSR1; }

static void pause_if_asked(void) {
  sigset_t both, before;
  sigemptyset(&both);
  sigaddset(&both, SIGUSR1);
  sigaddset(&both, SIGUSR2);
  sigprocmask(SIG_BLOCK, &both, &before);
  if (is_paused) {
    puts("paused");
    fflush(stdout);
    while (is_paused) sigsuspend(&before);
  }
  sigprocmask(SIG_SETMASK, &before, NULL);
}

int main(int argc, char** argv) {
  signal(SIGUSR1, pause_or_go_on);
  signal(SIGUSR2, pause_or_go_on);
  const int is_hostile = argc > 1 && strcmp(argv[1], "hostile") == 0;
  const int only_children = argc > 1 && strcmp(argv[1], "children") == 0;
  puts("ready");
  fflush(stdout);
  if (is_hostile) return hostile();
  long rounds = 0;
  for (; !is_over(); ++rounds) {
    pause_if_asked();
    if (only_children) rounds |= 3;
    if (rounds % 4 == 0) closefrom(3);
    if (rounds % 4 == 1) close_range(3, ~0u, 0);
    if (rounds % 4 == 2) {
      for (int fd = 3; fd < 4096; ++fd) close(fd);
    }
    if (rounds % 4 == 3) {
      const pid_t child = fork();
      if (child == 0) {
        for (int fd = 3; fd < 4096; ++fd) close(fd);
        execl("/bin/true", "true", NULL);
        _exit(0);
      }
      int status = 1;
      if (waitpid(child, &status, 0) != child || status != 0) {
        printf("the child ended with %d\n", status);
        return 1;
      }
    }
    /* Low numbers, which somebody may believe to be his still. */
    int own[8];
    for (int i = 0; i < 8; ++i) {
      own[i] = memfd_create("own", 0);
      if (own[i] < 0 || write(own[i], "mine\n", 5) != 5) return 1;
    }
    usleep(100); /* tidy: sleep-ok time for others to do harm, no wait for anything */
    for (int i = 0; i < 8; ++i) {
      if (!good(own[i])) {
        printf("descriptor %d is another one\n", own[i]);
        return 1;
      }
      close(own[i]);
    }
  }
  puts(rounds > 10 ? "ok" : "few rounds");
  return 0;
}
