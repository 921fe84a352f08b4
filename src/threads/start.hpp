// start.hpp - whether a thread has begun to run what it was started for.
//
// Before that the address of its start routine lies on no stack. libc has it in the thread's descriptor, and
// there it is looked at (Thread::start_routine). The address sanitizer has a wrapper of its own for what the
// descriptor tells, which runs in the new thread, maps memory and takes locks, while its maker goes on; the routine's
// address lies in memory of the sanitizer's meanwhile, which the audit leaves out. So there a thread counts as begun
// once it was seen where the wrapper never is.
//
// Threads    The census thread's alone, but for starts_at_once().
// Refuses    Nothing. Where the sanitizer's runtime is part of the program itself (clang's), a thread that
//            was never seen but in the program, libc and the loader has not begun as far as this can tell.
// Checked by tests/threads/proof_test.cpp, Births.*; threads.finds.NO_START and, with the address sanitizer, .ALL_BEGUN
#pragma once

#include <cstdint>

#include "threads/census.hpp"
#include "threads/procfs.hpp"

namespace molt::threads {

inline constexpr const char* not_begun = "it has not begun to run what it was started for";

// Whether every thread has begun that ever is seen, since no wrapper runs in it. The first call asks the loader,
// and so is not the census thread's: whoever waits for that may hold the loader's lock.
bool starts_at_once();

// It was seen there: asleep in a system call, or running.
void saw_asleep(Thread& thread, std::uintptr_t pc);
void saw_running(Thread& thread, std::uintptr_t pc);

}  // namespace molt::threads
