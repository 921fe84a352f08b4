#include "audit/owners.hpp"

#include <algorithm>

namespace molt::audit {
namespace {

template <class T>
Range memory_of(const std::vector<T>& list) {
  const auto at = reinterpret_cast<std::uintptr_t>(list.data());
  return {at, at + list.capacity() * sizeof(T)};
}

}  // namespace

std::size_t Owners::find(std::uintptr_t begin) const {
  const auto at = std::find_if(blocks_.begin(), blocks_.end(),
                               [&](const Block& b) { return b.range.begin == begin; });
  return static_cast<std::size_t>(at - blocks_.begin());
}

void Owners::ask(Range block) {
  if (find(block.begin) != blocks_.size()) return;
  if (blocks_.size() == blocks_max) {
    give_up();
  } else {
    blocks_.push_back({block, false, ""});
  }
}

bool Owners::begin() {
  fresh_.clear();
  references_.clear();
  references_.reserve(references_max);
  envelope_ = {UINTPTR_MAX, 0};
  for (; asked_ < blocks_.size(); ++asked_) {
    fresh_.push_back(asked_);
    envelope_.begin = std::min(envelope_.begin, blocks_[asked_].range.begin);
    envelope_.end = std::max(envelope_.end, blocks_[asked_].range.end);
  }
  std::sort(fresh_.begin(), fresh_.end(), [&](std::size_t a, std::size_t b) {
    return blocks_[a].range.begin < blocks_[b].range.begin;
  });
  return !fresh_.empty() && !undecided_;
}

void Owners::note(std::uintptr_t address, std::uint64_t word) {
  auto at =
      std::upper_bound(fresh_.begin(), fresh_.end(), word,
                       [&](std::uint64_t w, std::size_t i) { return w < blocks_[i].range.begin; });
  if (at == fresh_.begin()) return;
  const std::size_t to = *--at;
  // A block's references to itself tell nothing.
  if (!blocks_[to].range.contains(word) || blocks_[to].range.contains(address)) return;
  if (references_.size() == references_max) {
    give_up();
  } else {
    references_.push_back({address, to, word == blocks_[to].range.end - sizeof word});
  }
}

void Owners::from_outside(const Reference& reference, const std::string& who) {
  Block& block = blocks_[reference.to];
  if (!block.escapes) block.who = who;
  block.escapes = true;
}

void Owners::from_block(const Reference& reference, Range block) {
  if (blocks_[reference.to].escapes) return;
  ask(block);
  const std::size_t from = find(block.begin);
  if (from != blocks_.size()) edges_.push_back({from, reference.to});
}

void Owners::decide() {
  for (bool changed = true; changed;) {
    changed = false;
    for (const Edge& edge : edges_) {
      if (!blocks_[edge.from].escapes || blocks_[edge.to].escapes) continue;
      blocks_[edge.to].escapes = changed = true;
      blocks_[edge.to].who = blocks_[edge.from].who;
    }
  }
}

bool Owners::only_the_module(Range block) const {
  const std::size_t i = find(block.begin);
  return !undecided_ && i != blocks_.size() && !blocks_[i].escapes;
}

std::string Owners::who_else(Range block) const {
  const std::size_t i = find(block.begin);
  return i != blocks_.size() ? blocks_[i].who : "";
}

std::vector<Range> Owners::own_memory() const {
  return {memory_of(blocks_), memory_of(references_)};
}

}  // namespace molt::audit
