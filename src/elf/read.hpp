// read.hpp - the checked readers: how bytes that came from a file are looked at.
//
// Invariant I1 of image.hpp and S3 of symbols.hpp: no byte outside of what was given is read. All sizes
// are unsigned and compared by subtraction, so that no sum can wrap around.
#pragma once

#include <elf.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace molt::elf {

using View = std::span<const std::byte>;

inline bool within(std::uint64_t offset, std::uint64_t bytes, std::uint64_t size) {
  return offset <= size && bytes <= size - offset;
}

inline std::optional<View> part(View whole, std::uint64_t offset, std::uint64_t bytes) {
  if (!within(offset, bytes, whole.size())) return std::nullopt;
  return whole.subspan(offset, bytes);
}

// Copies, since a file may put anything at any alignment.
template <class T>
std::optional<T> read(View whole, std::uint64_t offset) {
  if (!within(offset, sizeof(T), whole.size())) return std::nullopt;
  T value;
  std::memcpy(&value, whole.data() + offset, sizeof value);
  return value;
}

template <class T>
std::optional<std::vector<T>> read_array(View whole, std::uint64_t offset, std::uint64_t count) {
  if (offset > whole.size() || count > (whole.size() - offset) / sizeof(T)) return std::nullopt;
  std::vector<T> items(count);
  if (count != 0) std::memcpy(items.data(), whole.data() + offset, count * sizeof(T));
  return items;
}

// The text at `offset`, up to its NUL; nothing when there is no NUL before the end.
inline std::optional<std::string_view> text_at(View strings, std::uint64_t offset) {
  if (offset >= strings.size()) return std::nullopt;
  const char* begin = reinterpret_cast<const char*>(strings.data()) + offset;
  std::size_t room = strings.size() - offset;
  const void* end = std::memchr(begin, 0, room);
  if (end == nullptr) return std::nullopt;
  return std::string_view(begin, static_cast<const char*>(end) - begin);
}

inline std::string_view as_text(View bytes) {
  return {reinterpret_cast<const char*>(bytes.data()), bytes.size()};
}

constexpr std::size_t round_up(std::size_t value, std::size_t alignment) {
  return (value + alignment - 1) & ~(alignment - 1);
}

// As build-ids are written.
inline constexpr char hexadecimal_digits[] = "0123456789abcdef";
inline std::string hexadecimal(View bytes) {
  std::string text;
  for (std::byte b : bytes) {
    text += hexadecimal_digits[std::to_integer<unsigned>(b) >> 4];
    text += hexadecimal_digits[std::to_integer<unsigned>(b) & 15];
  }
  return text;
}
// Is that text of these bytes? Allocates nothing.
inline bool is_hexadecimal(View bytes, std::string_view text) {
  if (text.size() != 2 * bytes.size()) return false;
  for (std::size_t i = 0; i < bytes.size(); ++i) {
    if (text[2 * i] != hexadecimal_digits[std::to_integer<unsigned>(bytes[i]) >> 4] ||
        text[2 * i + 1] != hexadecimal_digits[std::to_integer<unsigned>(bytes[i]) & 15]) {
      return false;
    }
  }
  return true;
}

// One past the highest symbol that DT_GNU_HASH reaches. The table holds defined symbols only and
// may be empty, hence a lower bound for the number of symbols. Allocates nothing.
//
//     words: buckets, first symbol, bloom words (64 bits each), bloom shift;
//     then the bloom filter, the buckets, and one hash word for each symbol from the first on;
//     a chain of symbols ends at a word with bit 0 set.
inline std::optional<std::uint64_t> gnu_hash_end(View hash) {
  if (hash.size() < 16) return std::nullopt;
  const std::uint64_t bucket_count = *read<std::uint32_t>(hash, 0);
  const std::uint64_t first = *read<std::uint32_t>(hash, 4);
  const std::uint64_t buckets_at = 16 + std::uint64_t{8} * *read<std::uint32_t>(hash, 8);
  auto buckets = part(hash, buckets_at, 4 * bucket_count);
  if (!buckets) return std::nullopt;

  std::uint64_t last = 0;
  for (std::uint64_t i = 0; i < bucket_count; ++i) {
    last = std::max<std::uint64_t>(last, *read<std::uint32_t>(*buckets, 4 * i));
  }
  if (last == 0) return first;
  if (last < first) return std::nullopt;

  const std::uint64_t words_at = buckets_at + 4 * bucket_count;
  for (;;) {
    auto word = read<std::uint32_t>(hash, words_at + 4 * (last - first));
    if (!word) return std::nullopt;
    ++last;
    if (*word & 1) return last;
  }
}

// Calls f(owner with its NUL, type, content) for each record of a PT_NOTE segment or SHT_NOTE section.
// A record that does not fit ends it: notes are information, and other people's notes are not always
// well formed. Allocates nothing.
template <class F>
void for_each_note(View bytes, std::size_t alignment, F&& f) {
  while (auto note = read<Elf64_Nhdr>(bytes, 0)) {
    if (note->n_namesz == 0 && note->n_descsz == 0 && note->n_type == 0) {
      // What a linker puts between records to align the next one.
      bytes = bytes.subspan(sizeof(std::uint32_t));
      continue;
    }
    const std::uint64_t text_begin =
        round_up(sizeof *note + std::uint64_t{note->n_namesz}, alignment);
    auto owner = part(bytes, sizeof *note, note->n_namesz);
    auto text = part(bytes, text_begin, note->n_descsz);
    if (!owner || !text) return;
    f(as_text(*owner), std::uint32_t{note->n_type}, *text);
    const std::uint64_t next = text_begin + round_up(note->n_descsz, alignment);
    if (next >= bytes.size()) return;
    bytes = bytes.subspan(next);
  }
}

}  // namespace molt::elf
