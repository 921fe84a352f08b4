// cxx20.hpp - what all C++ headers of Molt include first: one line for a compiler that reads an older
// language, before the many that would follow. The C headers need C99 or C++11.
#pragma once

// Compilers that have concepts but not yet all of C++20 have a number in between.
#if __cplusplus <= 201703L
#error "the C++ headers of Molt need C++20: compile with -std=c++20"
#endif
