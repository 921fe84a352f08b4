// object.hpp - things that can be looked at from outside, each with a life of its own.
//
// A module comes and goes; who looks at it does so at any moment, and may keep a handle for longer
// than the module lives. So what is looked at is never the module but an object that stands for it,
// which the core allocates, and which outlives the module for as long as someone has a handle. The
// model is the kernel's kobject with the active references of its kernfs.
//
// Roles      The tree has one count of every object it shows, a handle another, and so has every
//            operation under way. Attributes are shown and stored on the operations' threads.
// State      For each object its count, and whether it is present. For the process how many objects
//            there are, and those whose last count has gone but whose release is held back.
// Invariants O1 An object's memory goes in its release, which the last put causes: at once, or in
//               the debug mode later. Nothing else frees it, and nothing may assume when it was.
//            O2 Present is never regained. A get or set that begins after an object's removal
//               answers ENODEV and calls nothing; one that began before may still succeed.
//            O3 Show and store reach what an object is about by its name, through the layer that
//               owns it, never by a pointer. So there is nothing they could use after it was freed,
//               and no reason for a removal to wait for them.
//            O4 No lock is held while show, store or release runs.
// Order      remove(): present cleared [release] before the tree's count is put. get(): present read
//            [acquire] before show, and after it: a value that was read while the object went away
//            may be that of a namesake, and is not given out.
// Progress   remove() waits for nobody: not for handles, not for a show or store under way.
// Death      fork: the objects of the parent's threads are nobody's in the child. It forgets all of
//            them (forget_objects) and makes its own tree.
// Refuses    Reading what has no show, writing what has no store: EACCES.
// Checked by tests/control/object_test.cpp
#pragma once

#include <atomic>
#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "base/futex.hpp"
#include "base/result.hpp"

namespace molt::control {

class Object;
struct Lifetimes;

struct Attribute {
  std::string name;
  unsigned mode;  // as of a file: 0444, 0644
  Result<std::string> (*show)(const Object& object, const std::string& attribute);  // or null
  Status (*store)(const Object& object, const std::string& attribute, const std::string& value);
};

struct Link {
  std::string name;
  std::string target;  // path of an object
};

// What the objects of one kind have in common; constant.
struct Type {
  std::vector<Attribute> (*attributes)(const Object& object);  // null: none
  std::vector<Link> (*links)(const Object& object);            // null: none
  // For objects that no tree keeps and nobody removes: whether what they stand for is still there.
  bool (*still_there)(const Object& object);  // null: until removed
  void (*release)(Object* object);            // frees it (O1)
};

class Object {
 public:
  // With a count of one, for Ref::adopt. `subject` is the name of what the object is about.
  Object(const Type& type, std::string path, std::string subject);
  // For its type's release alone (O1).
  ~Object();
  Object(const Object&) = delete;
  Object& operator=(const Object&) = delete;

  const Type& type() const { return type_; }
  const std::string& path() const { return path_; }
  const std::string& subject() const { return subject_; }

  // O2. Asks the type, if it knows better than the tree.
  bool is_present() const;
  // For who added it.
  void remove() { present_.store(false, std::memory_order_release); }

 private:
  friend class Ref;
  void get() { references_.fetch_add(1, std::memory_order_relaxed); }
  void put();

  const Type& type_;
  const std::string path_;
  const std::string subject_;
  std::atomic<std::uint32_t> references_{1};
  mutable std::atomic<bool> present_{true};
  Lifetimes* const lifetimes_;  // those of the process that made it
};

// One count of an object, or of none.
class Ref {
 public:
  Ref() = default;
  // Takes over a count that the caller has.
  static Ref adopt(Object* object) { return Ref(object); }
  Ref(const Ref& other) : object_(other.object_) {
    if (object_ != nullptr) object_->get();
  }
  Ref(Ref&& other) noexcept : object_(std::exchange(other.object_, nullptr)) {}
  Ref& operator=(Ref other) noexcept {
    std::swap(object_, other.object_);
    return *this;
  }
  ~Ref() {
    if (object_ != nullptr) object_->put();
  }

  explicit operator bool() const { return object_ != nullptr; }
  Object& operator*() const { return *object_; }
  Object* operator->() const { return object_; }

 private:
  explicit Ref(Object* object) : object_(object) {}
  Object* object_ = nullptr;
};

// An object that is no more than this class, and the release of such objects' types.
[[nodiscard]] Ref make_object(const Type& type, std::string path, std::string subject);
void delete_object(Object* object);

[[nodiscard]] std::vector<Attribute> attributes_of(const Object& object);
[[nodiscard]] std::vector<Link> links_of(const Object& object);
// May run module code. ENODEV: the object is gone. ENOENT: it has no such attribute. EACCES: not
// to be read, not to be written. Else what show or store answers.
[[nodiscard]] Result<std::string> get_attribute(const Object& object, const std::string& name);
[[nodiscard]] Status set_attribute(const Object& object, const std::string& name,
                                   const std::string& value);

// --- the debug mode: late releases --------------------------------------------------------------

// Holds every released object back for 1x to 4x of this long, to flush out who assumes that the last
// put frees at once. 0: off; what is held back then goes when its time comes.
void set_delay_release_ms(int ms);
int delay_release_ms();

// Releases the objects whose time has come. The answer: when to call again.
Deadline release_delayed();
// Told, without locks, that an object is held back; it then sees to calls of release_delayed().
void set_delay_listener(void (*listener)());

struct ObjectCounts {
  int live = 0;     // made and not yet released, those held back included
  int delayed = 0;  // held back
};
ObjectCounts object_counts();

// In a forked child.
void forget_objects();

}  // namespace molt::control
