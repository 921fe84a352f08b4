// commit(): who is asked what, what is refused, and that nothing is left of what failed.

#include <gtest/gtest.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <vector>

#include "arch/x86_64/gate.hpp"
#include "arch/x86_64/redirect.hpp"
#include "arch/x86_64/trap.hpp"
#include "base/poison.hpp"

namespace molt::arch {
extern int fail_write_after;  // text.cpp with MOLT_FAULTS
extern bool fail_for_good;
}  // namespace molt::arch

using namespace molt::arch;
using molt::Status;

namespace {

// Functions of a page of their own: prepared, unprepared with a prologue, unprepared with one
// instruction, short with room only in front.
class Redirects : public testing::Test {
 protected:
  using Call = long (*)(long);
  enum Kind { prepared, prologue, single, in_front, kinds };
  static constexpr std::size_t spacing = 64;

  void SetUp() override {
    text_ = static_cast<std::byte*>(
        mmap(nullptr, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
    std::memset(text_, 0x90, 4096);
    put(prepared, {0x90, 0x90, 0x48, 0x8d, 0x47, 0x01, 0xc3});  // lea 1(%rdi), %rax
    put(prologue, {0x53, 0x48, 0x89, 0xfb, 0x48, 0x8d, 0x43, 0x02, 0x5b, 0xc3});
    put(single, {0x48, 0x8d, 0x87, 0x03, 0, 0, 0, 0xc3});  // lea 3(%rdi), %rax
    put(in_front, {0x89, 0xf8, 0xc3});                     // mov %edi, %eax
    mprotect(text_, 4096, PROT_READ | PROT_EXEC);
    std::memcpy(before_, text_, 4096);
    for (int i = 0; i < kinds; ++i) {
      EntryQuery query;
      query.address = at(i);
      query.size = sizes_[i];
      query.before = i == prepared || i == in_front ? 16 : 0;
      query.live = {text_ + i * spacing + 16 - query.before, query.before + query.size};
      auto entry = analyse(query);
      ASSERT_TRUE(entry) << i << entry.error().detail;
      auto made = prepare(pool_, writer_, *entry, redirects_[i]);
      ASSERT_TRUE(made) << made.error().detail;
      jump_ = *pool_.allocate(entry->referenced, jump_size);
    }
    ASSERT_EQ(redirects_[prepared].entry.kind, EntryKind::prepared);
    ASSERT_EQ(redirects_[prologue].entry.kind, EntryKind::unprepared);
    ASSERT_EQ(redirects_[single].entry.kind, EntryKind::unprepared);
    ASSERT_EQ(redirects_[in_front].entry.kind, EntryKind::short_before);
    std::byte code[jump_size];
    auto target = reinterpret_cast<CodeAddress>(+[](long a) { return a + 1000; });
    std::size_t size = write_jump(jump_.address, target, code);
    ASSERT_TRUE(pool_.publish(writer_, jump_, std::span(code).first(size)));
    other_ = *pool_.allocate(redirects_[0].entry.referenced, jump_size);
    target = reinterpret_cast<CodeAddress>(+[](long a) { return a + 2000; });
    size = write_jump(other_.address, target, code);
    ASSERT_TRUE(pool_.publish(writer_, other_, std::span(code).first(size)));
  }
  void TearDown() override {
    fail_write_after = -1;
    munmap(text_, 4096);
  }

  void put(int kind, std::vector<unsigned char> bytes) {
    std::memcpy(text_ + kind * spacing + 16, bytes.data(), bytes.size());
    sizes_[kind] = bytes.size();
  }
  CodeAddress at(int kind) const {
    return reinterpret_cast<CodeAddress>(text_) + static_cast<CodeAddress>(kind) * spacing + 16;
  }
  long call(int kind) const { return reinterpret_cast<Call>(at(kind))(10); }
  long original(int kind) const { return reinterpret_cast<Call>(redirects_[kind].original)(10); }
  static constexpr long results[] = {11, 12, 13, 10};
  void expect_original() {
    for (int i = 0; i < kinds; ++i) EXPECT_EQ(call(i), results[i]) << i;
  }
  void expect_new(long result) {
    for (int i = 0; i < kinds; ++i) {
      EXPECT_EQ(call(i), result) << i;
      EXPECT_EQ(original(i), results[i]) << i;
    }
  }
  std::vector<Edit> all(Change change, CodeAddress target = 0) {
    std::vector<Edit> edits;
    for (auto& redirect : redirects_) edits.push_back({&redirect, change, target});
    return edits;
  }

  struct Asked : Witness {
    Status no_thread_blocks_sigtrap() override {
      ++trap_questions;
      if (blocked) return molt::fail(ENOTSUP, "thread 1 blocks SIGTRAP");
      return {};
    }
    Status no_thread_within(std::span<const CodeRange> some) override {
      ranges.assign(some.begin(), some.end());
      if (inside) return molt::fail(EBUSY, "thread 1 is inside");
      return {};
    }
    bool blocked = false, inside = false;
    int trap_questions = 0;
    std::vector<CodeRange> ranges;
  };

  std::byte* text_ = nullptr;
  std::byte before_[4096];
  std::size_t sizes_[kinds] = {};
  CodePool pool_;
  TextWriter writer_ = TextWriter::open();
  Redirect redirects_[kinds];
  CodeSlot jump_, other_;
  Asked asked_;
};

TEST_F(Redirects, AllKindsThereAndBack) {
  for (int round = 0; round < 3; ++round) {
    ASSERT_TRUE(commit(writer_, all(Change::install, jump_.address), asked_));
    expect_new(1010);
    for (auto& redirect : redirects_) EXPECT_TRUE(intact(redirect));
    ASSERT_TRUE(commit(writer_, all(Change::retarget, other_.address), asked_));
    expect_new(2010);
    ASSERT_TRUE(commit(writer_, all(Change::remove), asked_));
    expect_original();
  }
  for (auto& redirect : redirects_) release(pool_, writer_, redirect);
  EXPECT_EQ(std::memcmp(text_, before_, 4096), 0);
}

TEST_F(Redirects, APreparedEntryAsksNobody) {
  Edit edit{&redirects_[prepared], Change::install, jump_.address};
  EXPECT_FALSE(needs_trap({&edit, 1}));
  EXPECT_FALSE(needs_proof({&edit, 1}));
  asked_.blocked = asked_.inside = true;
  ASSERT_TRUE(commit(writer_, {&edit, 1}, asked_));
  EXPECT_EQ(call(prepared), 1010);
  EXPECT_EQ(std::memcmp(text_ + 16, "\xeb\xf9", 2), 0);
  edit = {&redirects_[prepared], Change::retarget, other_.address};
  ASSERT_TRUE(commit(writer_, {&edit, 1}, asked_));
  EXPECT_EQ(call(prepared), 2010);
  edit = {&redirects_[prepared], Change::remove, 0};
  ASSERT_TRUE(commit(writer_, {&edit, 1}, asked_));
  EXPECT_EQ(call(prepared), 11);
  EXPECT_EQ(asked_.trap_questions, 0);
  EXPECT_TRUE(asked_.ranges.empty());
}

TEST_F(Redirects, TheProofIsAboutTheBytesWithBoundaries) {
  ASSERT_TRUE(commit(writer_, all(Change::install, jump_.address), asked_));
  EXPECT_EQ(asked_.trap_questions, 1);
  // Of the four only the prologue: the others' changed bytes are one instruction.
  ASSERT_EQ(asked_.ranges.size(), 1u);
  EXPECT_EQ(asked_.ranges[0].begin, at(prologue) + 1);
  EXPECT_EQ(asked_.ranges[0].end, at(prologue) + 5);
  asked_.ranges.clear();
  Edit edit{&redirects_[prepared], Change::straighten, 0};
  EXPECT_TRUE(needs_proof({&edit, 1}));
  ASSERT_TRUE(commit(writer_, {&edit, 1}, asked_));
  ASSERT_EQ(asked_.ranges.size(), 1u);
  EXPECT_EQ(asked_.ranges[0].begin, at(prepared) + 1);
  EXPECT_EQ(asked_.ranges[0].end, at(prepared) + 5);
  EXPECT_EQ(std::memcmp(text_ + 16, "\xe9", 1), 0);
  expect_new(1010);
  // One that has no room.
  edit = {&redirects_[in_front], Change::straighten, 0};
  EXPECT_FALSE(commit(writer_, {&edit, 1}, asked_));
  ASSERT_TRUE(commit(writer_, all(Change::remove), asked_));
  expect_original();
}

TEST_F(Redirects, BlockedTrapsAndStandingThreadsChangeNothing) {
  asked_.blocked = true;
  auto done = commit(writer_, all(Change::install, jump_.address), asked_);
  ASSERT_FALSE(done);
  EXPECT_STREQ(done.error().detail, "thread 1 blocks SIGTRAP");
  EXPECT_EQ(std::memcmp(text_, before_, 4096), 0);
  asked_.blocked = false;
  asked_.inside = true;
  done = commit(writer_, all(Change::install, jump_.address), asked_);
  ASSERT_FALSE(done);
  EXPECT_STREQ(done.error().detail, "thread 1 is inside");
  expect_original();
  for (auto& redirect : redirects_) {
    EXPECT_EQ(redirect.form, RedirectForm::absent);
    EXPECT_TRUE(intact(redirect));
    release(pool_, writer_, redirect);
  }
  EXPECT_EQ(std::memcmp(text_, before_, 4096), 0);
}

TEST_F(Redirects, BytesOfSomebodyElseAreLeftAlone) {
  const std::byte breakpoint[] = {std::byte{0xcc}};
  for (int kind = 0; kind < kinds; ++kind) {
    ASSERT_TRUE(writer_.write(at(kind), breakpoint));
    auto done = commit(writer_, all(Change::install, jump_.address), asked_);
    ASSERT_FALSE(done);
    EXPECT_EQ(refusal_of(done.error()), Refusal::changed);
    EXPECT_EQ(done.error().code, EBUSY);
    ASSERT_TRUE(writer_.write(at(kind), {before_ + 64 * kind + 16, 1}));
    EXPECT_EQ(std::memcmp(text_, before_, 4096), 0);
  }
  // Nor what somebody put over ours.
  ASSERT_TRUE(commit(writer_, all(Change::install, jump_.address), asked_));
  ASSERT_TRUE(writer_.write(at(single), breakpoint));
  EXPECT_FALSE(intact(redirects_[single]));
  EXPECT_FALSE(commit(writer_, all(Change::remove), asked_));
  EXPECT_EQ(call(prepared), 1010);
  EXPECT_EQ(call(prologue), 1010);
}

TEST_F(Redirects, WrongOrdersAndFarTargetsAreRefused) {
  Edit edit{&redirects_[single], Change::remove, 0};
  EXPECT_FALSE(commit(writer_, {&edit, 1}, asked_));
  edit = {&redirects_[single], Change::retarget, jump_.address};
  EXPECT_FALSE(commit(writer_, {&edit, 1}, asked_));
  edit = {&redirects_[single], Change::install, at(single) + (CodeAddress{1} << 33)};
  EXPECT_FALSE(commit(writer_, {&edit, 1}, asked_));
  EXPECT_EQ(std::memcmp(text_, before_, 4096), 0);
  edit = {&redirects_[single], Change::install, jump_.address};
  ASSERT_TRUE(commit(writer_, {&edit, 1}, asked_));
  EXPECT_FALSE(commit(writer_, {&edit, 1}, asked_));
}

// R3, wherever it breaks off: each of the writes of each change fails once.
TEST_F(Redirects, AFailedWriteLeavesNothing) {
  struct Stage {
    Change change;
    CodeAddress target;
    long before, after;  // results of calls; 0: the originals'
  };
  const Stage stages[] = {{Change::install, jump_.address, 0, 1010},
                          {Change::retarget, other_.address, 1010, 2010},
                          {Change::remove, 0, 2010, 0}};
  auto expect = [&](long result) {
    if (result == 0) {
      expect_original();
    } else {
      expect_new(result);
    }
    for (auto& redirect : redirects_) EXPECT_TRUE(intact(redirect));
  };
  int failures = 0;
  for (const Stage& stage : stages) {
    for (int good = 0;; ++good) {
      fail_write_after = good;
      auto done = commit(writer_, all(stage.change, stage.target), asked_);
      bool failed_once = fail_write_after < 0;
      fail_write_after = -1;
      if (done) {
        EXPECT_FALSE(failed_once);
        break;
      }
      ++failures;
      ASSERT_NO_FATAL_FAILURE(expect(stage.before)) << good;
      ASSERT_FALSE(HasFailure()) << "write " << good << " of change "
                                 << static_cast<int>(stage.change);
    }
    expect(stage.after);
  }
  EXPECT_GE(failures, 20);
  for (auto& redirect : redirects_) release(pool_, writer_, redirect);
  EXPECT_EQ(std::memcmp(text_, before_, 4096), 0);
}

// P7, wherever it breaks off: no write works from then on, nor one that takes another back. Each in a child, since
// there is no way back.
TEST_F(Redirects, WhatCannotBeTakenBackEndsAllOperations) {
  enum Outcome { as_it_was, poisoned, wrong, succeeded };
  const auto break_off = [&](int good) {
    TextWriter own = TextWriter::open();
    fail_write_after = good;
    fail_for_good = true;
    const Status done = commit(own, all(Change::install, jump_.address), asked_);
    const bool failed_once = fail_write_after == 0 && !done;
    fail_write_after = -1;
    if (done) return failed_once ? wrong : succeeded;
    bool is_as_it_was = true;
    for (int i = 0; i < kinds; ++i) {
      const long result = call(i);
      if (result != results[i] && result != 1010) return wrong;
      is_as_it_was = is_as_it_was && result == results[i] && intact(redirects_[i]);
    }
    if (is_as_it_was) return molt::operable() ? as_it_was : wrong;
    // What leads to the new jump is not known: it stays, and nothing else is changed.
    const std::size_t used = pool_.used_bytes();
    pool_.free(own, jump_);
    Edit edit{&redirects_[single], Change::install, other_.address};
    const Status more = commit(own, {&edit, 1}, asked_);
    return !molt::operable() && pool_.used_bytes() == used && !more &&
                   more.error().code == ENOTRECOVERABLE
               ? poisoned
               : wrong;
  };
  int seen[succeeded + 1] = {};
  for (int good = 0; seen[succeeded] == 0; ++good) {
    const pid_t child = fork();
    if (child == 0) _exit(break_off(good));
    int status = -1;
    ASSERT_EQ(waitpid(child, &status, 0), child);
    ASSERT_TRUE(WIFEXITED(status)) << "write " << good << ": signal " << WTERMSIG(status);
    ASSERT_LE(WEXITSTATUS(status), succeeded);
    ++seen[WEXITSTATUS(status)];
    EXPECT_EQ(seen[wrong], 0) << "write " << good;
  }
  EXPECT_GE(seen[as_it_was], 1);
  EXPECT_GE(seen[poisoned], 5);
}

TEST_F(Redirects, SharedMappingsAreRefused) {
  void* page = mmap(nullptr, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  std::memcpy(page, text_, 4096);
  mprotect(page, 4096, PROT_READ | PROT_EXEC);
  Entry entry = redirects_[single].entry;
  entry.function = entry.site = reinterpret_cast<CodeAddress>(page) + 2 * spacing + 16;
  Redirect redirect;
  std::size_t used = pool_.used_bytes();
  auto made = prepare(pool_, writer_, entry, redirect);
  ASSERT_FALSE(made);
  EXPECT_EQ(refusal_of(made.error()), Refusal::shared_mapping);
  EXPECT_EQ(pool_.used_bytes(), used);
  munmap(page, 4096);
}

// A child of fork has entries, trampolines and handler, and can undo them.
TEST_F(Redirects, AForkedChildWorks) {
  ASSERT_TRUE(commit(writer_, all(Change::install, jump_.address), asked_));
  pid_t child = fork();
  if (child == 0) {
    TextWriter own = TextWriter::open();  // the parent's descriptor writes to the parent
    bool ok = call(prologue) == 1010 && commit(own, all(Change::remove), asked_) &&
              call(prologue) == 12 && call(prepared) == 11 &&
              commit(own, all(Change::install, other_.address), asked_) && call(single) == 2010;
    _exit(ok ? 0 : 1);
  }
  int status;
  waitpid(child, &status, 0);
  EXPECT_EQ(status, 0);
  expect_new(1010);
}

}  // namespace
