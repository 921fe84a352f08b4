#include "arch/x86_64/entry.hpp"

#include <errno.h>

#include <algorithm>
#include <cstdarg>
#include <cstdio>
#include <cstring>

#include "arch/x86_64/instruction.hpp"
#include "arch/x86_64/refuse.hpp"

namespace molt::arch {
namespace {

constexpr std::size_t jump_bytes = 5;
constexpr std::size_t most_padding = 64;

// The bytes around a function, by address.
class View {
 public:
  View(const EntryQuery& query, std::span<const std::byte> bytes)
      : begin_(query.address - query.before), bytes_(bytes) {}
  bool holds(CodeAddress from, std::size_t size) const {
    return from >= begin_ && from - begin_ <= bytes_.size() &&
           size <= bytes_.size() - (from - begin_);
  }
  // The bytes from `from` up to `to`, as far as they are known.
  std::span<const std::byte> between(CodeAddress from, CodeAddress to) const {
    return bytes_.subspan(from - begin_, to - from);
  }
  CodeAddress begin() const { return begin_; }
  CodeAddress end() const { return begin_ + bytes_.size(); }

 private:
  CodeAddress begin_;
  std::span<const std::byte> bytes_;
};

class Analysis {
 public:
  explicit Analysis(const EntryQuery& query)
      : query_(query), live_(query, query.live), body_(query, body_bytes(query)) {}

  Result<Entry> run();

 private:
  // What the function was compiled to: a breakpoint in its middle is no concern of ours.
  static std::span<const std::byte> body_bytes(const EntryQuery& query) {
    return query.expected.empty() ? query.live : query.expected;
  }
  CodeAddress function_end() const { return query_.address + query_.size; }

  Status check_unchanged(CodeAddress from, CodeAddress to) const;
  bool padding_before() const;
  bool padding_behind(CodeAddress to) const;
  bool nops_at_site() const;
  Status displace_at_least(std::size_t size, Entry& entry) const;
  Status search(std::span<const std::byte> bytes, CodeAddress at, const Entry& entry,
                CodeRange inner, bool own_start_is_call) const;
  Status search_all(const Entry& entry, CodeRange inner, bool own_start_is_call) const;

