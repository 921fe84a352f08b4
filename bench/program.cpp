// molt-bench: the program. What it measures is in the library beside it; dispatch_loops.hpp says why.

#include "dispatch_loops.hpp"

int main(int argc, char** argv) { return bench::run_program(argc, argv, bench::far_loops); }
