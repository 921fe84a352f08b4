// Shadow variables at their edges, in the words of the recorded log.
#include <molt/livepatch.hpp>

namespace {

#define SAY(...) molt_log(&molt_this_module, __VA_ARGS__)

int refuse(void*, void*, void*) {
  SAY("ctor fail");
  return -22;
}
int construct(void*, void* data, void* argument) {
  *static_cast<int*>(data) = *static_cast<int*>(argument);
  SAY("ctor ok");
  return 0;
}
void destruct(void*, void* data) { SAY("dtor val=%d", *static_cast<int*>(data)); }

const char* text(const void* pointer) { return pointer == nullptr ? "NULL" : "ptr"; }
int value_of(void* shadow) { return shadow == nullptr ? -1 : *static_cast<int*>(shadow); }

int start() {
  static int x, y;
  int five = 5, six = 6;
  void* made = molt_shadow_alloc(&x, 1, sizeof(int), refuse, &five);
  SAY("ctor-fail -> %s get=%s", text(made), text(molt_shadow_get(&x, 1)));
  SAY("no-ctor val=%d", value_of(molt_shadow_alloc(&x, 1, sizeof(int), nullptr, nullptr)));
  molt_shadow_free(&x, 1, nullptr);
  molt_shadow_free(&x, 1, nullptr);
  SAY("double free is no-op");
  void* first = molt_shadow_alloc(&x, 1, sizeof(int), construct, &five);
  SAY("alloc val=%d", value_of(first));
  made = molt_shadow_alloc(&x, 1, sizeof(int), construct, &six);
  SAY("dup alloc -> %s val=%d", text(made), value_of(molt_shadow_get(&x, 1)));
  made = molt_shadow_get_or_alloc(&x, 1, 4096, construct, &six);
  SAY("get_or_alloc same=%d val=%d", made == first, value_of(made));
  molt_shadow_alloc(&y, 1, sizeof(int), construct, &six);
  molt_shadow_alloc(&y, 2, sizeof(int), construct, &six);
  molt_shadow_free_all(1, destruct);
  SAY("after free_all(1): x1=%s y1=%s y2=%s", text(molt_shadow_get(&x, 1)),
      text(molt_shadow_get(&y, 1)), text(molt_shadow_get(&y, 2)));
  molt_shadow_free_all(2, destruct);
  return 0;
}
void finish() {}

}  // namespace

MOLT_MODULE("ok_shadow", "1.0", "Apache-2.0", "shadow variables at their edges")
MOLT_INIT(start)
MOLT_EXIT(finish)
