// quarantine_host MODULE WISH: goes wrong with what an unloaded module has left. The sanitizer's report
// about that is what quarantine_reports.sh reads.
#include <molt/host.hpp>

#include <cstdio>
#include <cstring>
#include <thread>

#include "visitor.hpp"

static molt::hook<visitor_point> on_visitor;

int main(int count, char** words) {
  if (count != 3 || molt_load(words[1], nullptr, 0, -1) != 0) {
    std::printf("not loaded: %s\n", molt_last_error());
    return 2;
  }
  const char* wish = words[2];
  auto unload = [] {
    if (molt_unload("visited", 0, -1) == 0 && *molt_last_error() == '\0') return true;
    std::printf("not unloaded: %s\n", molt_last_error());
    return false;
  };

  if (std::strcmp(wish, "use-after-free") == 0) {
    auto* volatile block = static_cast<volatile long*>(on_visitor(Wish::block));
    delete block;
    if (!unload()) return 2;
    return static_cast<int>(*block);
  }
  if (std::strcmp(wish, "race") == 0) {
    auto* block = static_cast<volatile long*>(on_visitor(Wish::block));
    if (!unload()) return 2;
    std::thread other([=] { *block = 1; });
    *block = 2;
    other.join();
    delete block;
    return 0;
  }
  if (std::strcmp(wish, "call") == 0) {
    auto call = reinterpret_cast<void (*)()>(on_visitor(Wish::function));
    if (!unload()) return 2;
    call();
    return 0;
  }
  on_visitor(Wish::leak);
  return unload() ? 0 : 2;
}
