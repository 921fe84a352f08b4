// Functions that compilers made, with all the flags that matter: each is analysed, and each that can be
// redirected is, while other threads call it.

#include <gtest/gtest.h>

#include <filesystem>
#include <map>
#include <set>

#include "arch/x86_64/gate.hpp"
#include "arch/x86_64/instruction.hpp"
#include "base/futex.hpp"
#include "callers.hpp"

using namespace molt::arch;
using namespace arch_test;

namespace {

std::vector<std::string> sample_files() {
#ifdef OWN_SAMPLES
  return {"/proc/self/exe"};
#else
  std::vector<std::string> files;
  for (const auto& one : std::filesystem::directory_iterator(SAMPLES)) {
    if (one.path().extension() == ".so") files.push_back(one.path());
  }
  std::sort(files.begin(), files.end());
  return files;
#endif
}

SampleFile load(const std::string& path) {
#ifdef OWN_SAMPLES
  return SampleFile(path, samples);
#else
  return SampleFile(path);
#endif
}

bool has(const std::string& text, const char* part) { return text.find(part) != std::string::npos; }

// The ones written in assembly do not follow the compiler's flags.
bool in_assembly(const std::string& name) {
  static const std::set<std::string> names = {
      "jrcxz_first",      "loop_early",         "short_jumps",           "jumps_at_once",
      "long_nop",         "crosses_line",       "immediate_to_memory",   "compares_memory",
      "crosses_page",     "crosses_cache_line", "prepared_crosses_line", "prepared_crosses_page",
      "short_with_front", "right_behind"};
  return names.contains(name);
}

class Samples : public testing::TestWithParam<std::string> {};

TEST_P(Samples, EveryEntryIsUnderstoodOrRefusedForAReason) {
  SampleFile file = load(GetParam());
  std::map<std::string, int> count;
  int compiled = 0, refused = 0;
  for (Function& function : file.functions) {
    SCOPED_TRACE(function.name);
    bool prepared = has(file.flavour(), "patchable") && !in_assembly(function.name);
    function.query.patchable = prepared;
    auto entry = analyse(function.query);
    compiled += !in_assembly(function.name);
    if (!entry) {
      Refusal why = refusal_of(entry.error());
      EXPECT_TRUE(why == Refusal::branch_into_entry || why == Refusal::too_short)
          << entry.error().detail;
      ++count[refusal_name(why)];
      refused += !in_assembly(function.name);
      continue;
    }
    ++count[entry->kind == EntryKind::prepared     ? "prepared"
            : entry->kind == EntryKind::unprepared ? "unprepared"
                                                   : "short_before"];
    EXPECT_TRUE(!prepared || entry->kind == EntryKind::prepared);

    // E1, E3: whole instructions, at least as many bytes as change, and their boundaries.
    CodeAddress at = entry->site;
    unsigned boundaries = 0;
    while (at < entry->site + entry->displaced) {
      Instruction one;
      ASSERT_TRUE(decode(at, {reinterpret_cast<const std::byte*>(at), 15}, one));
      if (at != entry->site && at - entry->site < 8) boundaries |= 1u << (at - entry->site);
      at = one.end();
    }
    EXPECT_EQ(at, entry->site + entry->displaced);
    EXPECT_GE(entry->displaced, entry->site_size);
    EXPECT_TRUE(entry->kind != EntryKind::unprepared ||
                (boundaries & 0x1e) == (entry->boundaries & 0x1e));
    if (has(file.flavour(), "cet") && !in_assembly(function.name)) {
      EXPECT_EQ(entry->site, entry->function + 4);
    }
    EXPECT_TRUE(entry->padding == 0 || entry->padding == entry->function - 5);
  }
  for (auto& [what, n] : count) std::printf("%s: %d %s\n", file.flavour().c_str(), n, what.c_str());
  // A function that loops from its first instruction, and those under five bytes.
  EXPECT_LE(refused, compiled / 6);
}

TEST_P(Samples, TheOriginalRunsFromItsCopy) {
  SampleFile file = load(GetParam());
  CodePool pool;
  TextWriter writer = TextWriter::open();
  for (Function& function : file.functions) {
    SCOPED_TRACE(function.name);
    auto entry = analyse(function.query);
    if (!entry) continue;
    Redirect redirect;
    auto made = prepare(pool, writer, *entry, redirect);
    ASSERT_TRUE(made) << made.error().detail;
    auto copy = reinterpret_cast<long (*)(long, long)>(redirect.original);
    for (auto [a, b, result] : cases_of(function)) EXPECT_EQ(copy(a, b), result);
    release(pool, writer, redirect);
  }
  EXPECT_EQ(pool.used_bytes(), 0u);
}

// All functions of the file at once, again and again.
TEST_P(Samples, RedirectingUnderLoadIsNeverWrong) {
  SampleFile file = load(GetParam());
  CodePool pool;
  std::vector<const Function*> functions;
  std::vector<Redirect> redirects;
  std::vector<CodeSlot> jumps;
  TextWriter writer = TextWriter::open();
  auto jump_to = [&](const Entry& entry, long (*target)(long, long)) {
    auto slot = pool.allocate(entry.referenced, jump_size);
    std::byte code[jump_size];
    std::size_t size = write_jump(slot->address, reinterpret_cast<CodeAddress>(target), code);
    EXPECT_TRUE(pool.publish(writer, *slot, std::span(code).first(size)));
    jumps.push_back(*slot);
    return slot->address;
  };
  std::vector<CodeAddress> to_a, to_b;
  for (Function& function : file.functions) {
    function.query.patchable = has(file.flavour(), "patchable") && !in_assembly(function.name);
    auto entry = analyse(function.query);
    if (!entry) continue;
    Redirect redirect;
    auto made = prepare(pool, writer, *entry, redirect);
    ASSERT_TRUE(made) << made.error().detail;
    functions.push_back(&function);
    redirects.push_back(redirect);
    to_a.push_back(jump_to(*entry, version_a));
    to_b.push_back(jump_to(*entry, version_b));
  }

  std::vector<std::vector<Case>> cases;
  for (const Function* function : functions) cases.push_back(cases_of(*function));
  Callers callers(functions, 3);
  auto change = [&](Change what, const std::vector<CodeAddress>* targets) {
    std::vector<Edit> edits;
    for (std::size_t i = 0; i < redirects.size(); ++i) {
      if (what == Change::straighten && (redirects[i].form != RedirectForm::short_jump ||
                                         redirects[i].entry.straight_boundaries == 0xff)) {
        continue;
      }
      edits.push_back({&redirects[i], what, targets != nullptr ? (*targets)[i] : 0});
    }
    TextWriter own = TextWriter::open();
    auto done = commit(own, edits, callers);
    ASSERT_TRUE(done) << done.error().detail;
  };
  // The calling thread sees exactly what was committed.
  auto expect = [&](long (*version)(long, long)) {
    for (std::size_t i = 0; i < functions.size(); ++i) {
      for (auto [a, b, old_result] : cases[i]) {
        ASSERT_EQ(functions[i]->call(a, b), version != nullptr ? version(a, b) : old_result)
            << functions[i]->name;
        if (functions[i]->recursive) continue;  // its copy calls the entry
        ASSERT_EQ(reinterpret_cast<long (*)(long, long)>(redirects[i].original)(a, b), old_result)
            << functions[i]->name;
      }
    }
  };

  auto deadline = molt::Deadline::in_ms(BUDGET_MS);
  int rounds = 0;
  do {
    change(Change::install, &to_a);
    expect(version_a);
    change(Change::retarget, &to_b);
    expect(version_b);
    if (rounds % 2 == 0) {
      change(Change::straighten, nullptr);
      expect(version_b);
      change(Change::retarget, &to_a);
      expect(version_a);
    }
    // A proof that is not given changes nothing.
    callers.refuse_proof = true;
    std::vector<Edit> edits;
    for (auto& redirect : redirects) {
      if (redirect.form == RedirectForm::short_jump && redirect.entry.straight_boundaries != 0xff) {
        edits.push_back({&redirect, Change::straighten, 0});
      }
    }
    if (!edits.empty()) {
      EXPECT_FALSE(commit(writer, edits, callers));
      expect(version_b);
    }
    callers.refuse_proof = false;
    change(Change::remove, nullptr);
    expect(nullptr);
    callers.refuse_proof = true;
    edits.clear();
    for (std::size_t i = 0; i < redirects.size(); ++i) {
      edits.push_back({&redirects[i], Change::install, to_a[i]});
    }
    if (needs_proof(edits)) {
      EXPECT_FALSE(commit(writer, edits, callers));
      expect(nullptr);
    }
    callers.refuse_proof = false;
    ++rounds;
  } while ((!deadline.passed() || !callers.saw_both()) && callers.wrong.load() == 0 &&
           !testing::Test::HasFatalFailure());
  callers.stop();
  EXPECT_EQ(callers.wrong.load(), 0u);
  EXPECT_GT(callers.new_results.load(), 0u);
  EXPECT_GT(callers.old_results.load(), 0u);
  std::printf("%s: %zu functions, %d rounds, %lu calls, %d proofs, %lu of them new\n",
              file.flavour().c_str(), functions.size(), rounds, callers.calls(), callers.proofs,
              callers.new_results.load());

  // Nothing of it is left: entries and padding are the file's again.
  for (auto& redirect : redirects) release(pool, writer, redirect);
  for (auto& jump : jumps) pool.free(writer, jump);
  EXPECT_EQ(pool.used_bytes(), 0u);
  for (const Function* function : functions) {
    EXPECT_TRUE(std::ranges::equal(function->query.live, function->query.expected))
        << function->name;
  }
}

INSTANTIATE_TEST_SUITE_P(Files, Samples, testing::ValuesIn(sample_files()), [](const auto& given) {
  std::string name = std::filesystem::path(given.param).stem();
  std::ranges::replace_if(
      name, [](char c) { return !std::isalnum(static_cast<unsigned char>(c)); }, '_');
  return name;
});

}  // namespace
