#include "board.hpp"

Board& board() {
  static Board* const only = new Board;  // never destroyed: threads of modules may outlive main
  return *only;
}
