// A parameter of each type, and one whose functions see who else is in them.
#include <molt/module.hpp>

#include <unistd.h>

#include "../points.hpp"

MOLT_PARAM(int, whole, 1, "an int", MOLT_WRITABLE)
MOLT_PARAM(unsigned, natural, 1, "an unsigned", MOLT_WRITABLE)
MOLT_PARAM(long, large, 1, "a long", MOLT_WRITABLE)
MOLT_PARAM(unsigned long, larger, 1, "an unsigned long", MOLT_WRITABLE)
MOLT_PARAM(bool, flag, false, "a bool", MOLT_WRITABLE)
MOLT_PARAM(double, real, 1.5, "a double", MOLT_WRITABLE)
MOLT_PARAM(short, small, 1, "a short", MOLT_WRITABLE)
MOLT_PARAM(unsigned char, tiny, 1, "an unsigned char", MOLT_WRITABLE)
MOLT_PARAM(float, rough, 0.5f, "a float", MOLT_WRITABLE)
MOLT_PARAM(long long, huge, 1, "a long long", MOLT_WRITABLE)
MOLT_PARAM(std::string, words, "x", "a text", MOLT_WRITABLE)
MOLT_PARAM(int, fixed, 3, "given at load only", 0)

// Both functions are promised to be alone.
static std::atomic<int> inside{0}, most{0};
static void meet() {
  int now = ++inside;
  if (now > most) most = now;
  usleep(5'000);  // tidy: sleep-ok long enough for others to come, if they may
  --inside;
}
static int set_alone(void*, const char*) { return meet(), 0; }
static int get_alone(const void*, char* text, std::size_t bytes) {
  meet();
  return std::snprintf(text, bytes, "%d", most.load());
}
MOLT_ITEM_("molt_params")
static const molt_param alone = {"alone",       "count",   "most threads in it at once",
                                 set_alone,     get_alone, nullptr,
                                 MOLT_WRITABLE, 0};

// Asks for what would wait for the very thread that asks.
static int unload_oneself(void*, const char*) { return molt_unload("params", 0, -1); }
MOLT_ITEM_("molt_params")
static const molt_param leave = {"leave", "any",   "unloads the module", unload_oneself,
                                 nullptr, nullptr, MOLT_WRITABLE,        0};

static int answer(int n) { return n * whole; }

MOLT_MODULE("params", "1", "Apache-2.0", "a parameter of each type")
MOLT_HOOK(ask_point, answer)
