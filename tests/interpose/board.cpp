#include "board.hpp"

Board interpose_board;
