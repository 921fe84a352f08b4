/* census.pml - listing threads that are born and die meanwhile.
 *
 * procfs lists a process's threads in the order of their births and keeps its place by the thread it
 * has just listed. If that one dies before the next is asked for, the listing goes on one too far:
 * somebody is skipped, or, as other kernels do it, it ends there. Threads are born at the end.
 *
 * The prover wants to have seen thread KEPT, which was there before it began and stays. It lists until
 * two listings in a row are equal (N3); each begins after the one before has ended.
 *
 * Mutations, each of which must be found:
 *   ONE_LISTING  the first one is believed
 *   COUNT_ONLY   a listing is believed that has as many threads as there are when it ends
 *   OLD_LISTING  the first of the two was made before KEPT was born
 */
#define THREADS 4 /* by number, which is the order of birth; a number is not used again */
#define KEPT 2

bool alive[THREADS];
bool seen[THREADS], before[THREADS];
bool born_all;

proctype life() {
  /* Everyone but KEPT may be born once, in turn, and die once, at any time. */
  byte next = 0;
  do
  :: atomic { next < THREADS && next != KEPT -> alive[next] = true; next++ }
  :: atomic { next == KEPT -> alive[KEPT] = true; next++ }
  :: atomic { alive[0] -> alive[0] = false }
  :: atomic { alive[1] -> alive[1] = false }
  :: atomic { alive[3] -> alive[3] = false }
  :: next == THREADS -> break
  od;
  do
  :: atomic { alive[0] -> alive[0] = false }
  :: atomic { alive[1] -> alive[1] = false }
  :: atomic { alive[3] -> alive[3] = false }
  :: break
  od
}

/* From thread i on, the next that lives; THREADS if there is none. */
#define NEXT(i) \
  ((i) <= 0 && alive[0] -> 0 : ((i) <= 1 && alive[1] -> 1 \
   : ((i) <= 2 && alive[2] -> 2 : ((i) <= 3 && alive[3] -> 3 : THREADS))))

inline list() {
  atomic {
    seen[0] = false; seen[1] = false; seen[2] = false; seen[3] = false;
    at = NEXT(0)
  }
  do
  :: atomic { at < THREADS -> seen[at] = true }
     /* Until the next is asked for, this one may die. */
     atomic {
       if
       :: alive[at] -> at = NEXT(at + 1)
       :: !alive[at] -> at = NEXT(NEXT(at + 1) + 1) /* one too far */
       :: !alive[at] -> at = THREADS               /* or no further */
       fi
     }
  :: at >= THREADS -> break
  od
}

inline remember() {
  atomic {
    before[0] = seen[0]; before[1] = seen[1]; before[2] = seen[2]; before[3] = seen[3]
  }
}

#define SAME \
  (before[0] == seen[0] && before[1] == seen[1] && before[2] == seen[2] && before[3] == seen[3])
#define SEEN_COUNT (seen[0] + seen[1] + seen[2] + seen[3])
#define ALIVE_COUNT (alive[0] + alive[1] + alive[2] + alive[3])

proctype prover() {
  byte at;
#ifdef OLD_LISTING
  list();
  remember();
#endif
  alive[KEPT]; /* from here on it wants to be found */
  list();
#ifdef ONE_LISTING
  skip;
#else
#ifdef COUNT_ONLY
  do
  :: atomic { SEEN_COUNT == ALIVE_COUNT -> break }
  :: atomic { SEEN_COUNT != ALIVE_COUNT -> skip }
     list()
  od;
#else
#ifndef OLD_LISTING
  remember();
  list();
#endif
  do
  :: atomic { SAME -> break }
  :: atomic { !SAME -> skip }
     remember();
     list()
  od;
#endif
#endif
  assert(seen[KEPT])
}

init {
  atomic {
    run life();
    run prover()
  }
}
