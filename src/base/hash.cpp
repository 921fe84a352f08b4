#include "base/hash.hpp"

#include <cstring>

// All of xxHash becomes private to this file: the runtime shall need no library of that name.
#define XXH_INLINE_ALL
#include <xxhash.h>

namespace molt {

std::array<unsigned char, 16> content_digest(std::span<const std::byte> content) {
  XXH128_canonical_t canonical;
  XXH128_canonicalFromHash(&canonical, XXH3_128bits(content.data(), content.size()));
  std::array<unsigned char, 16> digest;
  static_assert(sizeof digest == sizeof canonical.digest);
  std::memcpy(digest.data(), canonical.digest, sizeof digest);
  return digest;
}

std::string content_hash(std::span<const std::byte> content) {
  static constexpr char digits[] = "0123456789abcdef";
  std::string text;
  for (unsigned char byte : content_digest(content)) {
    text += digits[byte >> 4];
    text += digits[byte & 15];
  }
  return text;
}

}  // namespace molt
