// hash.hpp - the identity of a file's content.
#pragma once

#include <array>
#include <cstddef>
#include <span>
#include <string>

namespace molt {

// 32 lower-case hexadecimal digits: XXH3, 128 bits, in its canonical byte order, the same as
// `xxhsum -H2` prints. Several GB/s.
//
// Not a cryptographic hash, and none is needed. It names files of a store that is private to the
// user, and tells apart contents that nobody made to collide; whoever could plant a collision there
// may load any code anyway. Where equal hashes let two loads share one file, the bytes are compared
// as well: a collision would cost a second copy, never run the wrong code.
[[nodiscard]] std::string content_hash(std::span<const std::byte> content);
// The same as 16 bytes.
[[nodiscard]] std::array<unsigned char, 16> content_digest(std::span<const std::byte> content);

}  // namespace molt
