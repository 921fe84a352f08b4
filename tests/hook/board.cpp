#include "board.hpp"

#include "parked.hpp"

// Never destroyed: threads may outlive main.
Board& board() {
  static Board* const only = new Board;
  return *only;
}

Parked& parked() {
  static Parked* const only = new Parked;
  return *only;
}
