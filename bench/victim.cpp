// victim.cpp - a library that knows nothing of hooks: what bench/interpose.cpp hooks, and the same once
// more, which stays as it is.

extern "C" {
#define TWELVE_CYCLES(a) ((((a) + 1) * 3) ^ ((a) >> 3)) * 5 + ((a) | 1) * 7

[[gnu::noipa, gnu::visibility("default"), gnu::aligned(64)]] long bench_victim(long a) {
  return TWELVE_CYCLES(a);
}
[[gnu::noipa, gnu::visibility("default"), gnu::aligned(64)]] long bench_victim_plain(long a) {
  return TWELVE_CYCLES(a);
}
// Not exported: its callers might count on what it leaves alone.
[[gnu::noipa, gnu::visibility("hidden"), gnu::aligned(64)]] long bench_victim_hidden(long a) {
  return TWELVE_CYCLES(a);
}
[[gnu::visibility("default")]] long (*bench_victim_hidden_at)(long) = bench_victim_hidden;
}
