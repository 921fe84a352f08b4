#include "base/hash.hpp"

// All of xxHash becomes private to this file: the runtime shall need no library of that name.
#define XXH_INLINE_ALL
#include <xxhash.h>

namespace molt {

std::string content_hash(std::span<const std::byte> content) {
  XXH128_canonical_t canonical;
  XXH128_canonicalFromHash(&canonical, XXH3_128bits(content.data(), content.size()));

  static constexpr char digits[] = "0123456789abcdef";
  std::string text;
  text.reserve(2 * sizeof canonical.digest);
  for (unsigned char byte : canonical.digest) {
    text += digits[byte >> 4];
    text += digits[byte & 15];
  }
  return text;
}

}  // namespace molt
