#include "base/last_error.hpp"

#include <pthread.h>

#include <cstdio>
#include <cstdlib>

namespace molt {
namespace {

pthread_key_t g_key;
__thread char* t_text = nullptr;
constexpr std::size_t text_bytes = 512;

void free_text(void* text) {
  std::free(text);
  t_text = nullptr;
}

}  // namespace

void last_error_setup() { pthread_key_create(&g_key, free_text); }

const char* last_error() { return t_text ? t_text : ""; }

void set_last_error(const char* text) {
  if (t_text == nullptr) {
    t_text = static_cast<char*>(std::malloc(text_bytes));
    if (t_text == nullptr) return;
    pthread_setspecific(g_key, t_text);
  }
  std::snprintf(t_text, text_bytes, "%s", text);
}

int succeed() {
  if (t_text != nullptr) t_text[0] = '\0';
  return 0;
}

int answer(const Error& error) {
  set_last_error(error.detail);
  return -error.code;
}

}  // namespace molt
