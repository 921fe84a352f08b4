// Goes through the shadow variables' functions, in the words of the kernel's own test of them: every
// pointer is printed as PTRn, numbered by first use.
#include <molt/livepatch.hpp>

#include <cstdlib>
#include <vector>

namespace {

#define SAY(...) molt_log(&molt_this_module, __VA_ARGS__)

std::vector<const void*> known;
int number_of(const void* pointer) {
  if (pointer == nullptr) return 0;
  for (std::size_t i = 0; i < known.size(); ++i) {
    if (known[i] == pointer) return static_cast<int>(i) + 1;
  }
  known.push_back(pointer);
  return static_cast<int>(known.size());
}

int construct(void*, void* data, void* argument) {
  auto** place = static_cast<int**>(data);
  *place = *static_cast<int**>(argument);
  // The number of what lies behind is taken first.
  const int value = number_of(*place);
  SAY("shadow_ctor: PTR%d -> PTR%d", number_of(place), value);
  return 0;
}
void destruct(void* object, void* data) {
  SAY("shadow_dtor(obj=PTR%d, shadow_data=PTR%d)", number_of(object), number_of(data));
}

constexpr unsigned long id_1 = 0x1234, id_2 = 0x1235;

void* get(void* object, unsigned long id) {
  void* shadow = molt_shadow_get(object, id);
  const int at = number_of(object);
  SAY("klp_shadow_get(obj=PTR%d, id=0x%lx) = PTR%d", at, id, number_of(shadow));
  return shadow;
}
void expect(void* shadow, int* value) {
  if (shadow == nullptr) {
    SAY(value == nullptr ? "  got expected NULL result" : "  got NULL");
  } else if (value != nullptr && *static_cast<int**>(shadow) == value) {
    const int at = number_of(shadow);
    SAY("  got expected PTR%d -> PTR%d result", at, number_of(value));
  } else {
    SAY("  got something else");
  }
}
void make(void* object, unsigned long id, int*& value, bool or_get) {
  void* shadow = or_get ? molt_shadow_get_or_alloc(object, id, sizeof(int*), construct, &value)
                        : molt_shadow_alloc(object, id, sizeof(int*), construct, &value);
  const int at = number_of(object);
  const int constructor = number_of(reinterpret_cast<const void*>(&construct));
  const int data = number_of(value);
  SAY("klp_shadow_%s(obj=PTR%d, id=0x%lx, size=8, gfp_flags=GFP_KERNEL), ctor=PTR%d, "
      "ctor_data=PTR%d "
      "= PTR%d",
      or_get ? "get_or_alloc" : "alloc", at, id, constructor, data, number_of(shadow));
}

int start() {
  static char objects[3];
  static int values[6];
  static int* pointers[6];
  for (int i = 0; i < 6; ++i) pointers[i] = &values[i];
  expect(get(&objects[0], id_1), nullptr);
  for (int i = 0; i < 3; ++i) {
    make(&objects[i], id_1, pointers[2 * i], i != 1);
    make(&objects[i], id_2, pointers[2 * i + 1], false);
  }
  for (int i = 0; i < 3; ++i) {
    expect(get(&objects[i], id_1), pointers[2 * i]);
    expect(get(&objects[i], id_2), pointers[2 * i + 1]);
  }
  for (int i = 0; i < 3; ++i) {
    make(&objects[i], id_1, pointers[2 * i], true);
    const int shadow = number_of(molt_shadow_get(&objects[i], id_1));
    SAY("  got expected PTR%d -> PTR%d result", shadow, number_of(pointers[2 * i]));
  }
  for (int i = 0; i < 3; ++i) {
    molt_shadow_free(&objects[i], id_1, destruct);
    const int at = number_of(&objects[i]);
    SAY("klp_shadow_free(obj=PTR%d, id=0x%lx, dtor=PTR%d)", at, id_1,
        number_of(reinterpret_cast<const void*>(&destruct)));
    expect(get(&objects[i], id_1), nullptr);
  }
  for (int i = 0; i < 3; ++i) expect(get(&objects[i], id_2), pointers[2 * i + 1]);
  molt_shadow_free_all(id_2, nullptr);
  SAY("klp_shadow_free_all(id=0x%lx, dtor=PTR0)", id_2);
  for (int i = 0; i < 3; ++i) expect(get(&objects[i], id_2), nullptr);
  return 0;
}
void finish() {}

}  // namespace

MOLT_MODULE("test_klp_shadow_vars", "1.0", "Apache-2.0", "goes through shadow variables")
MOLT_INIT(start)
MOLT_EXIT(finish)
