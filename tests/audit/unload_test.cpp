// Unloading a module that the process still points into: it stays resident with the reasons named,
// until the pointers are gone or the user says otherwise.

#include <gtest/gtest.h>
#include <molt/molt.h>
#include <stdlib.h>
#include <sys/mman.h>

#include <cerrno>
#include <cstdint>
#include <string>

#include "registry.hpp"

namespace {

std::string file(const char* name) { return std::string(MODULES) + "/" + name + ".so"; }

bool says(const std::string& text, const std::string& words) {
  return text.find(words) != std::string::npos;
}

class Unload : public testing::Test {
 protected:
  ~Unload() override {
    g_on_event = nullptr;
    delete g_registration;
    g_registration = nullptr;
    molt_gc();
  }
  // Of a page of the module. Inverted: kept as it is it would be a pointer into it.
  std::uintptr_t not_address_ = 0;
  void load(const char* name) {
    ASSERT_EQ(molt_load(file(name).c_str(), nullptr, 0, -1), 0) << molt_last_error();
    molt_module* module = molt_module_find_get(name);
    ASSERT_NE(module, nullptr);
    not_address_ = ~reinterpret_cast<std::uintptr_t>(module);
    molt_module_put(module);
  }
  bool is_mapped() const {
    unsigned char there;
    return mincore(reinterpret_cast<void*>(~not_address_ & ~std::uintptr_t{4095}), 4096, &there) ==
           0;
  }
};

TEST_F(Unload, ForgottenCallbacksAreNamed) {
  load("forgetful");
  EXPECT_EQ(molt_unload("forgetful", 0, -1), 0);
  const std::string why = molt_last_error();
  EXPECT_TRUE(says(why, "resident: 2 pointers left: ")) << why;
  EXPECT_TRUE(says(why, "g_on_event+0x0 at 0x")) << why;
  EXPECT_TRUE(says(why, "[heap] block of 24 bytes, +8 at 0x")) << why;
  EXPECT_TRUE(says(why, "on_event")) << why;
  EXPECT_TRUE(says(why, "(callback)")) << why;
  EXPECT_TRUE(says(why, "known to audit_unload: g_registration+0x0")) << why;
  EXPECT_TRUE(is_mapped());
  // What was said is true: the callback still works.
  ASSERT_NE(g_on_event, nullptr);
  g_on_event();
}

TEST_F(Unload, GcFreesItWhenThePointersAreGone) {
  load("forgetful");
  EXPECT_EQ(molt_unload("forgetful", 0, -1), 0);
  EXPECT_EQ(molt_gc(), 0);
  g_on_event = nullptr;
  EXPECT_EQ(molt_gc(), 0) << "one is left";
  EXPECT_TRUE(is_mapped());
  delete g_registration;
  g_registration = nullptr;
  EXPECT_EQ(molt_gc(), 1);
  EXPECT_FALSE(is_mapped());
}

TEST_F(Unload, TheNameIsFreeMeanwhile) {
  load("forgetful");
  EXPECT_EQ(molt_unload("forgetful", 0, -1), 0);
  delete g_registration;
  load("forgetful");
  EXPECT_EQ(molt_gc(), 1) << "the second one's callbacks are in the places of the first one's";
  EXPECT_EQ(molt_unload("forgetful", 0, -1), 0);
  EXPECT_TRUE(says(molt_last_error(), "2 pointers left"));
}

TEST_F(Unload, PointersCanBeIgnored) {
  load("forgetful");
  EXPECT_EQ(molt_unload("forgetful", MOLT_UNLOAD_IGNORE_POINTERS, -1), 0);
  EXPECT_STREQ(molt_last_error(), "");
  EXPECT_FALSE(is_mapped());
}

// Run a second time with MOLT_AUDIT=0.
TEST_F(Unload, TheSearchCanBeSwitchedOff) {
  const char* value = getenv("MOLT_AUDIT");
  const bool is_off = value != nullptr && std::string(value) == "0";
  load("forgetful");
  EXPECT_EQ(molt_unload("forgetful", 0, -1), 0);
  EXPECT_EQ(is_mapped(), !is_off) << molt_last_error();
}

TEST_F(Unload, WhatWasTakenBackDoesNotCount) {
  load("tidy");
  EXPECT_EQ(molt_unload("tidy", 0, -1), 0);
  EXPECT_STREQ(molt_last_error(), "");
  EXPECT_FALSE(is_mapped());
}

TEST_F(Unload, WhatStaticObjectsHoldDoesNotCount) {
  for (int i = 0; i < 20; ++i) {
    load("container");
    EXPECT_EQ(molt_unload("container", 0, -1), 0);
    EXPECT_STREQ(molt_last_error(), "");
    EXPECT_FALSE(is_mapped());
  }
}

TEST_F(Unload, ThousandLivesLeaveNothing) {
  for (int i = 0; i < 1000; ++i) {
    load("tidy");
    ASSERT_EQ(molt_unload("tidy", 0, -1), 0);
    ASSERT_STREQ(molt_last_error(), "") << "life " << i;
  }
}

TEST_F(Unload, UnknownFlagsAreRefused) { EXPECT_EQ(molt_unload("tidy", 8, -1), -EINVAL); }

}  // namespace
