#include "board.hpp"

#include "lingering.hpp"

Board& board() {
  static Board* const only = new Board;  // never destroyed: threads of modules may outlive main
  return *only;
}

Lingering& lingering() {
  static Lingering only;
  return only;
}
