// judge.hpp - what a word that holds an address in the module is: where, what it looks like, and
// whether it counts. The rules, and why none hides a pointer of the program's: audit.hpp.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "audit/audit.hpp"
#include "audit/copy.hpp"
#include "audit/heap.hpp"
#include "audit/stacks.hpp"
#include "audit/symbols.hpp"

namespace molt::audit {

// A mapping that is searched.
struct Mapping {
  Range range;
  bool shared = false;
  bool writable = false;
  bool main_heap = false, main_stack = false;
  std::string path;  // "": anonymous
};

// In a variable of the dynamic loader itself: its lists of objects, which have old entries too. Nothing
// of the program's is there.
bool is_in_the_loader(const Finding& finding);

class Judge {
 public:
  Judge(const Target& target, bool stacks, Copy& copy, const std::vector<Mapping>& mappings);

  // By ascending address. Nothing: it does not count.
  std::optional<Finding> judge(std::uintptr_t address);
  // Where a word is, whatever it holds; false: nobody will read it.
  bool place(std::uintptr_t address, Finding& finding) {
    return place(address, neighbours(address), finding);
  }
  // The same for an address that the kernel holds.
  void name_target(std::uintptr_t value, Finding& finding);

 private:
  struct Neighbours {
    std::uint64_t words[7] = {};  // the fourth is the word itself
    std::uint64_t operator[](int at) const { return words[3 + at]; }
  };
  Neighbours neighbours(std::uintptr_t address);
  bool is_text(std::uintptr_t value) const;
  bool is_the_loaders(std::uintptr_t address, const Neighbours& near);
  bool is_in_short_string(std::uintptr_t address, const Neighbours& near);
  bool may_be_two_flags(std::uint64_t value, const Finding& finding);
  bool is_in_link_map(std::uintptr_t block);
  bool is_for_dlclose(const Neighbours& near);
  bool is_handle(std::uint64_t word);
  bool follows_call(std::uintptr_t value);
  // False: it does not count.
  bool place(std::uintptr_t address, const Neighbours& near, Finding& finding);
  bool place_in_thread(std::uintptr_t address, const ThreadMemory& thread, Finding& finding);
  std::uintptr_t key_table();
  // False: it does not count.
  bool place_in_object(std::uintptr_t address, const Neighbours& near, const ObjectOf& object,
                       Finding& finding);
  void settle_threads();
  Range heap_of(const Mapping& mapping) const;
  const Mapping* mapping_of(std::uintptr_t address) const;

  const Target& target_;
  bool stacks_;
  Copy& copy_;
  const std::vector<Mapping>& mappings_;
  Heap heap_;
  Range link_map_;
  std::vector<ThreadMemory> threads_;
  int settled_ = 0;
  std::optional<std::vector<std::uintptr_t>> handles_;  // see is_handle()
  std::optional<std::uintptr_t> key_table_;
  Symbols module_symbols_;
  Symbols object_symbols_;
};

}  // namespace molt::audit
