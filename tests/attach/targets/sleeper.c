/* sleeper: waits for its input to end, and prints what of Molt it finds in its environment. "fork": in a
   child of a fork, which says its pid; "filtered": guarded by a seccomp filter; "only N...": by one that kills
   for other system calls than these and its own; "full N
   M": with N descriptors at most, M if it asks, all in use; "root FOLDER": with that for its root;
   "no_exec": no memory may become code, by the kernel's word; "no_exec_filter": by a filter's;
   "crowded": with no room for code near its own; "threads N": with N more of them; "interprets": with a dynamic
   loader in its memory that is not its own, as valgrind has it; "headless": its first thread ends before; "retitled": with
   other words where its first argument was; "handler", "handler_again": a handler of SIGUSR1 interrupts its wait and
   waits itself, and the first wait fails or goes on. */
#define _GNU_SOURCE
#include <fcntl.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

/* What a livepatch replaces (modules/other_word.cpp). */
__attribute__((noipa)) const char* word(void) { return "ok"; }

/* No gap is left within 3 GiB of any code. */
static int crowd(void) {
  static char maps[1 << 16];
  int fd = open("/proc/self/maps", O_RDONLY);
  ssize_t length = 0, n;
  while ((n = read(fd, maps + length, sizeof maps - 1 - (size_t)length)) > 0) length += n;
  close(fd);
  const unsigned long around = 3UL << 30, top = (1UL << 47) - 4096;
  unsigned long end = 1UL << 16;
  for (char* line = maps; line != NULL && *line != '\0';) {
    unsigned long begin, next;
    if (sscanf(line, "%lx-%lx", &begin, &next) != 2) return -1;
    if (begin > end && begin <= top) {
      unsigned long from = begin - end > 2 * around ? begin - around : end;
      if (mmap((void*)from, begin - from, PROT_NONE,
               MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED_NOREPLACE, -1,
               0) == MAP_FAILED) {
        return -1;
      }
      if (from != end && end > 1UL << 16 &&
          mmap((void*)end, around, PROT_NONE,
               MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED_NOREPLACE, -1,
               0) == MAP_FAILED) {
        return -1;
      }
    }
    if (next > end) end = next;
    line = strchr(line, '\n');
    if (line != NULL) ++line;
  }
  return 0;
}

static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t never = PTHREAD_COND_INITIALIZER;
static void* sleep_for_ever(void* arg) {
  pthread_mutex_lock(&mutex);
  for (;;) pthread_cond_wait(&never, &mutex);
  return arg;
}

static void wait_inside(int number) {
  char c;
  if (number != SIGUSR1 || write(1, "inside\n", 7) != 7 || read(0, &c, 1) < 0) _exit(1);
}

static void* end_by_itself(void* arg) {
  char c;
  if (read(0, &c, 1) >= 0) puts(word());
  exit(0);
  return arg;
}

