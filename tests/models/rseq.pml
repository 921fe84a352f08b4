/* rseq.pml - callbacks that end on another thread than they began on.
 *
 * A version counts, per CPU, callbacks begun and callbacks ended (src/hook/async.cpp). A counter is
 * written on its own CPU only, by a restartable sequence; the increment waits in that CPU's store
 * buffer like any store. A callback that moves is handed over through memory, so what its thread
 * stored before has reached memory by then. The unloader closes the lineage, then compares
 * sum(ended) with sum(begun), in this order.
 *
 * Shown: no callback begins or goes on after the module is gone, and the unloader comes to an end.
 * With -DFALLBACK without membarrier: the caller fences between its count and its re-check.
 *
 * Mutations, each of which must be found:
 *   NO_MEMBARRIER  no barrier before the sums
 *   SWAPPED        begun is summed before ended: one that moves meanwhile hides another
 *   NO_RECHECK     the caller does not look again whether the version is current
 *   NO_FENCE       (FALLBACK) no fence between the caller's count and its re-check
 */
#define CALLERS 2
#define THREADS 3 /* the last is the unloader */
#define WRITER 2
#ifndef PENDING
#define PENDING 2
#endif

/* Increments of a cell are buffered as the cell's name: its CPU alone writes it. */
#define CURRENT 0
#define BEGUN(cpu) (1 + (cpu))
#define ENDED(cpu) (3 + (cpu))
byte mem[5];
chan buffer[THREADS] = [PENDING] of { byte };
#define apply(cell)                                 \
  if                                                \
  :: cell == CURRENT -> mem[CURRENT] = !mem[CURRENT] \
  :: else -> mem[cell]++                            \
  fi

proctype flusher(byte thread) {
  byte cell;
end:
  do
  :: atomic { buffer[thread]?cell -> apply(cell); cell = 0 }
  od
}

inline membarrier() {
  empty(buffer[WRITER]);
  victim = 0;
  do
  :: victim < THREADS ->
     atomic {
       do
       :: buffer[victim]?cell -> apply(cell)
       :: empty(buffer[victim]) -> break
       od;
       cell = 0;
       victim++
     }
  :: else -> break
  od;
  victim = 0
}

bool alive;

proctype caller(byte me; byte calls) {
  byte cpu = me;

  do
  :: calls == 0 -> break
  :: else ->
     calls--;
     if
     :: mem[CURRENT] == 0
     :: else ->
        buffer[me]!BEGUN(cpu);
#ifdef FALLBACK
#ifndef NO_FENCE
        empty(buffer[me]);
#endif
#endif
        if
#ifndef NO_RECHECK
        :: mem[CURRENT] == 0
#endif
        :: else ->
           assert(alive);
           /* Sleeps, and perhaps wakes up elsewhere. */
           if
           :: atomic { empty(buffer[me]) -> cpu = 1 - cpu }
           :: skip
           fi;
           assert(alive)
        fi;
        buffer[me]!ENDED(cpu)
     fi
  od
}

inline barrier() {
  skip;
#ifdef FALLBACK
  empty(buffer[WRITER])
#else
#ifndef NO_MEMBARRIER
  membarrier()
#endif
#endif
}

proctype unloader(byte rounds) {
  byte victim, cell, begun, ended;

  do
  :: rounds == 0 -> break
  :: else ->
     rounds--;
     buffer[WRITER]!CURRENT; /* closes */
     barrier();
     do
     :: begun = 0; ended = 0;
#ifdef SWAPPED
        begun = mem[BEGUN(0)];
        begun = begun + mem[BEGUN(1)];
        barrier();
        ended = mem[ENDED(0)];
        ended = ended + mem[ENDED(1)];
#else
        ended = mem[ENDED(0)];
        ended = ended + mem[ENDED(1)];
        barrier();
        begun = mem[BEGUN(0)];
        begun = begun + mem[BEGUN(1)];
#endif
        if
        :: begun == ended -> break
        :: else
        fi
     od;
     begun = 0; ended = 0;
     alive = false;
     alive = true; /* loaded again */
     buffer[WRITER]!CURRENT
  od
}

init {
  atomic {
    alive = true;
    mem[CURRENT] = 1;
    run flusher(0); run flusher(1); run flusher(WRITER);
    run caller(0, CALLS0); run caller(1, CALLS1); run unloader(2)
  }
}
