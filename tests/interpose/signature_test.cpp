// Where arguments are, from a function's type.

#include "interpose/signature.hpp"

#include <gtest/gtest.h>

using molt::interpose::shape_of;

namespace {

void expect(const char* signature, std::size_t integers, std::size_t floats, std::size_t stack,
            bool gives_float = false) {
  auto shape = shape_of(signature);
  ASSERT_TRUE(shape) << signature << ": " << shape.error().detail;
  EXPECT_EQ(shape->integers, integers) << signature;
  EXPECT_EQ(shape->floats, floats) << signature;
  EXPECT_EQ(shape->stack_words, stack) << signature;
  EXPECT_EQ(shape->gives_float, gives_float) << signature;
}

TEST(Signature, Shapes) {
  expect("void()", 0, 0, 0);
  expect("i32(const char*,i32,u32)", 3, 0, 0);
  expect("f64(f64,i32,f32)", 1, 2, 0, true);
  expect("i64(i64,i64,i64,i64,i64,i64,i64,i64,f64)", 8, 1, 2);
  expect("void(f64,f64,f64,f64,f64,f64,f64,f64,f64,f64)", 0, 10, 2);
  // Commas and parentheses of the types themselves; an enumeration is its name.
  expect("i32(i32(const void*,const void*)*,std::pair<int,long>&,colour)", 3, 0, 0);
  expect("void(i32)*(i32)", 1, 0, 0);
}

TEST(Signature, Refused) {
  for (const char* signature : {"pair{16:8}(i32)", "i32(pair{16:8})", "f128(i32)", "void(i128)",
                                "i32", "", ")", "i32(i32"}) {
    EXPECT_FALSE(shape_of(signature)) << signature;
  }
}

}  // namespace
