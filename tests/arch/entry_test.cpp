// Entries by hand: each kind and each refusal, and bytes that are no program at all.

#include <gtest/gtest.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <random>
#include <vector>

#include "arch/x86_64/displace.hpp"
#include "arch/x86_64/entry.hpp"

using namespace molt::arch;
using molt::Result;

namespace {

using Code = std::vector<std::byte>;

Code code(std::initializer_list<unsigned char> bytes) {
  Code out;
  for (unsigned char byte : bytes) out.push_back(std::byte{byte});
  return out;
}
Code operator+(Code a, const Code& b) {
  a.insert(a.end(), b.begin(), b.end());
  return a;
}

constexpr CodeAddress base = 0x401000;

struct Given {
  Code before, function, after;
  Code file = {};  // as `expected`, if it differs
  bool patchable = false;
  bool file_known = true;
  std::vector<EntryQuery::Part> parts = {};
};

Result<Entry> look(const Given& given) {
  Code live = given.before + given.function + given.after;
  Code expected = given.file.empty() ? live : given.file;
  EntryQuery query;
  query.address = base;
  query.size = given.function.size();
  query.before = given.before.size();
  query.after = given.after.size();
  query.live = live;
  if (given.file_known) query.expected = expected;
  query.parts = given.parts;
  query.patchable = given.patchable;
  return analyse(query);
}

void expect_refused(const Given& given, Refusal why) {
  auto entry = look(given);
  ASSERT_FALSE(entry);
  EXPECT_STREQ(refusal_name(refusal_of(entry.error())), refusal_name(why)) << entry.error().detail;
  EXPECT_NE(std::strlen(entry.error().detail), 0u);
}

const Code five_nops = code({0x90, 0x90, 0x90, 0x90, 0x90});
const Code long_nop5 = code({0x0f, 0x1f, 0x44, 0x00, 0x08});
const Code endbr = code({0xf3, 0x0f, 0x1e, 0xfa});
// push rbp; mov rsp,rbp; push r15; xor eax,eax; ret
const Code prologue = code({0x55, 0x48, 0x89, 0xe5, 0x41, 0x57, 0x31, 0xc0, 0xc3});
const Code lea_ret = code({0x48, 0x8d, 0x04, 0x37, 0xc3});

TEST(Entry, PreparedAsGccWritesIt) {
  auto entry = look({five_nops, code({0x90, 0x90}) + prologue, {}, {}, true});
  ASSERT_TRUE(entry) << entry.error().detail;
  EXPECT_EQ(entry->kind, EntryKind::prepared);
  EXPECT_EQ(entry->site, base);
  EXPECT_EQ(entry->padding, base - 5);
  EXPECT_EQ(entry->site_size, 2);
  EXPECT_EQ(entry->boundaries, 0);
  // nop nop push mov: after each.
  EXPECT_EQ(entry->straight_boundaries, 0b01110);
  EXPECT_EQ(entry->displaced, 6);
}

TEST(Entry, PreparedAsClangWritesIt) {
  auto entry = look({long_nop5, code({0x66, 0x90}) + prologue, {}, {}, true});
  ASSERT_TRUE(entry) << entry.error().detail;
  EXPECT_EQ(entry->kind, EntryKind::prepared);
  EXPECT_EQ(entry->straight_boundaries, 0b01100);
}

TEST(Entry, PreparedBehindEndbr) {
  auto entry = look({five_nops, endbr + code({0x90, 0x90}) + prologue, {}, {}, true});
  ASSERT_TRUE(entry) << entry.error().detail;
  EXPECT_EQ(entry->kind, EntryKind::prepared);
  EXPECT_EQ(entry->function, base);
  EXPECT_EQ(entry->site, base + 4);
  EXPECT_EQ(entry->padding, base - 5);
}

// Not in the table, but all that lies before it is NOP or int3, back to the previous symbol.
TEST(Entry, PaddingIsProvenByItsBytes) {
  auto entry = look({code({0xcc, 0xcc}) + five_nops, code({0x66, 0x90}) + prologue, {}});
  ASSERT_TRUE(entry);
  EXPECT_EQ(entry->kind, EntryKind::prepared);
  // A ret in the gap may belong to something without a symbol; so may two bytes of it alone.
  entry = look({code({0xc3, 0x90, 0x90, 0x90, 0x90}), code({0x66, 0x90}) + prologue, {}});
  ASSERT_TRUE(entry);
  EXPECT_EQ(entry->kind, EntryKind::unprepared);
  entry = look({code({0x90, 0x90, 0x90, 0x90}), code({0x66, 0x90}) + prologue, {}});
  ASSERT_TRUE(entry);
  EXPECT_EQ(entry->kind, EntryKind::unprepared);
}

// Changing two bytes of a longer NOP makes another instruction of it, half-way.
TEST(Entry, ALongerNopAtTheEntryIsNotPrepared) {
  auto entry = look({five_nops, code({0x0f, 0x1f, 0x44, 0x00, 0x00}) + prologue, {}, {}, true});
  ASSERT_TRUE(entry);
  EXPECT_EQ(entry->kind, EntryKind::unprepared);
  EXPECT_EQ(entry->boundaries, 0);
}

// The short form is right where the long one cannot be: a loop leads to behind the NOPs.
TEST(Entry, PreparedButNotStraight) {
  // nop nop; 1: dec rdi; jne 1b; ret
  auto entry =
      look({five_nops, code({0x90, 0x90, 0x48, 0xff, 0xcf, 0x75, 0xfb, 0xc3}), {}, {}, true});
  ASSERT_TRUE(entry) << entry.error().detail;
  EXPECT_EQ(entry->kind, EntryKind::prepared);
  EXPECT_EQ(entry->straight_boundaries, 0xff);
  EXPECT_EQ(entry->displaced, 2);
}

TEST(Entry, Unprepared) {
  auto entry = look({{}, prologue, {}});
  ASSERT_TRUE(entry);
  EXPECT_EQ(entry->kind, EntryKind::unprepared);
  EXPECT_EQ(entry->site_size, 5);
  EXPECT_EQ(entry->displaced, 6);
  EXPECT_EQ(entry->boundaries, 0b10010);
  EXPECT_EQ(entry->inner().begin, base + 1);
  EXPECT_EQ(entry->inner().end, base + 5);
}

TEST(Entry, TheJumpGoesBehindEndbr) {
  auto entry = look({{}, endbr + prologue, {}});
  ASSERT_TRUE(entry);
  EXPECT_EQ(entry->site, base + 4);
}

TEST(Entry, NoSize) { expect_refused({{}, {}, prologue}, Refusal::no_size); }

TEST(Entry, ShortWithPaddingBehind) {
  Code xor_ret = code({0x31, 0xc0, 0xc3});
  auto entry = look({{}, xor_ret, code({0x0f, 0x1f, 0x00})});
  ASSERT_TRUE(entry) << entry.error().detail;
  EXPECT_EQ(entry->kind, EntryKind::unprepared);
  EXPECT_TRUE(entry->returns_early);
  ASSERT_TRUE(look({{}, xor_ret, code({0xcc, 0xcc})}));
  ASSERT_TRUE(look({{}, code({0xc3}), code({0x0f, 0x1f, 0x40, 0x00})}));
  expect_refused({{}, xor_ret, {}}, Refusal::too_short);
  expect_refused({{}, xor_ret, code({0x90})}, Refusal::too_short);
  // Not padding.
  expect_refused({{}, xor_ret, code({0x90, 0x55, 0x5d, 0xc3})}, Refusal::too_short);
}

TEST(Entry, ShortWithPaddingInFront) {
  auto entry = look({five_nops, code({0x89, 0xf8, 0xc3}), {}});
  ASSERT_TRUE(entry) << entry.error().detail;
  EXPECT_EQ(entry->kind, EntryKind::short_before);
  EXPECT_EQ(entry->site_size, 2);
  EXPECT_EQ(entry->displaced, 2);
  // One byte has no room for a short jump.
  expect_refused({five_nops, code({0xc3}), {}}, Refusal::too_short);
}

TEST(Entry, OnlyAnEndbr) { expect_refused({{}, endbr, {}}, Refusal::too_short); }

TEST(Entry, ChangedBySomebodyElse) {
  Code file = prologue;
  Code breakpoint = prologue, jump = prologue;
  breakpoint[0] = std::byte{0xcc};
  jump[0] = std::byte{0xe9};
  expect_refused({{}, breakpoint, {}, file}, Refusal::changed);
  expect_refused({{}, jump, {}, file}, Refusal::changed);
  // In the bytes that would be displaced counts, behind them does not.
  Code later = prologue + prologue + prologue;
  Code changed_later = later;
  changed_later[24] = std::byte{0xcc};
  EXPECT_TRUE(look({{}, changed_later, {}, later}));
  Code changed_padding = five_nops;
  changed_padding[1] = std::byte{0xe9};
  expect_refused({five_nops,
                  code({0x90, 0x90}) + prologue,
                  {},
                  changed_padding + code({0x90, 0x90}) + prologue,
                  true},
                 Refusal::changed);
  // Without the file: what looks like another tool's.
  expect_refused({{}, jump, {}, {}, false, false}, Refusal::changed);
  expect_refused({{}, breakpoint, {}, {}, false, false}, Refusal::changed);
  EXPECT_TRUE(look({{}, prologue, {}, {}, false, false}));
}

TEST(Entry, Undecodable) {
  expect_refused({{}, code({0x06, 0x90, 0x90, 0x90, 0x90, 0x90}), {}}, Refusal::undecodable);
  expect_refused({{}, code({0x55, 0x06, 0x90, 0x90, 0x90, 0x90}), {}}, Refusal::undecodable);
  // Data behind the entry may hide a branch.
  expect_refused({{}, prologue + code({0x06}), {}}, Refusal::undecodable);
  // Cut off in the middle of an instruction.
  expect_refused({{}, code({0x55, 0x48, 0x89}), {}}, Refusal::too_short);
  expect_refused({{}, code({0x55, 0x90, 0x90, 0x90, 0x48, 0x8b}), {}}, Refusal::undecodable);
}

TEST(Entry, BranchIntoTheEntry) {
  // push; 1: dec rdi; jne 1b; pop; ret
  Code loop = code({0x55, 0x48, 0xff, 0xcf, 0x75, 0xfb, 0x5d, 0xc3});
  expect_refused({{}, loop, {}}, Refusal::branch_into_entry);
  // From the cold part.
  Code cold = code({0xe9, 0, 0, 0, 0});
  CodeAddress cold_at = base + 0x1000;
  auto distance = static_cast<std::int32_t>(base + 4 - (cold_at + 5));
  std::memcpy(cold.data() + 1, &distance, 4);
  expect_refused({{}, prologue, {}, {}, false, true, {{cold_at, cold}}},
                 Refusal::branch_into_entry);
  distance = static_cast<std::int32_t>(base + 6 - (cold_at + 5));
  std::memcpy(cold.data() + 1, &distance, 4);
  EXPECT_TRUE(look({{}, prologue, {}, {}, false, true, {{cold_at, cold}}}));
}

TEST(Entry, ALoopThatBeginsWithTheFunction) {
  // 1: add rdi,rax; dec rdi; jne 1b; ret
  Code loop = code({0x48, 0x01, 0xf8, 0x48, 0xff, 0xcf, 0x75, 0xf8, 0xc3});
  expect_refused({{}, loop, {}}, Refusal::branch_into_entry);
  // The same jump to a prepared entry, whose loops begin behind the NOPs, is a call of itself.
  Code tail = code({0x90, 0x90, 0x48, 0x01, 0xf8, 0x48, 0xff, 0xcf, 0x75, 0xf6, 0xc3});
  auto entry = look({five_nops, tail, {}, {}, true});
  ASSERT_TRUE(entry) << entry.error().detail;
  EXPECT_EQ(entry->kind, EntryKind::prepared);
  // endbr64; 1: add rdi,rax; dec rdi; jne 1b; ret. As gcc -Os -fcf-protection has it.
  expect_refused({{}, endbr + loop, {}}, Refusal::branch_into_entry);
  // A call of itself from its end is a jump to the endbr64.
  EXPECT_TRUE(look({{}, endbr + code({0x48, 0x01, 0xf8, 0x48, 0xff, 0xcf, 0x75, 0xf4, 0xc3}), {}}));
  // A short one, with padding in front: its two bytes are no other.
  expect_refused({five_nops, endbr + code({0xff, 0xcf, 0x75, 0xfc}), code({0xc3})},
                 Refusal::branch_into_entry);
  // A call of itself is a call.
  EXPECT_TRUE(look({{}, prologue + code({0xe8, 0xf2, 0xff, 0xff, 0xff}), {}}));
}

TEST(Entry, AddressOfTheEntry) {
  // lea -11(%rip), %rax from byte 9: base+5... base+16-12 = base+4
  expect_refused({{}, prologue + code({0x48, 0x8d, 0x05, 0xf4, 0xff, 0xff, 0xff}), {}},
                 Refusal::address_of_entry);
  // mov $base+1, %eax, in a program at a fixed address
  expect_refused({{}, prologue + code({0xb8, 0x01, 0x10, 0x40, 0x00}), {}},
                 Refusal::address_of_entry);
  EXPECT_TRUE(look({{}, prologue + code({0xb8, 0x00, 0x10, 0x40, 0x00}), {}}));
}

TEST(Entry, NotRelocatable) {
  // lea 0(%eip), %eax
  expect_refused({{}, code({0x67, 0x8d, 0x05, 0, 0, 0, 0, 0xc3}), {}}, Refusal::not_relocatable);
  // call *%rax; its return address would be in the jump
  expect_refused({{}, code({0xff, 0xd0, 0x90, 0x90, 0x90, 0xc3}), {}}, Refusal::not_relocatable);
  // call *8(%rsp)
  expect_refused({{}, code({0x50, 0xff, 0x54, 0x24, 0x08, 0xc3}), {}}, Refusal::not_relocatable);
  // xbegin
  expect_refused({{}, code({0xc7, 0xf8, 0x10, 0, 0, 0, 0xc3}), {}}, Refusal::not_relocatable);
  // 66 e9: Intel and AMD disagree
  expect_refused({{}, code({0x90, 0x66, 0xe9, 0x10, 0, 0, 0, 0xc3}), {}}, Refusal::not_relocatable);
}

TEST(Entry, BoundsThatDisagree) {
  EntryQuery query;
  query.address = base;
  query.size = 10;
  Code live = prologue;
  query.live = live;
  auto entry = analyse(query);
  ASSERT_FALSE(entry);
  EXPECT_EQ(entry.error().code, EINVAL);
}

// Displaced code whose references are out of reach is refused, not bent.
TEST(Displace, OutOfReach) {
  Code far = code({0x48, 0x8b, 0x05, 0x00, 0x00, 0x00, 0x7f, 0xc3});
  auto entry = look({{}, far, {}});
  ASSERT_TRUE(entry);
  std::byte out[displaced_copy_size];
  EXPECT_TRUE(displace(*entry, base + 0x10000, out));
  auto copy = displace(*entry, base - 0x70000000, out);
  ASSERT_FALSE(copy);
  EXPECT_EQ(refusal_of(copy.error()), Refusal::not_relocatable);
}

// Against the byte after the last one: a page that cannot be read.
class Guarded {
 public:
  Guarded() {
    page_ = static_cast<std::byte*>(
        mmap(nullptr, 8192, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
    mprotect(page_ + 4096, 4096, PROT_NONE);
  }
  ~Guarded() { munmap(page_, 8192); }
  std::span<const std::byte> put(std::span<const std::byte> bytes) {
    std::copy(bytes.begin(), bytes.end(), page_ + 4096 - bytes.size());
    return {page_ + 4096 - bytes.size(), bytes.size()};
  }

 private:
  std::byte* page_;
};

TEST(Entry, RandomBytesAreNeverReadBeyond) {
  std::mt19937 random(20260101);
  Guarded guarded;
  // Bytes that make branches, prefixes and NOPs likely.
  constexpr unsigned char likely[] = {0x90, 0x66, 0xeb, 0xe9, 0x75, 0x0f, 0x1f, 0x48, 0xe8,
                                      0xff, 0xc3, 0xf3, 0x1e, 0xfa, 0xcc, 0x62, 0xc4, 0xc5};
  int redirectable = 0;
  for (int i = 0; i < 200'000; ++i) {
    Code bytes(random() % 64);
    for (auto& byte : bytes) {
      byte = static_cast<std::byte>(random() % 2 ? likely[random() % sizeof likely] : random());
    }
    EntryQuery query;
    query.address = base;
    query.before = bytes.empty() ? 0 : random() % bytes.size();
    std::size_t left = bytes.size() - query.before;
    query.size = left == 0 ? 0 : random() % (left + 1);
    query.after = left - query.size;
    query.patchable = random() % 4 == 0;
    query.live = guarded.put(bytes);
    if (random() % 2) query.expected = query.live;
    auto entry = analyse(query);
    if (!entry) continue;
    ++redirectable;
    ASSERT_LE(entry->displaced, entry->original_size);
    ASSERT_GE(entry->displaced, entry->site_size);
    std::byte out[displaced_copy_size];
    auto copy = displace(*entry, base + 0x100000, out);
    ASSERT_TRUE(copy || refusal_of(copy.error()) != Refusal::none) << copy.error().detail;
  }
  EXPECT_GT(redirectable, 1000);
}

}  // namespace
