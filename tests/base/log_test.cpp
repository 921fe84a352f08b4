#include "base/log.hpp"

#include <gtest/gtest.h>
#include <malloc.h>

#include <string>

namespace molt {
namespace {

void fill(const std::string& text) {
  for (std::size_t i = 0; i < log::capacity; ++i) log::line("some", "%s", text.c_str());
}

std::size_t heap_in_use() { return mallinfo2().uordblks; }

// A process that loads and unloads for months has had a long line in every place.
TEST(log, keeps_no_room_of_lines_that_are_gone) {
  fill("short");
  const std::size_t before = heap_in_use();
  fill(std::string(900, 'x'));
  EXPECT_GT(heap_in_use(), before + log::capacity * 900);
  fill("short");
  // The allocator counts what it keeps for this thread as in use.
  EXPECT_LE(heap_in_use(), before + 64 * 1024);
}

TEST(log, says_how_many_lines_were_lost) {
  fill("one");
  log::line("", "last");
  const log::Batch all = log::read(1, log::capacity + 1);
  ASSERT_EQ(all.lines.size(), log::capacity);
  EXPECT_EQ(all.lines.back().text, "last");
  EXPECT_EQ(all.lines.front().text, "some: one");
  EXPECT_EQ(all.lost, all.lines.front().seq - 1);
}

}  // namespace
}  // namespace molt
