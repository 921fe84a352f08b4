#include "elf/unpack_xz.hpp"

#include <lzma.h>

#include <algorithm>
#include <cerrno>

namespace molt::elf {

namespace {

constexpr std::uint64_t most_working_memory = std::uint64_t{64} << 20;
constexpr std::size_t most_unpacked = std::size_t{256} << 20;
constexpr std::size_t first_guess = std::size_t{1} << 16;

struct Decoder {
  lzma_stream stream = LZMA_STREAM_INIT;
  Decoder() = default;
  Decoder(const Decoder&) = delete;
  Decoder& operator=(const Decoder&) = delete;
  ~Decoder() { lzma_end(&stream); }
};

}  // namespace

Result<Bytes> unpack_xz(View packed) {
  Decoder decoder;
  lzma_stream& stream = decoder.stream;
  if (lzma_stream_decoder(&stream, most_working_memory, 0) != LZMA_OK) {
    return fail(ENOMEM, "no memory to unpack .gnu_debugdata");
  }
  stream.next_in = reinterpret_cast<const std::uint8_t*>(packed.data());
  stream.avail_in = packed.size();

  Bytes unpacked;
  for (;;) {
    const std::size_t done = stream.total_out;
    if (done == unpacked.size()) {
      if (done == most_unpacked) return fail(EFBIG, ".gnu_debugdata unpacks to too much");
      const std::size_t more = std::min(most_unpacked, std::max(first_guess, 2 * done));
      if (!unpacked.try_resize(more)) return fail(ENOMEM, "no memory to unpack .gnu_debugdata");
    }
    stream.next_out = reinterpret_cast<std::uint8_t*>(unpacked.data()) + done;
    stream.avail_out = unpacked.size() - done;
    switch (lzma_code(&stream, LZMA_FINISH)) {
      case LZMA_OK:
        break;
      case LZMA_STREAM_END:
        if (!unpacked.try_resize(stream.total_out)) {
          return fail(ENOMEM, "no memory to unpack .gnu_debugdata");
        }
        return unpacked;
      case LZMA_MEM_ERROR:
        return fail(ENOMEM, "no memory to unpack .gnu_debugdata");
      case LZMA_MEMLIMIT_ERROR:
        return fail(EFBIG, ".gnu_debugdata wants too much memory to be unpacked");
      case LZMA_BUF_ERROR:
        if (stream.avail_out == 0) break;  // only room was missing
        [[fallthrough]];
      default:
        return fail(ENOEXEC, ".gnu_debugdata is damaged");
    }
  }
}

}  // namespace molt::elf
