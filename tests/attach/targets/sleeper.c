/* sleeper: waits for its input to end, and prints what of Molt it finds in its environment. "f": in a
   child of a fork, which says its pid; "c CAPS": guarded by a seccomp filter that allows all. */
#define _GNU_SOURCE
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

int main(int argc, char** argv) {
  const char* how = argc > 1 ? argv[1] : "";
  const char* preload = getenv("LD_PRELOAD");
  printf("ready %s%s\n", preload ? preload : "-", getenv("MOLT_AGENT") ? " agent" : "");
  fflush(stdout);
  char c;
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
  if (strcmp(how, "filtered") == 0) {
    struct sock_filter allow = {BPF_RET | BPF_K, 0, 0, SECCOMP_RET_ALLOW};
    struct sock_fprog program = {1, &allow};
    prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
    if (prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program) != 0) return 1;
    puts("filtered");
    fflush(stdout);
  }
  if (read(0, &c, 1) < 0) return 1;
  puts("ok");
  return 0;
}
