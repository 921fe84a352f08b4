// Cutting bytes into messages, and which message a file belongs to.
#include "control/connection.hpp"

#include <gtest/gtest.h>
#include <sys/eventfd.h>
#include <sys/stat.h>

#include "abi/wire.hpp"

using namespace molt;
using namespace molt::control;

namespace {

Fd some_file() { return Fd(eventfd(0, EFD_CLOEXEC)); }

void append(Inbox& inbox, std::string_view bytes, Fd file = {}) {
  inbox.append(bytes.data(), bytes.size(), std::move(file));
}

// "TEXT", "TEXT+" with a file, "-" none, "!" too long.
std::string take(Inbox& inbox) {
  Inbox::Message message;
  switch (inbox.take(message)) {
    case Inbox::Next::none:
      return "-";
    case Inbox::Next::too_long:
      return "!";
    case Inbox::Next::message:
      break;
  }
  return message.text + (message.file ? "+" : "");
}

std::string_view operator""_z(const char* text, std::size_t size) { return {text, size}; }

TEST(Inbox, CutsAtTerminators) {
  Inbox inbox;
  EXPECT_FALSE(inbox.is_ready());
  EXPECT_EQ(take(inbox), "-");
  append(inbox, "ab");
  EXPECT_FALSE(inbox.is_ready());
  EXPECT_EQ(take(inbox), "-");
  append(inbox, "c\0de\0\0f"_z);
  EXPECT_TRUE(inbox.is_ready());
  EXPECT_EQ(take(inbox), "abc");
  EXPECT_EQ(take(inbox), "de");
  EXPECT_EQ(take(inbox), "");
  EXPECT_EQ(take(inbox), "-");
  EXPECT_FALSE(inbox.is_empty());
  append(inbox, "\0"_z);
  EXPECT_EQ(take(inbox), "f");
  EXPECT_TRUE(inbox.is_empty());
}

TEST(Inbox, GivesAFileToTheMessageItCameWith) {
  Inbox inbox;
  append(inbox, "first\0second\0"_z, some_file());  // one read ends behind the file's bytes
  EXPECT_EQ(take(inbox), "first");
  EXPECT_EQ(take(inbox), "second+");

  append(inbox, "be", some_file());
  append(inbox, "gin\0next\0"_z);
  EXPECT_EQ(take(inbox), "begin+");
  EXPECT_EQ(take(inbox), "next");

  append(inbox, "a\0b"_z, some_file());
  EXPECT_EQ(take(inbox), "a");
  append(inbox, "c\0"_z);
  EXPECT_EQ(take(inbox), "bc+");
}

TEST(Inbox, KeepsOneFileForOneMessage) {
  Inbox inbox;
  Fd first = some_file();
  const int number = first.get();
  append(inbox, "a", std::move(first));
  append(inbox, "b", some_file());
  append(inbox, "\0"_z);
  Inbox::Message message;
  ASSERT_EQ(inbox.take(message), Inbox::Next::message);
  EXPECT_EQ(message.file.get(), number);
}

TEST(Inbox, RefusesWhatIsTooLong) {
  const std::string longest(wire::request_bytes_max, 'x');
  Inbox inbox;
  append(inbox, longest);
  EXPECT_FALSE(inbox.is_ready());
  append(inbox, "\0"_z);
  EXPECT_EQ(take(inbox), longest);

  append(inbox, longest + "y");
  EXPECT_TRUE(inbox.is_ready());
  EXPECT_EQ(take(inbox), "!");
  append(inbox, "\0"_z);
  EXPECT_EQ(take(inbox), "!") << "an end that comes too late does not mend it";
}

}  // namespace
