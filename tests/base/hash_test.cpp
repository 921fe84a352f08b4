#include "base/hash.hpp"

#include <gtest/gtest.h>

#include <set>
#include <string_view>

namespace molt {
namespace {

std::string hash_of(std::string_view text) {
  return content_hash(std::as_bytes(std::span(text.data(), text.size())));
}

// Hashes name files that another version of Molt may find: they must not change. The values are
// those of `xxhsum -H2`.
TEST(hash, known_values) {
  EXPECT_EQ(hash_of(""), "99aa06d3014798d86001c324468d497f");
  EXPECT_EQ(hash_of("abc"), "06b05ab6733a618578af5f94892f3950");
}

TEST(hash, one_bit_makes_another_hash) {
  std::set<std::string> hashes;
  std::string text(1000, '\0');
  for (char& c : text) {
    c = 1;
    hashes.insert(hash_of(text));
    c = 0;
  }
  EXPECT_EQ(hashes.size(), text.size());
  EXPECT_EQ(hashes.begin()->size(), 32u);
}

}  // namespace
}  // namespace molt