int main(int argc, char** argv) {
  const char* how = argc > 1 ? argv[1] : "";
  const char* preload = getenv("LD_PRELOAD");
  char c;
  const int given_up = strcmp(how, "given_up") == 0;  // that, and its rights
  if (strcmp(how, "no_exec") == 0 || given_up) {  // as MemoryDenyWriteExecute, by the kernel itself
    if (prctl(65 /* PR_SET_MDWE */, 1, 0, 0, 0) != 0) return 1;
  }
  if (given_up && (setgid(65534) != 0 || setuid(65534) != 0)) return 1;
  if (strcmp(how, "crowded") == 0 && crowd() != 0) return 1;
  if (strcmp(how, "interprets") == 0) {
    const int loader = open("/lib64/ld-linux-x86-64.so.2", O_RDONLY);
    if (mmap(NULL, 4096, PROT_READ, MAP_PRIVATE, loader, 0) == MAP_FAILED) return 1;
  }
  if (strcmp(how, "deaf") == 0) {
    sigset_t all;
    sigfillset(&all);
    sigprocmask(SIG_BLOCK, &all, NULL);
  }
  if (strcmp(how, "hidden") == 0) {
    if (prctl(PR_SET_DUMPABLE, 0, 0, 0, 0) != 0) return 1;
  }
  int moves = strcmp(how, "root") == 0 && argc > 2;
  if (moves && (chroot(argv[2]) != 0 || chdir("/") != 0)) return 1;
  if (strncmp(how, "filtered", 8) == 0) {
    // filtered: all is allowed. filtered-CALL: but for this system call, which kills, or, with a third
    // argument, gives that errno.
    unsigned number = strlen(how) > 9 ? (unsigned)atoi(how + 9) : 0xffff;
    unsigned answer =
        argc > 2 ? SECCOMP_RET_ERRNO | (unsigned)atoi(argv[2]) : SECCOMP_RET_KILL_PROCESS;
    struct sock_filter code[] = {
        {BPF_LD | BPF_W | BPF_ABS, 0, 0, 0},
        {BPF_JMP | BPF_JEQ | BPF_K, 0, 1, number},
        {BPF_RET | BPF_K, 0, 0, answer},
        {BPF_RET | BPF_K, 0, 0, SECCOMP_RET_ALLOW},
    };
    struct sock_fprog program = {4, code};
    prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
    if (prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program) != 0) return 1;
  }
  if (strcmp(how, "no_exec_filter") == 0) {
    // As MemoryDenyWriteExecute=yes of systemd before there was PR_SET_MDWE: EPERM for mmap() with
    // PROT_WRITE and PROT_EXEC, for mprotect() and pkey_mprotect() with PROT_EXEC, for shmat() with SHM_EXEC.
    struct sock_filter code[] = {
        {BPF_LD | BPF_W | BPF_ABS, 0, 0, 0},
        {BPF_JMP | BPF_JEQ | BPF_K, 3, 0, 9},         // mmap
        {BPF_JMP | BPF_JEQ | BPF_K, 5, 0, 10},        // mprotect
        {BPF_JMP | BPF_JEQ | BPF_K, 4, 0, 329},       // pkey_mprotect
        {BPF_JMP | BPF_JEQ | BPF_K, 5, 8, 30},        // shmat
        {BPF_LD | BPF_W | BPF_ABS, 0, 0, 32},         // the third argument
        {BPF_ALU | BPF_AND | BPF_K, 0, 0, 6},         // PROT_WRITE | PROT_EXEC
        {BPF_JMP | BPF_JEQ | BPF_K, 4, 5, 6},         //
        {BPF_LD | BPF_W | BPF_ABS, 0, 0, 32},         //
        {BPF_JMP | BPF_JSET | BPF_K, 2, 3, 4},        // PROT_EXEC
        {BPF_LD | BPF_W | BPF_ABS, 0, 0, 32},         //
        {BPF_JMP | BPF_JSET | BPF_K, 0, 1, 0100000},  // SHM_EXEC
        {BPF_RET | BPF_K, 0, 0, SECCOMP_RET_ERRNO | 1},
        {BPF_RET | BPF_K, 0, 0, SECCOMP_RET_ALLOW},
    };
    struct sock_fprog program = {sizeof code / sizeof code[0], code};
    prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
    if (prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program) != 0) return 1;
    // It is what it is meant to be.
    void* page = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (mprotect(page, 4096, PROT_READ | PROT_EXEC) == 0 ||
        mmap(NULL, 4096, PROT_WRITE | PROT_EXEC, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0) !=
            MAP_FAILED) {
      return 1;
    }
  }
  if (strcmp(how, "only") == 0) {
    // Those that are told, and what it needs itself.
    static const unsigned own[] = {0 /* read */, 1 /* write */, 5 /* fstat */,
                                   231 /* exit_group */};
    static struct sock_filter code[256] = {{BPF_LD | BPF_W | BPF_ABS, 0, 0, 0}};
    const unsigned count = (unsigned)(sizeof own / sizeof own[0]) + (unsigned)argc - 2;
    if (count > 250) return 1;
    for (unsigned i = 0; i < count; ++i) {
      const unsigned number =
          i + 2 < (unsigned)argc ? (unsigned)atoi(argv[i + 2]) : own[i + 2 - (unsigned)argc];
      code[i + 1] = (struct sock_filter){BPF_JMP | BPF_JEQ | BPF_K, (__u8)(count - i), 0, number};
    }
    code[count + 1] = (struct sock_filter){BPF_RET | BPF_K, 0, 0, SECCOMP_RET_KILL_PROCESS};
    code[count + 2] = (struct sock_filter){BPF_RET | BPF_K, 0, 0, SECCOMP_RET_ALLOW};
    struct sock_fprog program = {(unsigned short)(count + 3), code};
    prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
    if (prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program) != 0) return 1;
  }
  if (strcmp(how, "full") == 0 && argc > 3) {
    struct rlimit limit = {(rlim_t)atoi(argv[2]), (rlim_t)atoi(argv[3])};
    if (setrlimit(RLIMIT_NOFILE, &limit) != 0) return 1;
    while (open("/dev/null", O_RDONLY) >= 0) continue;
  }
  if (strcmp(how, "threads") == 0 && argc > 2) {
    pthread_attr_t little;
    pthread_attr_init(&little);
    pthread_attr_setstacksize(&little, 64 << 10);
    for (int i = atoi(argv[2]); i > 0; --i) {
      pthread_t thread;
      if (pthread_create(&thread, &little, sleep_for_ever, NULL) != 0) return 1;
    }
  }
  if (strcmp(how, "retitled") == 0) strcpy(argv[0], "other/words: 1");
  const int by_handler = strncmp(how, "handler", 7) == 0;
  if (by_handler) {
    struct sigaction action = {.sa_handler = wait_inside,
                               .sa_flags = strcmp(how, "handler_again") == 0 ? SA_RESTART : 0};
    sigaction(SIGUSR1, &action, NULL);
  }
  printf("ready %s%s\n", preload ? preload : "-", getenv("MOLT_AGENT") ? " agent" : "");
  fflush(stdout);
  if (strcmp(how, "fork") == 0) {
    if (read(0, &c, 1) != 1) return 1;
    pid_t child = fork();
    if (child != 0) {
      int status;
      return waitpid(child, &status, 0) == child ? WEXITSTATUS(status) : 1;
    }
    printf("child %d\n", getpid());
    fflush(stdout);
  }
  if (strcmp(how, "headless") == 0) {
    pthread_t thread;
    if (pthread_create(&thread, NULL, end_by_itself, NULL) != 0) return 1;
    pthread_exit(NULL);
  }
  if (read(0, &c, 1) < 0 && strcmp(how, "handler") != 0) return 1;
  puts(word());
  return 0;
}
