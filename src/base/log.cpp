#include "base/log.hpp"

#include <time.h>

#include <atomic>
#include <cstdarg>
#include <cstdio>
#include <cstring>
#include <deque>
#include <mutex>
#include <utility>

#include "base/futex.hpp"

namespace molt::log {
namespace {

struct Ring {
  std::mutex mutex;
  // Line n is at (n - 1) % capacity. Grows until it is full: most hosts never have so many.
  std::deque<Line> lines;
  std::uint64_t next = 1;
  std::string prefix;
  Line& at(std::uint64_t seq) { return lines[(seq - 1) % capacity]; }
};
// Leaked on purpose: the host's static destructors may still log.
Ring& ring() {
  static Ring* r = new Ring;
  return *r;
}
std::atomic<std::uint32_t> changes{0};
std::atomic<void (*)()> told{nullptr};

thread_local const Requester* current = nullptr;

std::int64_t unix_ms() {
  timespec t;
  clock_gettime(CLOCK_REALTIME, &t);
  return t.tv_sec * 1000LL + t.tv_nsec / 1'000'000;
}

}  // namespace

void line(std::string_view module, const char* format, ...) {
  char text[1024];
  va_list args;
  va_start(args, format);
  std::vsnprintf(text, sizeof text, format, args);
  va_end(args);

  Ring& r = ring();
  {
    std::lock_guard lock(r.mutex);
    if (r.lines.size() < capacity) r.lines.emplace_back();
    // A line of its own and not what was there, changed: strings keep the room of the longest that they
    // ever had, and after a million lines all would have that.
    Line l;
    l.seq = r.next++;
    l.time_ms = unix_ms();
    l.module = module;
    l.text.reserve(r.prefix.size() + module.size() + 2 + std::strlen(text));
    l.text = r.prefix;
    if (!module.empty()) l.text.append(module).append(": ");
    l.text += text;
    l.requester = current_requester();
    std::swap(r.at(l.seq), l);
  }
  changes.fetch_add(1, std::memory_order_release);
  futex_wake_all(changes);
  if (auto listener = told.load(std::memory_order_acquire)) listener();
}

void set_prefix(std::string_view prefix) {
  std::lock_guard lock(ring().mutex);
  ring().prefix = prefix;
}

RequesterScope::RequesterScope(const Requester& requester) : outer_(current) {
  current = &requester;
}
RequesterScope::~RequesterScope() { current = outer_; }

const Requester& current_requester() {
  static const Requester* self = new Requester;
  return current ? *current : *self;
}

Batch read(std::uint64_t since, std::size_t most) {
  Ring& r = ring();
  std::lock_guard lock(r.mutex);
  Batch batch;
  std::uint64_t oldest = r.next > capacity ? r.next - capacity : 1;
  std::uint64_t from = since < 1 ? 1 : since;
  if (from < oldest) {
    batch.lost = oldest - from;
    from = oldest;
  }
  for (; from < r.next && batch.lines.size() < most; ++from) {
    batch.lines.push_back(r.at(from));
  }
  batch.next = from;
  return batch;
}

std::uint64_t next() {
  Ring& r = ring();
  std::lock_guard lock(r.mutex);
  return r.next;
}

void before_fork() { ring().mutex.lock(); }
void after_fork() { ring().mutex.unlock(); }

void set_listener(void (*listener)()) { told.store(listener, std::memory_order_release); }

const std::uint32_t* change_word() { return reinterpret_cast<const std::uint32_t*>(&changes); }

}  // namespace molt::log
