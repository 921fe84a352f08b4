// What the program hazards does all the time, and modules/hazards_patch.cpp replaces. Each answers its
// version, 1 or 2, or something else where it was disturbed.
#pragma once

#define HAZARD extern "C" __attribute__((noipa, used, visibility("default")))

HAZARD long hz_recursion(int depth);  // every activation of one call is of one version
HAZARD long hz_blocked(int fd);       // asleep in a read
HAZARD long hz_red_zone(long seed);   // a leaf that keeps what it knows below the stack pointer
HAZARD long hz_throws();              // by an exception
HAZARD long hz_cancelled();           // a point of cancellation
HAZARD long hz_thread_local();        // counts in a variable of the thread's
HAZARD long hz_loader();              // asks the loader, under its lock
HAZARD long hz_allocates();           // allocates, under the allocator's
HAZARD long hz_timed();               // sleeps, and sees no EINTR
HAZARD long hz_page();                // its first bytes lie on two pages
HAZARD long hz_contract();            // everything that one call calls is of one version
// In libraries, one each.
extern "C" long hz_dozen();
extern "C" long hz_hundred();
// What a new version shares with the old one.
HAZARD long hz_count();  // one more than the last time, in this thread
