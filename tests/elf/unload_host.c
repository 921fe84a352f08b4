/* unload_host FILE: loads FILE, calls its touch() on a thread and on this one, closes it, and says
 * what became of it: "gone", "stays", or why it was not loaded.
 * unload_host A B: loads A and B in turn a thousand times, each before the other goes; "fine",
 * or why a load failed. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <pthread.h>
#include <stdio.h>

static void* run(void* function) {
  if (function) ((void (*)(void))function)();
  return NULL;
}

static int look(const char* file) {
  void* handle = dlopen(file, RTLD_NOW | RTLD_LOCAL);
  if (!handle) {
    puts(dlerror());
    return 0;
  }
  void* touch = dlsym(handle, "touch");
  pthread_t thread;
  if (pthread_create(&thread, NULL, run, touch) != 0) return 1;
  pthread_join(thread, NULL);
  run(touch);
  if (dlclose(handle) != 0) return 1;
  puts(dlopen(file, RTLD_NOW | RTLD_NOLOAD) ? "stays" : "gone");
  return 0;
}

static int take_turns(char** files) {
  void* last = NULL;
  for (int turn = 0; turn < 1000; ++turn) {
    void* next = dlopen(files[turn % 2], RTLD_NOW | RTLD_LOCAL);
    if (!next) {
      puts(dlerror());
      return 0;
    }
    if (last) dlclose(last);
    last = next;
  }
  puts("fine");
  return 0;
}

int main(int count, char** arguments) {
  return count == 2 ? look(arguments[1]) : count == 3 ? take_turns(arguments + 1) : 2;
}
