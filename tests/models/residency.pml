/* residency.pml - a look at a thread that sleeps, and runs on whenever it likes.
 *
 * The worker goes through code that a gate guards, and sleeps inside and outside of it. What shows
 * that it is inside is one word on its stack: first at one end (HIGH), later at the other (LOW), the
 * first wiped. The prover closes the gate, then looks: run count, is it asleep, LOW, HIGH, run count.
 * Each is a step of its own, as the kernel's answers and the copy of a stack are. The look at the gate
 * and the call behind it are one step here: nobody sleeps in between, and a snapshot of a sleeper is
 * all that the prover ever takes (the door's own text counts as inside).
 *
 * Stores go through the threads' buffers (tso.pml); falling asleep and waking are the kernel's, and
 * whoever sleeps has stored everything.
 *
 * Shown: when the proof is done the worker is not inside, and never comes in again, so that nobody
 * runs freed code (Y1, Y2). With -DSWITCHES for a kernel that counts no runs: asleep before and after,
 * and not taken off a CPU in between.
 *
 * Mutations, each of which must be found:
 *   NO_RUN_COUNT   the second run count is not compared
 *   COUNT_AFTER    the first run count is read after the snapshot
 *   NO_STATE       it is not asked whether the worker sleeps
 *   GATE_LATE      the gate is closed after the look
 *   NO_BARRIER     the gate's store is still in the prover's buffer while it looks
 *   NO_SECOND_LOOK (SWITCHES) it is not asked again whether the worker sleeps
 *   NO_SWITCHES    (SWITCHES) switches are not compared
 */
#define THREADS 2
#define WORKER 0
#define PROVER 1
#ifndef PENDING
#define PENDING 2
#endif
#define GATE 0
#define LOW 1
#define HIGH 2
#define MEMORY 3
#include "tso.pml"

/* The kernel's. */
bool asleep;
byte runs = 1;
byte switches;

/* Ghosts. */
bool inside, freed;

inline perhaps_sleep() {
  if
  :: true ->
     fence(WORKER);
     atomic { asleep = true; switches++ }
     /* It wakes whenever it is woken. */
     atomic { asleep = false; runs++ }
     assert(!(inside && freed))
  :: true
  fi
}

proctype worker(byte calls) {
  do
  :: calls > 0 ->
     calls--;
     perhaps_sleep();
     if
     :: atomic { mem[GATE] == 0 ->
          assert(!freed);
          inside = true;
          buffer[WORKER]!HIGH, 1 }
        perhaps_sleep();
        atomic { assert(!freed); buffer[WORKER]!HIGH, 0 }
        atomic { assert(!freed); buffer[WORKER]!LOW, 1 }
        perhaps_sleep();
        atomic { assert(!freed); buffer[WORKER]!LOW, 0; inside = false }
     :: atomic { mem[GATE] == 1 -> skip }
     fi
  :: calls == 0 -> break
  od;
  fence(WORKER);
  atomic { asleep = true; switches++ }
}

inline close_gate() {
  buffer[PROVER]!GATE, 1;
#ifndef NO_BARRIER
  membarrier(PROVER);
#endif
}

proctype prover() {
  byte victim, cell, value;
  byte count;
  bool low, high, slept;

#ifndef GATE_LATE
  close_gate();
#endif
  do
  :: true ->
#ifdef SWITCHES
     count = switches;
#else
#ifndef COUNT_AFTER
     count = runs;
#endif
#endif
#ifdef NO_STATE
     slept = true;
#else
     slept = asleep;
#endif
#ifdef COUNT_AFTER
     count = runs;
#endif
     if
     :: !slept -> goto again
     :: else
     fi;
     low = mem[LOW];
     high = mem[HIGH];
#ifdef SWITCHES
#ifndef NO_SECOND_LOOK
     slept = asleep;
#endif
#ifdef NO_SWITCHES
     count = switches;
#endif
     slept = slept && count == switches;
#else
#ifndef NO_RUN_COUNT
     slept = count == runs;
#endif
#endif
     if
     :: slept && !low && !high -> break
     :: else
     fi;
again:
     skip
  od;
#ifdef GATE_LATE
  close_gate();
#endif
  atomic { assert(!inside); freed = true }
}

init {
  atomic {
    run flusher(WORKER);
    run flusher(PROVER);
    run worker(CALLS0);
    run prover()
  }
}
