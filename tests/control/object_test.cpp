// Objects: who frees them, when, and what a handle can do after the object's end.
#include "control/object.hpp"

#include <gtest/gtest.h>

#include <atomic>
#include <cerrno>
#include <memory>
#include <thread>

#include "client.hpp"
#include "control/tree.hpp"

using namespace molt;
using namespace molt::control;

namespace {

std::atomic<int> shows{0};
std::atomic<bool> show_blocks{false};
std::atomic<bool> is_in_show{false};

Result<std::string> show_value(const Object& object, const std::string& attribute) {
  shows.fetch_add(1, std::memory_order_relaxed);
  is_in_show.store(true, std::memory_order_release);
  while (show_blocks.load(std::memory_order_acquire)) std::this_thread::yield();
  return object.subject() + "." + attribute;
}
std::atomic<int> stores{0};
Status store_value(const Object&, const std::string&, const std::string& value) {
  stores.fetch_add(1, std::memory_order_relaxed);
  if (value == "bad") return fail(EINVAL, "bad");
  return {};
}

std::vector<Attribute> attributes(const Object&) {
  return {{"value", 0644, show_value, store_value},
          {"secret", 0200, nullptr, store_value},
          {"fixed", 0444, show_value, nullptr}};
}
const Type thing_type{attributes, nullptr, nullptr, delete_object};

int code_of(const Status& status) { return status ? 0 : status.error().code; }
template <class T>
int code_of(const Result<T>& result) {
  return result ? 0 : result.error().code;
}

class ObjectTest : public testing::Test {
 protected:
  void SetUp() override {
    forget_objects();
    shows.store(0, std::memory_order_relaxed);
    stores.store(0, std::memory_order_relaxed);
  }
  void TearDown() override { set_delay_release_ms(0); }
};

TEST_F(ObjectTest, IsFreedByTheLastPut) {
  Ref first = make_object(thing_type, "things/a", "a");
  Ref second = first;
  EXPECT_EQ(object_counts().live, 1);
  first = Ref();
  EXPECT_EQ(object_counts().live, 1);
  EXPECT_EQ(*get_attribute(*second, "value"), "a.value");
  second = Ref();
  EXPECT_EQ(object_counts().live, 0);
}

TEST_F(ObjectTest, RefusesWhatAnAttributeCannotDo) {
  const Ref thing = make_object(thing_type, "things/a", "a");
  EXPECT_EQ(code_of(get_attribute(*thing, "secret")), EACCES);
  EXPECT_EQ(code_of(set_attribute(*thing, "fixed", "1")), EACCES);
  EXPECT_EQ(code_of(get_attribute(*thing, "other")), ENOENT);
  EXPECT_EQ(code_of(set_attribute(*thing, "value", "bad")), EINVAL);
  EXPECT_EQ(code_of(set_attribute(*thing, "value", "good")), 0);
}

TEST_F(ObjectTest, HandleHeldAcrossRemovalAnswersEnodevAndCallsNothing) {
  Tree tree;
  tree.add(thing_type, "", "");
  tree.add(thing_type, "a", "a");
  auto handle = tree.open("a");
  ASSERT_TRUE(handle);
  EXPECT_EQ(*get_attribute(**handle, "value"), "a.value");
  const int before = shows.load(std::memory_order_relaxed);

  tree.remove("a");
  EXPECT_EQ(code_of(get_attribute(**handle, "value")), ENODEV);
  EXPECT_EQ(code_of(set_attribute(**handle, "value", "x")), ENODEV);
  EXPECT_EQ(code_of(get_attribute(**handle, "no_such")), ENODEV);
  EXPECT_EQ(shows.load(std::memory_order_relaxed), before);
  EXPECT_EQ(stores.load(std::memory_order_relaxed), 0);

  // A namesake is another object.
  tree.add(thing_type, "a", "new");
  EXPECT_EQ(code_of(get_attribute(**handle, "value")), ENODEV);
  EXPECT_EQ(*tree.get("a/value"), "new.value");
}

TEST_F(ObjectTest, RemovalDoesNotWaitForAShowUnderWay) {
  auto tree = std::make_unique<Tree>();
  tree->add(thing_type, "", "");
  tree->add(thing_type, "a", "a");
  Ref handle = *tree->open("a");

  is_in_show.store(false, std::memory_order_relaxed);
  show_blocks.store(true, std::memory_order_release);
  int code = 0;
  std::thread reader([&] { code = code_of(get_attribute(*handle, "value")); });
  ASSERT_TRUE(test::eventually([] { return is_in_show.load(std::memory_order_acquire); }));

  tree->remove("a");  // returns although the show is still in there
  tree.reset();
  EXPECT_GT(object_counts().live, 0) << "the handle keeps the memory";
  show_blocks.store(false, std::memory_order_release);
  reader.join();
  EXPECT_EQ(code, ENODEV) << "what was read while it went may be a namesake's";
  handle = Ref();
  EXPECT_EQ(object_counts().live, 0);
}

TEST_F(ObjectTest, ManyThreadsOpenReadAndRemoveWithoutALeak) {
  constexpr int rounds = 300;
  {
    Tree tree;
    tree.add(thing_type, "", "");
    std::atomic<bool> is_over{false};
    std::atomic<int> wrong{0};
    std::vector<std::thread> readers;
    for (int i = 0; i < 4; ++i) {
      readers.emplace_back([&] {
        while (!is_over.load(std::memory_order_acquire)) {
          auto handle = tree.open("a");
          if (!handle) continue;
          const auto value = get_attribute(**handle, "value");
          if (value ? *value != "a.value" : value.error().code != ENODEV) {
            wrong.fetch_add(1, std::memory_order_relaxed);
          }
        }
      });
    }
    for (int i = 0; i < rounds; ++i) {
      tree.add(thing_type, "a", "a");
      tree.add(thing_type, "a/b", "b");
      tree.remove("a");
    }
    is_over.store(true, std::memory_order_release);
    for (std::thread& reader : readers) reader.join();
    EXPECT_EQ(wrong.load(std::memory_order_relaxed), 0);
  }
  EXPECT_EQ(object_counts().live, 0);
}

// --- delay_release ------------------------------------------------------------------------------

// A pool whose items are objects. The pool must outlive the releases of its items.
struct Pool {
  bool is_open = true;
};
struct Item : Object {
  Item(const Type& type, Pool& pool_) : Object(type, "item", "item"), pool(pool_) {}
  Pool& pool;
};
int premature_uses = 0;
void release_item(Object* object) {
  auto* item = static_cast<Item*>(object);
  if (!item->pool.is_open) ++premature_uses;
  delete item;
}
const Type item_type{nullptr, nullptr, nullptr, release_item};

// The planted mistake: it takes the last put for the release.
void close_pool_after_put(Pool& pool) {
  { const Ref item = Ref::adopt(new Item(item_type, pool)); }
  pool.is_open = false;
}
// The right way: it waits until the release has been.
void close_pool_after_release(Pool& pool) {
  { const Ref item = Ref::adopt(new Item(item_type, pool)); }
  ASSERT_TRUE(test::eventually([] {
    release_delayed();
    return object_counts().live == 0;
  }));
  pool.is_open = false;
}

TEST_F(ObjectTest, DelayedReleaseFindsAPrematureUse) {
  Pool pool;
  premature_uses = 0;
  close_pool_after_put(pool);
  EXPECT_EQ(premature_uses, 0) << "without the debug mode the mistake does not show";

  pool.is_open = true;
  set_delay_release_ms(1);
  close_pool_after_put(pool);
  EXPECT_EQ(object_counts().delayed, 1);
  ASSERT_TRUE(test::eventually([] {
    release_delayed();
    return object_counts().delayed == 0;
  }));
  EXPECT_EQ(premature_uses, 1);

  pool.is_open = true;
  premature_uses = 0;
  close_pool_after_release(pool);
  EXPECT_EQ(premature_uses, 0);
  EXPECT_EQ(object_counts().live, 0);
}

TEST_F(ObjectTest, DelayIsOneToFourTimesAsLongAsAsked) {
  constexpr int delay_ms =
      250;  // none shall be due before it was counted, however busy the machine
  set_delay_release_ms(delay_ms);
  for (int i = 0; i < 50; ++i) {
    const Ref item = make_object(thing_type, "a", "a");
  }
  const std::int64_t now = now_ns();
  const Deadline next = release_delayed();
  EXPECT_EQ(object_counts().delayed, 50);
  EXPECT_GT(next.at_ns, now);
  EXPECT_LT(next.at_ns, now + 4 * delay_ms * 1'000'000LL);
  // Turned off, the mode lets go what it holds when its time comes, and holds nothing more.
  set_delay_release_ms(0);
  { const Ref item = make_object(thing_type, "a", "a"); }
  EXPECT_EQ(object_counts().delayed, 50);
  ASSERT_TRUE(test::eventually([] {
    release_delayed();
    return object_counts().live == 0;
  }));
}

std::atomic<int> told{0};
TEST_F(ObjectTest, DelayIsAnnounced) {
  told.store(0, std::memory_order_relaxed);
  set_delay_listener([] { told.fetch_add(1, std::memory_order_relaxed); });
  set_delay_release_ms(1);
  { const Ref item = make_object(thing_type, "a", "a"); }
  EXPECT_EQ(told.load(std::memory_order_relaxed), 1);
  set_delay_listener(nullptr);
  ASSERT_TRUE(test::eventually([] {
    release_delayed();
    return object_counts().live == 0;
  }));
}

}  // namespace
