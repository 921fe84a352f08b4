/* flags_main MODULE OBJECT: busy threads and a sleeping one go through transitions there and back, in a
 * program or library whose flags are the question. OBJECT: where the functions are; "": the program. */
#include <errno.h>
#include <molt/livepatch.h>
#include <molt/molt.h>
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>

#include "flags.h"

static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t changed = PTHREAD_COND_INITIALIZER;
static int hold, inside;
static atomic_int stop;
static atomic_long mixed, calls;

void fl_wait(void) {
  pthread_mutex_lock(&mutex);
  ++inside;
  pthread_cond_broadcast(&changed);
  while (hold) pthread_cond_wait(&changed, &mutex);
  --inside;
  pthread_mutex_unlock(&mutex);
}

static void* busy(void* unused) {
  while (!stop) {
    if (fl_outer(2) < 0) ++mixed;
    ++calls;
  }
  return unused;
}
static void* sleeper(void* result) {
  *(int*)result = fl_sleeps();
  return NULL;
}

static void must(int is_so, const char* what) {
  if (is_so) return;
  fprintf(stderr, "%s: %s\n", what, molt_last_error());
  exit(1);
}

int main(int argc, char** argv) {
  char args[200];
  snprintf(args, sizeof args, "object=%s", argc > 2 ? argv[2] : "");
  pthread_t threads[2], asleep;
  for (int i = 0; i < 2; ++i) pthread_create(&threads[i], NULL, busy, NULL);
  for (int round = 0; round < 5; ++round) {
    int slept_in = 0;
    pthread_mutex_lock(&mutex);
    hold = 1;
    pthread_mutex_unlock(&mutex);
    pthread_create(&asleep, NULL, sleeper, &slept_in);
    pthread_mutex_lock(&mutex);
    while (inside == 0) pthread_cond_wait(&changed, &mutex);
    pthread_mutex_unlock(&mutex);
    must(molt_load(argv[1], args, 0, -1) == 0, "load");
    must(molt_patch_wait(10) == -ETIMEDOUT, "a thread sleeps in the old version");
    must(fl_outer(1) == 2, "this thread has changed over");
    pthread_mutex_lock(&mutex);
    hold = 0;
    pthread_cond_broadcast(&changed);
    pthread_mutex_unlock(&mutex);
    pthread_join(asleep, NULL);
    must(slept_in == 1, "it was in the old version");
    must(molt_patch_wait(10000) == 0, "the transition");
    must(fl_outer(1) == 2 && fl_sleeps() == 2, "the new versions");
    must(molt_patch_set_enabled("lp_flags", 0) == 0, "disable");
    must(molt_patch_wait(10000) == 0, "the way back");
    must(fl_outer(1) == 1 && fl_sleeps() == 1, "the old versions");
    must(molt_unload("lp_flags", MOLT_UNLOAD_RESIDENT, 10000) == 0, "unload");
  }
  stop = 1;
  for (int i = 0; i < 2; ++i) pthread_join(threads[i], NULL);
  must(mixed == 0 && calls > 0, "one version for each activation");
  printf("%ld calls, none mixed\n", (long)calls);
  return 0;
}
