// What the tests hook: functions of a library that knows nothing of it.
#pragma once

#include <atomic>

extern "C" {
long victim_add(long a, long b);
double victim_mean(double a, double b);
// Sets errno to 77, and answers flags.
int victim_open(const char* path, int flags);
long victim_many(long a, long b, long c, long d, long e, long f, long g, long h, double i);
int victim_sum(int count, ...);
int victim_throws(int what);
// Sleeps until the word is not 0.
int victim_sleeps(std::atomic<unsigned>* word);
int victim_spins(int rounds);
// Calls victim_inner twice: 1 if both are of one version.
long victim_outer();
long victim_inner();
}