  const EntryQuery& query_;
  View live_;
  View body_;
  CodeAddress site_ = 0;
};

Status Analysis::check_unchanged(CodeAddress from, CodeAddress to) const {
  if (query_.expected.empty()) return {};
  auto now = live_.between(from, to);
  auto file = body_.between(from, to);
  auto different = std::mismatch(now.begin(), now.end(), file.begin()).first;
  if (different == now.end()) return {};
  auto offset = static_cast<std::ptrdiff_t>(from - query_.address) + (different - now.begin());
  return refuse(Refusal::changed, "byte %td is %02x and not what its file says: %s", offset,
                static_cast<unsigned>(*different),
                *different == std::byte{0xcc} ? "a debugger's or tracer's breakpoint"
                                              : "another tool has patched it");
}

// Whether the five bytes in front are padding, by the compiler's word or because everything from the
// end of the previous symbol on is NOP or int3.
bool Analysis::padding_before() const {
  if (!live_.holds(query_.address - jump_bytes, jump_bytes)) return false;
  std::size_t known = std::min<std::size_t>(query_.before, most_padding);
  if (query_.patchable) known = jump_bytes;
  if (known < jump_bytes) return false;
  // Where NOPs begin is unknown if the gap was cut off: any start whose instructions end exactly at
  // the function will do, all bytes being in no symbol.
  for (std::size_t start = known; start >= jump_bytes; --start) {
    CodeAddress at = query_.address - start;
    Instruction instruction;
    while (at < query_.address && decode(at, live_.between(at, query_.address), instruction) &&
           (instruction.nop || instruction.int3)) {
      at = instruction.end();
    }
    if (at == query_.address) return true;
    if (query_.patchable || query_.before < most_padding) return false;
  }
  return false;
}

// Whether everything from the function's end up to `to`, and to the end of the instruction there, is
// padding.
bool Analysis::padding_behind(CodeAddress to) const {
  CodeAddress at = function_end();
  while (at < to) {
    Instruction instruction;
    if (!live_.holds(at, 1) || !decode(at, live_.between(at, live_.end()), instruction) ||
        !(instruction.nop || instruction.int3)) {
      return false;
    }
    at = instruction.end();
  }
  return true;
}

// Exactly two bytes: a longer NOP would become another instruction halfway.
bool Analysis::nops_at_site() const {
  Instruction instruction;
  std::size_t size = 0;
  while (size < 2) {
    if (!decode(site_ + size, live_.between(site_ + size, function_end()), instruction) ||
        !instruction.nop) {
      return false;
    }
    size += instruction.length;
  }
  return size == 2;
}

// Fills in which whole instructions have to move so that `size` bytes from the site on are free, and
// where a thread may stand in them.
Status Analysis::displace_at_least(std::size_t size, Entry& entry) const {
  CodeAddress at = site_, end = site_ + size;
  std::uint8_t boundaries = 0;
  bool ended = false;
  auto refer = [&](CodeAddress to) {
    entry.referenced.begin = std::min(entry.referenced.begin, to);
    entry.referenced.end = std::max(entry.referenced.end, to + 16);
  };
  while (at < end) {
    bool inside = at < function_end();
    if (!inside && !ended) {
      return refuse(Refusal::undecodable, "it runs on beyond its end at byte %zu",
                    static_cast<std::size_t>(at - query_.address));
    }
    Instruction instruction;
    CodeAddress limit = inside ? function_end() : live_.end();
    if (!live_.holds(at, 1) || !decode(at, live_.between(at, limit), instruction)) {
      return refuse(Refusal::undecodable, "byte %zu begins no instruction",
                    static_cast<std::size_t>(at - query_.address));
    }
    if (at != site_ && at - site_ < 8) {
      boundaries |= static_cast<std::uint8_t>(1u << (at - site_));
    }
    auto offset = static_cast<std::size_t>(at - query_.address);
    if (!ended) {
      if (instruction.fixed_here) {
        return refuse(Refusal::not_relocatable,
                      "the instruction at byte %zu means something else elsewhere", offset);
      }
      bool calls = instruction.flow == Flow::call || instruction.flow == Flow::call_indirect;
      if (calls && instruction.end() < end) {
        return refuse(Refusal::not_relocatable,
                      "the call at byte %zu returns into bytes that are changed", offset);
      }
      if (calls && instruction.through_stack) {
        return refuse(Refusal::not_relocatable, "the call at byte %zu goes through its stack",
                      offset);
      }
      if (instruction.has_target) refer(instruction.target);
      if (instruction.rip_relative) refer(instruction.memory);
      if (instruction.flow == Flow::jump || instruction.flow == Flow::jump_indirect || calls ||
          instruction.flow == Flow::stop) {
        // A call ends the copy too: its callee returns behind it, into the original.
        ended = true;
        entry.returns_early = true;
      }
    }
    at = instruction.end();
  }
  entry.displaced = static_cast<std::uint8_t>(at - site_);
  entry.boundaries = boundaries;
  return {};
}

Status Analysis::search(std::span<const std::byte> bytes, CodeAddress at, const Entry& entry,
                        CodeRange inner, bool own_start_is_call) const {
  CodeAddress end = at + bytes.size();
  while (at < end) {
    Instruction instruction;
    auto offset = static_cast<std::ptrdiff_t>(at - query_.address);
    if (!decode(at, bytes.subspan(bytes.size() - (end - at)), instruction)) {
      return refuse(Refusal::undecodable, "byte %td begins no instruction", offset);
    }
    if (instruction.has_target) {
      if (inner.contains(instruction.target)) {
        return refuse(Refusal::branch_into_entry,
                      "the jump at byte %td leads into the bytes that are changed", offset);
      }
      // A loop that begins with the function looks like a call of itself from its end. Behind an
      // endbr64 it is told from one: that is a jump to the endbr64, and no branch to our bytes.
      if (instruction.target == entry.site && instruction.flow != Flow::call &&
          !own_start_is_call) {
        return refuse(Refusal::branch_into_entry,
                      "the jump at byte %td leads back to its first instruction", offset);
      }
    }
    if ((instruction.rip_relative && inner.contains(instruction.memory)) ||
        inner.contains(instruction.immediate)) {
      return refuse(Refusal::address_of_entry,
                    "the instruction at byte %td refers to the bytes that are changed", offset);
    }
    at = instruction.end();
  }
  return {};
}

Status Analysis::search_all(const Entry& entry, CodeRange inner, bool own_start_is_call) const {
  if (auto found = search(body_.between(query_.address, function_end()), query_.address, entry,
                          inner, own_start_is_call);
      !found) {
    return found;
  }
  for (const auto& part : query_.parts) {
    if (auto found = search(part.live, part.address, entry, inner, own_start_is_call); !found) {
      return found;
    }
  }
  return {};
}

Result<Entry> Analysis::run() {
  if (query_.size == 0) return refuse(Refusal::no_size, "its symbol has no size");
  std::size_t all = query_.before + query_.size + query_.after;
  if (query_.before > query_.address || all < query_.size || query_.live.size() != all ||
      (!query_.expected.empty() && query_.expected.size() != all)) {
    return fail(EINVAL, "bytes and bounds of the function disagree");
  }

  Instruction first;
  if (!decode(query_.address, live_.between(query_.address, function_end()), first)) {
    // Of two explanations the one that the file gives is better.
    if (auto same = check_unchanged(query_.address, query_.address + 1); !same) return pass(same);
    return refuse(Refusal::undecodable, "byte 0 begins no instruction");
  }
  site_ = query_.address + (first.endbr64 ? first.length : 0u);
  CodeAddress looked_at = std::min<CodeAddress>(site_ + max_displaced, live_.end());
  if (auto same = check_unchanged(query_.address, looked_at); !same) return pass(same);
  if (site_ >= function_end()) {
    return refuse(Refusal::too_short, "it consists of an endbr64");
  }
  if (query_.expected.empty()) {
    Instruction at_site;
    if (decode(site_, live_.between(site_, function_end()), at_site) &&
        (at_site.int3 || at_site.flow == Flow::jump || at_site.flow == Flow::jump_indirect)) {
      return refuse(Refusal::changed, "it begins with a jump or int3, and its file is not known");
    }
  }

  Entry entry;
  entry.function = query_.address;
  entry.site = site_;
  entry.referenced = {query_.address, function_end()};
  entry.original_size = static_cast<std::uint8_t>(looked_at - site_);
  std::ranges::copy(live_.between(site_, looked_at), entry.original.begin());

  bool before = padding_before();
  if (before) {
    if (auto same = check_unchanged(query_.address - jump_bytes, query_.address); !same) {
      return pass(same);
    }
    std::ranges::copy(live_.between(query_.address - jump_bytes, query_.address),
                      entry.padding_original.begin());
  }

  // One jump of five bytes at the site.
  Entry straight = entry;
  Status straight_fits =
      site_ + jump_bytes <= function_end() || padding_behind(site_ + jump_bytes)
          ? displace_at_least(jump_bytes, straight)
          : refuse(Refusal::too_short,
                   "it has %zu bytes, and what follows is not known to be padding", query_.size);
  straight.kind = EntryKind::unprepared;
  straight.site_size = jump_bytes;

  if (before && site_ + 2 <= function_end() && nops_at_site()) {
    CodeRange inner{site_ + 1, site_ + 2};
    if (auto clear = search_all(entry, inner, true); !clear) return pass(clear);
    if (straight_fits && search_all(straight, straight.inner(), true)) {
      entry = straight;
      entry.straight_boundaries = straight.boundaries;
    } else {
      if (auto fits = displace_at_least(2, entry); !fits) return pass(fits);
      entry.straight_boundaries = 0xff;
    }
    entry.kind = EntryKind::prepared;
    entry.site_size = 2;
    entry.boundaries = 0;
    entry.padding = query_.address - jump_bytes;
    return entry;
  }

  if (straight_fits) straight_fits = search_all(straight, straight.inner(), false);
  if (straight_fits) return straight;

  if (before && refusal_of(straight_fits.error()) == Refusal::too_short) {
    entry.kind = EntryKind::short_before;
    entry.site_size = 2;
    entry.padding = query_.address - jump_bytes;
    if (site_ + 2 > function_end() && !padding_behind(site_ + 2)) return pass(straight_fits);
    if (auto fits = displace_at_least(2, entry); !fits) return pass(fits);
    if (auto clear = search_all(entry, entry.inner(), false); !clear) return pass(clear);
    entry.straight_boundaries = 0xff;
    return entry;
  }
  return pass(straight_fits);
}

constexpr const char* names[] = {
    "",
    "no-size",
    "too-short",
    "changed",
    "undecodable",
    "branch-into-entry",
    "address-of-entry",
    "not-relocatable",
    "shared-mapping",
    "not-mapped",
    "no-near-memory",
    "traps-blocked",
    "in-use",
};
constexpr std::size_t name_count = sizeof names / sizeof *names;
static_assert(name_count == static_cast<std::size_t>(Refusal::in_use) + 1);

int code_of(Refusal refusal) {
  switch (refusal) {
    case Refusal::changed:
    case Refusal::in_use:
      return EBUSY;
    case Refusal::no_near_memory:
      return ENOMEM;
    default:
      return ENOTSUP;
  }
}

}  // namespace

const char* refusal_name(Refusal refusal) {
  auto index = static_cast<std::size_t>(refusal);
  return index < name_count ? names[index] : "";
}

// The error's site is the refusal's name itself, a static text of ours.
Refusal refusal_of(const Error& error) {
  for (std::size_t i = 1; i < name_count; ++i) {
    if (error.site == names[i]) return static_cast<Refusal>(i);
  }
  return Refusal::none;
}

tl::unexpected<Error> refuse(Refusal refusal, const char* format, ...) {
  char text[sizeof(Error::detail)];
  va_list arguments;
  va_start(arguments, format);
  std::vsnprintf(text, sizeof text, format, arguments);
  va_end(arguments);
  return fail(ErrorCode(code_of(refusal), refusal_name(refusal)), "%s", text);
}

Result<Entry> analyse(const EntryQuery& query) { return Analysis(query).run(); }

}  // namespace molt::arch
