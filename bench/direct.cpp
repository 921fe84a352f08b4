#include "direct.hpp"

namespace bench {

#define BENCH_DIRECT(K) \
  int direct_##K(const Request* request) { return object<K>(request); }
BENCH_DIRECT(0)
BENCH_DIRECT(1)
BENCH_DIRECT(2)
BENCH_DIRECT(3)
BENCH_DIRECT(4)
BENCH_DIRECT(5)
BENCH_DIRECT(6)
BENCH_DIRECT(7)
BENCH_DIRECT(8)
BENCH_DIRECT(9)
BENCH_DIRECT(10)
BENCH_DIRECT(11)
BENCH_DIRECT(12)
BENCH_DIRECT(13)
BENCH_DIRECT(14)
BENCH_DIRECT(15)

CallbackArray callback_array[longest_chain + 1] = {
    {direct, 0},  {direct, 1},  {direct, 2},  {direct, 3},  {direct, 4},  {direct, 5},
    {direct, 6},  {direct, 7},  {direct, 8},  {direct, 9},  {direct, 10}, {direct, 11},
    {direct, 12}, {direct, 13}, {direct, 14}, {direct, 15}, {direct, 16}};
Callback* module_callbacks[longest_chain];

}  // namespace bench
