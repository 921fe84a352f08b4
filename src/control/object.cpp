#include "control/object.hpp"

#include <algorithm>
#include <cerrno>
#include <mutex>
#include <random>

namespace molt::control {

// Of one process. Never freed: in the child of a fork the parent's may be locked for ever.
struct Lifetimes {
  const Lifetimes* parents = nullptr;  // for leak checkers, which shall not take it for lost

  struct Delayed {
    std::int64_t at_ns;
    Object* object;
  };

  std::atomic<int> live{0};
  std::atomic<int> delay_ms{0};
  std::atomic<void (*)()> listener{nullptr};

  std::mutex mutex;
  std::vector<Delayed> delayed;
  std::minstd_rand random{static_cast<unsigned>(now_ns())};
};

namespace {

std::atomic<Lifetimes*> current{nullptr};

Lifetimes& lifetimes() {
  Lifetimes* known = current.load(std::memory_order_acquire);
  if (known != nullptr) return *known;
  auto* fresh = new Lifetimes;
  if (current.compare_exchange_strong(known, fresh, std::memory_order_acq_rel,
                                      std::memory_order_acquire)) {
    return *fresh;
  }
  delete fresh;
  return *known;
}

const Attribute* find(const std::vector<Attribute>& attributes, const std::string& name) {
  const auto at = std::find_if(attributes.begin(), attributes.end(),
                               [&](const Attribute& a) { return a.name == name; });
  return at == attributes.end() ? nullptr : &*at;
}

tl::unexpected<Error> gone(const Object& object) {
  return fail(ENODEV, "%s is gone", object.path().c_str());
}

tl::unexpected<Error> no_attribute(const Object& object, const std::string& name) {
  if (object.path().empty()) {
    return fail(ENOENT, "there is no %s; `molt tree` shows what there is", name.c_str());
  }
  return fail(ENOENT, "%s has no attribute %s; `molt tree` shows what there is",
              object.path().c_str(), name.c_str());
}

}  // namespace

Object::Object(const Type& type, std::string path, std::string subject)
    : type_(type), path_(std::move(path)), subject_(std::move(subject)), lifetimes_(&lifetimes()) {
  lifetimes_->live.fetch_add(1, std::memory_order_relaxed);
}

Object::~Object() { lifetimes_->live.fetch_sub(1, std::memory_order_relaxed); }

bool Object::is_present() const {
  if (!present_.load(std::memory_order_acquire)) return false;
  if (type_.still_there == nullptr || type_.still_there(*this)) return true;
  present_.store(false, std::memory_order_release);
  return false;
}

void Object::put() {
  // Whoever releases it sees what all other holders did to it.
  if (references_.fetch_sub(1, std::memory_order_acq_rel) != 1) return;

  Lifetimes& l = *lifetimes_;
  const int delay_ms = l.delay_ms.load(std::memory_order_relaxed);
  if (delay_ms == 0) {
    type_.release(this);
    return;
  }
  {
    std::lock_guard lock(l.mutex);
    std::uniform_int_distribution<std::int64_t> factor(1'000'000, 4'000'000);
    l.delayed.push_back({now_ns() + delay_ms * factor(l.random), this});
  }
  if (auto listener = l.listener.load(std::memory_order_acquire)) listener();
}

Ref make_object(const Type& type, std::string path, std::string subject) {
  return Ref::adopt(new Object(type, std::move(path), std::move(subject)));
}

void delete_object(Object* object) { delete object; }

std::vector<Attribute> attributes_of(const Object& object) {
  return object.type().attributes ? object.type().attributes(object) : std::vector<Attribute>();
}

std::vector<Link> links_of(const Object& object) {
  return object.type().links ? object.type().links(object) : std::vector<Link>();
}

Result<std::string> get_attribute(const Object& object, const std::string& name) {
  if (!object.is_present()) return gone(object);
  const std::vector<Attribute> attributes = attributes_of(object);
  const Attribute* attribute = find(attributes, name);
  if (attribute == nullptr) {
    return object.is_present() ? no_attribute(object, name) : gone(object);
  }
  if (attribute->show == nullptr) {
    return fail(EACCES, "%s/%s can only be written", object.path().c_str(), name.c_str());
  }
  auto value = attribute->show(object, name);
  // It may be a namesake's by now, or the failure to find one.
  if (!object.is_present()) return gone(object);
  return value;
}

Status set_attribute(const Object& object, const std::string& name, const std::string& value) {
  if (!object.is_present()) return gone(object);
  const std::vector<Attribute> attributes = attributes_of(object);
  const Attribute* attribute = find(attributes, name);
  if (attribute == nullptr) {
    return object.is_present() ? no_attribute(object, name) : gone(object);
  }
  if (attribute->store == nullptr) {
    return fail(EACCES, "%s/%s can only be read", object.path().c_str(), name.c_str());
  }
  return attribute->store(object, name, value);
}

void set_delay_release_ms(int ms) {
  lifetimes().delay_ms.store(std::max(ms, 0), std::memory_order_relaxed);
}

int delay_release_ms() { return lifetimes().delay_ms.load(std::memory_order_relaxed); }

Deadline release_delayed() {
  Lifetimes& l = lifetimes();
  std::vector<Object*> due;
  Deadline next;
  {
    std::lock_guard lock(l.mutex);
    const std::int64_t now = now_ns();
    std::erase_if(l.delayed, [&](const Lifetimes::Delayed& d) {
      if (d.at_ns > now) {
        next = next.sooner({d.at_ns});
        return false;
      }
      due.push_back(d.object);
      return true;
    });
  }
  for (Object* object : due) object->type().release(object);  // O4
  return next;
}

void set_delay_listener(void (*listener)()) {
  lifetimes().listener.store(listener, std::memory_order_release);
}

ObjectCounts object_counts() {
  Lifetimes& l = lifetimes();
  std::lock_guard lock(l.mutex);
  return {l.live.load(std::memory_order_relaxed), static_cast<int>(l.delayed.size())};
}

void forget_objects() {
  auto* fresh = new Lifetimes;
  fresh->parents = current.load(std::memory_order_acquire);
  if (fresh->parents != nullptr) {
    fresh->delay_ms.store(fresh->parents->delay_ms.load(std::memory_order_relaxed),
                          std::memory_order_relaxed);
  }
  current.store(fresh, std::memory_order_release);
}

}  // namespace molt::control
