// A program of everyday C++ that tests itself, and a patch made of the same source: every function that
// the compiler made of it is replaced by its own copy while the tests run.
#pragma once

#include <string>

#define SELF __attribute__((visibility("default")))

// All tests once; "" or what went wrong.
SELF std::string self_tests(unsigned seed);
// Where this function's own code lies: in the program, or in the patch.
SELF const void* self_where();
