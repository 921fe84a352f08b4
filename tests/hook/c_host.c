#include "c_host.h"

#include <errno.h>
#include <molt/molt.h>

typedef int callback(int);

static const int standard = C_HOST_DEFAULT;
static const int threw = C_HOST_THREW;
static struct molt_hook_info info = {sizeof(struct molt_hook_info),
                                     MOLT_COMBINE_FIRST,
                                     MOLT_FAIL_CLOSED,
                                     sizeof(int),
                                     "hook.c",
                                     "i32(i32)",
                                     0,
                                     &standard,
                                     &threw,
                                     "a hook of a C host"};
static struct molt_hook hook = {NULL, 0, NULL, &info};

int c_host_register(void) {
  info.fingerprint = molt_fingerprint(info.signature);
  return molt_hook_register(&hook);
}

void c_host_unregister(void) { molt_hook_unregister(&hook); }

static int first(struct molt_walk* walk, int argument) {
  int result = C_HOST_DEFAULT;
  molt_fn fn;
  while (result == C_HOST_DEFAULT && (fn = molt_walk_next(walk)) != NULL) {
    result = ((callback*)fn)(argument);
  }
  molt_walk_end(walk);
  return result;
}

int c_host_call(int argument) {
  struct molt_walk walk;
  molt_walk_begin(&walk, &hook);
  return first(&walk, argument);
}

int c_host_call_named(const char* module, int argument) {
  struct molt_walk walk;
  molt_walk_begin_named(&walk, &hook, module);
  return first(&walk, argument);
}

int c_host_sum(int argument, int* count) {
  struct molt_walk walk;
  int sum = 0;
  molt_fn fn;
  *count = 0;
  molt_walk_begin(&walk, &hook);
  while ((fn = molt_walk_next(&walk)) != NULL) {
    sum += ((callback*)fn)(argument);
    ++*count;
  }
  molt_walk_end(&walk);
  return sum;
}

int c_host_register_other_signature(void) {
  static struct molt_hook_info other_info;
  static struct molt_hook other = {NULL, 0, NULL, &other_info};
  other_info = info;
  other_info.signature = "i32(i64)";
  other_info.fingerprint = molt_fingerprint(other_info.signature);
  return molt_hook_register(&other);
}

int c_host_register_malformed(void) {
  struct molt_hook_info bad_info = info;
  struct molt_hook bad = {NULL, 0, NULL, &bad_info};
  int result;
  bad_info.fingerprint = info.fingerprint + 1;
  result = molt_hook_register(&bad);
  if (result != -EINVAL) return result;
  bad_info = info;
  bad_info.name = "";
  return molt_hook_register(&bad);
}
