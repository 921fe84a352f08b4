// owners.hpp - which blocks on the heap nobody but the module refers to.
//
// A static std::map of the module has its nodes on the heap, and they point back at the map. Such words
// are addresses in the module, but only the module could follow them: its destructors will, in
// dlclose(). So for each block with a finding it is asked who refers to it: a search of all memory, now
// with the stacks, for addresses in the block. A referrer in the module is none. One on the heap is
// itself asked for. Any other (data of another object, a stack, thread-local storage, a mapping) is
// somebody else, and so is everything from which it can be reached.
//
// The chain of referrers is followed for passes_max steps; what is undecided then counts as
// somebody else's. So a long list in a static object of the module bars, unless exit() clears it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "elf/loaded.hpp"

namespace molt::audit {

using elf::Range;

class Owners {
 public:
  static constexpr unsigned passes_max = 32;
  static constexpr std::size_t blocks_max = 4096;
  static constexpr std::size_t references_max = 32 * 1024;

  // Blocks to be asked for.
  void ask(Range block);

  // --- one pass: begin(), note() for each word of memory in the envelope, then the references
  // The blocks that are new since the last pass; false: there are none.
  bool begin();
  Range envelope() const { return envelope_; }
  void note(std::uintptr_t address, std::uint64_t word);
  struct Reference {
    std::uintptr_t address;
    std::size_t to;  // index of a block
    // Of its last word. That is where the next chunk begins, of which malloc's own lists have the
    // address if it is free.
    bool to_end;
  };
  const std::vector<Reference>& references() const { return references_; }
  // What a reference turned out to be: in a block, or somebody else's.
  void from_block(const Reference& reference, Range block);
  void from_outside(const Reference& reference, const std::string& who);

  // --- after the passes
  // Nobody can tell: all of them are somebody else's.
  void give_up() { undecided_ = true; }
  void decide();
  bool only_the_module(Range block) const;
  // Who else leads to it; "" if that is not known.
  std::string who_else(Range block) const;

  // Memory of this that holds addresses in the blocks.
  std::vector<Range> own_memory() const;

 private:
  struct Block {
    Range range;
    bool escapes = false;
    std::string who;
  };
  struct Edge {
    std::size_t from, to;
  };
  std::size_t find(std::uintptr_t begin) const;  // blocks_.size(): not there

  std::vector<Block> blocks_;       // in the order in which they came
  std::vector<std::size_t> fresh_;  // of this pass, by address
  std::size_t asked_ = 0;           // blocks before this had their pass
  std::vector<Edge> edges_;
  std::vector<Reference> references_;
  Range envelope_;
  bool undecided_ = false;
};

}  // namespace molt::audit
