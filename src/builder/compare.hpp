// compare.hpp - what two objects of one unit have in common: which functions and data of the new one
// are those of the old one, and which of them have changed.
//
// Objects of the shadow flavour have a section for each function and variable. Two sections are the
// same if their bytes are, and what their relocations refer to is: functions and variables by name,
// strings and constants by content, jump tables and constant data by content too, as deep as it goes.
// So a function has changed if a constant that it reads has.
//
// Roles      build_patch() makes one for each unit that the diff changes.
// Invariants C1 What is said to be the same is: where a name does not tell (numbered locals), content
//               or debug information has to, or it counts as changed or is refused.
// Checked by tests/builder/compare_test.cpp, cases_test.cpp
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <set>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "builder/object.hpp"

namespace molt::builder {

// What a relocation leads to.
struct Referent {
  std::uint32_t symbol = 0;   // named and defined, or undefined; 0: a place in a section
  std::uint32_t section = 0;  // 0: undefined, absolute
  std::int64_t offset = 0;    // from the symbol; without one, from the section's begin
};

// An object with what looking at it often needs.
class View {
 public:
  explicit View(const Object& object);
  const Object& object() const { return object_; }
  const ObjectSection& section(std::uint32_t index) const { return object_.sections()[index]; }
  const ObjectSymbol& symbol(std::uint32_t index) const { return object_.symbols()[index]; }

  // The function or variable that the section is; 0: it is none, or many. What does not count: gcc's entries of a
  // virtual function for a second base, which lie behind it.
  std::uint32_t owner(std::uint32_t section) const { return owners_[section]; }
  // Those entries (_ZTh, _ZTv). They adjust `this` and jump to the function, or have it inlined: each has to be
  // led to the new one.
  std::vector<std::uint32_t> thunks(std::uint32_t section) const;
  std::string_view name(std::uint32_t section) const;
  Referent reference(std::uint32_t section, const Relocation& relocation) const;
  // How far the relocated field is from the end of its instruction.
  std::int64_t to_end(std::uint32_t section, std::uint64_t field) const;
  // Constant data: it cannot be changed by the program once it runs.
  bool is_constant(std::uint32_t section) const;
  // The content of a string or constant of a mergeable section, from `offset` on.
  std::span<const std::byte> merged(std::uint32_t section, std::int64_t offset) const;

  // A function's exception table, for those that have one.
  struct Frame {
    std::uint32_t frames = 0;  // the .eh_frame section
    std::uint64_t offset = 0;  // of the record
    std::uint64_t size = 0;
    std::uint64_t common = 0;    // offset of the common record
    std::uint32_t function = 0;  // section of the code
    std::uint64_t begin = 0;     // in it
    std::uint32_t table = 0;     // section of the exception table; 0: none
    std::uint64_t table_begin = 0, table_end = 0;
  };
  const std::vector<Frame>& frames() const { return frames_; }
  std::vector<const Frame*> frames_of(std::uint32_t function_section) const;

 private:
  void find_owners();
  void find_frames();
  bool is_address_table(std::uint32_t section) const;
  const Object& object_;
  std::vector<std::uint32_t> owners_;
  std::set<std::uint32_t> with_thunks_;  // sections
  std::vector<Frame> frames_;
  mutable std::map<std::uint32_t, std::vector<std::uint8_t>> ends_;  // of instructions, per byte
};

// "foo.constprop.0" and the like: a copy that the compiler made for itself.
bool is_clone(std::string_view name);
bool is_cold(std::string_view name);
// "count.12" -> "count"; what has no number stays.
std::string_view without_number(std::string_view name);

class Comparison {
 public:
  // `paired`: static locals of the new object with those of the old one, by debug information.
  Comparison(const View& old_view, const View& new_view,
             const std::map<std::uint32_t, std::uint32_t>& paired,
             const std::set<std::uint32_t>& unpaired);

  const View& old_view() const { return old_; }
  const View& new_view() const { return new_; }
  // 0: there is none.
  std::uint32_t old_symbol(std::uint32_t new_symbol) const;
  std::uint32_t old_section(std::uint32_t new_section) const;
  bool same(std::uint32_t new_section) const;  // as its twin

  // Sections of code.
  std::set<std::uint32_t> changed;  // with a twin that differs
  std::set<std::uint32_t> added;    // without
  // Sections of writable data with a twin that differs.
  std::vector<std::uint32_t> data_changed;

 private:
  struct Pair {
    std::uint32_t new_section, old_section;
    auto operator<=>(const Pair&) const = default;
  };
  struct Node {
    bool equal = true;
    std::set<Pair> needs;  // other pairs that must be equal
  };
  void pair_symbols(const std::map<std::uint32_t, std::uint32_t>& paired,
                    const std::set<std::uint32_t>& unpaired);
  void compare(Pair pair);
  bool compare_reference(Pair pair, const Relocation& a, const Relocation& b, Node& node);
  bool compare_frames(Pair pair, Node& node);
  bool compare_range(Pair pair, std::uint64_t a_begin, std::uint64_t a_end, std::uint64_t b_begin,
                     std::uint64_t b_end, Node& node);
  void settle();

  const View& old_;
  const View& new_;
  std::map<std::uint32_t, std::uint32_t> symbols_, sections_;
  std::map<Pair, Node> nodes_;
};

}  // namespace molt::builder
