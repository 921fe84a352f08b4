// Any bytes as a function: analysis and displacement read nothing beyond them, and what they call
// redirectable keeps its invariants. The first four bytes are the bounds.

#include <cstdint>
#include <cstdlib>
#include <vector>

#include "arch/x86_64/displace.hpp"
#include "arch/x86_64/instruction.hpp"

using namespace molt::arch;

namespace {
void must(bool holds) {
  if (!holds) std::abort();
}
}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  if (size < 4) return 0;
  // On the heap and exactly as long: one byte more is seen.
  std::vector<std::byte> live(size - 4);
  for (std::size_t i = 0; i < live.size(); ++i) live[i] = std::byte{data[i + 4]};

  EntryQuery query;
  query.address = 0x7f00'0000'1000 + data[0];
  query.before = live.empty() ? 0 : data[1] % live.size();
  std::size_t left = live.size() - query.before;
  query.after = left == 0 ? 0 : data[2] % left;
  query.size = left - query.after;
  query.patchable = (data[3] & 1) != 0;
  query.live = live;
  if ((data[3] & 2) != 0) query.expected = live;
  EntryQuery::Part part{query.address + 0x10000, live};
  if ((data[3] & 4) != 0) query.parts = {&part, 1};

  auto entry = analyse(query);
  if (!entry) {
    must(refusal_of(entry.error()) != Refusal::none || entry.error().code == 22);
    return 0;
  }
  must(entry->site_size == 2 || entry->site_size == 5);
  must(entry->displaced >= entry->site_size && entry->displaced <= entry->original_size);
  must(entry->original_size <= max_displaced);
  must((entry->kind == EntryKind::unprepared) == (entry->padding == 0));

  std::byte copy[displaced_copy_size];
  CodeAddress at = query.address + 0x20000;
  auto made = displace(*entry, at & ~CodeAddress{15}, copy);
  if (!made) {
    must(refusal_of(made.error()) != Refusal::none);
    return 0;
  }
  // The copy is code up to its literal.
  Instruction one;
  must(*made > 0 && *made <= sizeof copy);
  must(decode(at & ~CodeAddress{15}, std::span(copy).first(*made), one));
  return 0;
}
