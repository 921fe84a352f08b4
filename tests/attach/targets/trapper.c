/* trapper: a program that lives by SIGTRAP. One thread has breakpoints of its own, one sends itself the signal,
   all open files, in the handler too; each trap must reach the handler once, and nobody else's may. Says "ready"; for
   each line of its input: whose handler is there ("mine", "another"), puts one over it that calls the one
   before ("over"), or calls that with the number alone ("plain"), takes that back ("back"). "ok" at its end; 7 if
   handlers call each other in a circle, 8 if a trap came not once, 9 if one came that is nobody's here. */
#define _GNU_SOURCE
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static _Thread_local volatile long seen, seen_over;
static atomic_long rounds[3], wrong;
static atomic_int stop;
static struct sigaction before;
extern const char own_trap[];

static void open_one(void) {
  const int fd = open("/dev/null", O_RDONLY | O_CLOEXEC);
  if (fd < 0) {
    ++wrong;
  } else {
    close(fd);
  }
}

__attribute__((noinline)) static void trap_here(void) {
  asm volatile(".globl own_trap\nown_trap: int3");
}

static void on_trap(int signal, siginfo_t* info, void* context) {
  const char* at = (const char*)((ucontext_t*)context)->uc_mcontext.gregs[REG_RIP] - 1;
  if (signal != SIGTRAP || (info->si_code > 0 && at != own_trap)) {
    static const char text[] = "a trap that is not mine\n";
    if (write(2, text, sizeof text - 1)) _exit(9);
  }
  ++seen;
  open_one();
}

/* With everything blocked, as bash has it. */
static void on_any(int signal) {
  (void)signal;
  open_one();
}

static void on_trap_over(int signal, siginfo_t* info, void* context) {
  static _Thread_local volatile int depth;
  if (++depth > 8) _exit(7); /* long before the stack is full, which takes its time */
  ++seen_over;
  before.sa_sigaction(signal, info, context);
  --depth;
}

/* As code does it that has from signal() what it calls: the other registers hold anything. */
static void on_trap_plain(int signal) {
  ++seen_over;
  ((void (*)(int, long, long))(void*)before.sa_sigaction)(signal, 1, 2);
}

static void* work(void* given) {
  const long kind = (long)given;
  while (!stop) {
    const long then = seen;
    if (kind == 0) trap_here();
    if (kind == 1) raise(SIGTRAP);
    if (kind == 2) raise(SIGUSR1);
    if (seen != then + (kind < 2)) {
      fprintf(stderr, "%ld traps for one\n", seen - then);
      _exit(8);
    }
    open_one();
    ++rounds[kind];
    if (rounds[kind] % 64 == 0) usleep(100); /* tidy: sleep-ok so that the others run too */
  }
  return NULL;
}

static const char* whose(void) {
  struct sigaction now;
  sigaction(SIGTRAP, NULL, &now);
  return now.sa_sigaction == on_trap        ? "mine"
         : now.sa_sigaction == on_trap_over ? "over"
         : now.sa_handler == on_trap_plain  ? "plain"
                                            : "another";
}

int main(void) {
  struct sigaction action = {0};
  action.sa_sigaction = on_trap;
  action.sa_flags = SA_SIGINFO;
  sigaction(SIGTRAP, &action, NULL);
  struct sigaction any = {0};
  any.sa_handler = on_any;
  sigfillset(&any.sa_mask);
  sigaction(SIGUSR1, &any, NULL);
  pthread_t threads[3];
  for (long kind = 0; kind < 3; ++kind) pthread_create(&threads[kind], NULL, work, (void*)kind);
  puts("ready");
  fflush(stdout);
  char line[16];
  while (fgets(line, sizeof line, stdin) != NULL && line[0] != 'x') {
    const int is_plain = strcmp(line, "plain\n") == 0;
    if (is_plain || strcmp(line, "over\n") == 0) {
      struct sigaction over = {0};
      if (is_plain) {
        over.sa_handler = on_trap_plain;
      } else {
        over.sa_sigaction = on_trap_over;
        over.sa_flags = SA_SIGINFO;
      }
      /* Asked for first: what one call gives back comes after its handler is in use. */
      sigaction(SIGTRAP, NULL, &before);
      sigaction(SIGTRAP, &over, NULL);
    }
    if (strcmp(line, "back\n") == 0) sigaction(SIGTRAP, &before, NULL);
    const long then = seen, then_over = seen_over;
    raise(SIGTRAP);
    printf("%s %ld %ld\n", whose(), seen - then, seen_over - then_over);
    fflush(stdout);
  }
  stop = 1;
  for (int kind = 0; kind < 3; ++kind) pthread_join(threads[kind], NULL);
  for (int kind = 0; kind < 3; ++kind) {
    if (rounds[kind] < 10) ++wrong;
  }
  puts(wrong == 0 ? "ok" : "disturbed");
  return wrong == 0 ? 0 : 1;
}
