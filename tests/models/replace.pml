/* replace.pml - callers against a writer that replaces version OLD of a module by version NEW.
 *
 *   hook 1: X, M      hook 2: M      hook 3: M, from version NEW on
 *
 * X and M at hook 1 call hook 2 from within their callback, so that an invocation of hook 1 can be
 * under way, before M or inside it, while the same thread meets the module elsewhere.
 *
 * Shown, over all interleavings and store-buffer delays:
 *   - R1, for all threads together: once any caller has decided for NEW, at any hook, no caller
 *     decides for OLD; the switch is one moment. A caller decides when it validates.
 *   - from that moment on hook 3 calls M
 *   - each invocation of hooks 1 and 2 calls M exactly once                         (R2)
 *   - no callback of OLD begins or goes on after OLD is gone                        (P1)
 *   - with -DPAUSE: none of OLD's callbacks runs while its state is handed over, and a callback of
 *     OLD that itself calls hooks meanwhile does not wait for itself (no invalid end states)
 *
 * -DSIGNALS: a signal handler that calls hook 2 may interrupt a caller between its frame and its
 * validation. The frame then looks as if the thread were inside OLD although it will be turned
 * away: which is why a thread may enter a paused lineage only until the drain is complete
 * (DRAINING), not during the hand-over itself (PAUSED).
 *
 * Mutations, each of which must be found:
 *   NO_MEMBARRIER  no barrier before the writer reads frames
 *   SWITCH_OPEN    generations are not closed before the switch
 *   CLOSE_ONE      only hook 1 is closed
 *   SWITCH_FIRST   the switch comes before the generations are closed
 *   UNION_LATE     hook 3 gets its chain only after the switch
 *   VALIDATE_ONCE  callers compare generations for the first callback only
 *   NO_RECHECK     the slow path enters a version without looking again whether it is current
 *   OWN_VERSION    the slow path calls what the snapshot names instead of the lineage's current
 *   NO_DRAIN       OLD is freed without a look at the frames
 *   NO_EXEMPTION   (PAUSE) threads inside OLD wait like all others
 *   KEEP_FRAME     (PAUSE) the slow path leaves the fast path's unvalidated frame behind
 *   ONE_PHASE      (PAUSE, SIGNALS) DRAINING lasts until the switch
 */
#define CALLERS 2
#define THREADS 3
#define WRITER 2
#ifndef PENDING
#define PENDING 2
#endif
#define DEPTHS 2

#define HOOK_CHAIN(h) (h)     /* 1..3 */
#define HOOK_GEN(h) (3 + (h)) /* 4..6 */
#define CURRENT 7
#define FRAME(t, i) (8 + 4 * (t) + (i)) /* i: 2 * depth, and one more for the slow path's module */
#define MEMORY 16
#include "tso.pml"

#define OLD 1
#define NEW 2
#define X 3
#define DRAINING 4
#define PAUSED 5

/* Chains never change here; slot.pml has their recycling. Chain c has generation c. */
#define ENTRY(c, k)                                            \
  ((k) == 0 -> ((c) == 1 || (c) == 4 -> X : ((c) == 2 -> OLD : NEW)) \
   : ((k) > 1 || (c) == 2 || (c) == 3 || (c) == 5 -> 0 : ((c) == 1 -> OLD : NEW)))

#define AT_ENTRY(c, k) (4 * (c) + (k))
#define AT_HEAD(c) (4 * (c) + 3)
#define AT_SELF(owner) (32 + (owner))
#define OWNER_OF(frame)                                                        \
  ((frame) >= 32 -> (frame) - 32 : ((frame) % 4 == 3 || (frame) == 0 -> 0 \
   : ENTRY((frame) / 4, (frame) % 4)))

/* Ghosts */
bool old_gone, handing_over, switched;

mtype = { start, fast, validate, slow, slow_entry, recheck, called, ended, done };

/* A caller decides for a version: the load on which it does so is in the same atomic step. */
inline decide() {
  if
  :: inside[d] == NEW -> switched = true; ran[d]++
  :: inside[d] == OLD -> assert(!switched); ran[d]++
  :: else
  fi;
  pc[d] = called
}

inline publish_fast() {
  own[2 * d] = AT_ENTRY(chain[d], k[d]);
  buffer[me]!FRAME(me, 2 * d), own[2 * d];
  pc[d] = validate
}

inline enter(version) {
#ifdef OWN_VERSION
  own[2 * d + 1] = AT_SELF(ENTRY(chain[d], k[d]));
#else
  own[2 * d + 1] = AT_SELF(version);
#endif
  buffer[me]!FRAME(me, 2 * d + 1), own[2 * d + 1];
  pc[d] = recheck
}

#define MODULE(owner) ((owner) == OLD || (owner) == NEW)

#define INSIDE_OLD \
  (OWNER_OF(own[0]) == OLD || OWNER_OF(own[1]) == OLD || OWNER_OF(own[2]) == OLD)

proctype caller(byte me; byte calls) {
  mtype pc[DEPTHS], after[DEPTHS];
  byte hook[DEPTHS], chain[DEPTHS], k[DEPTHS], inside[DEPTHS], ran[DEPTHS];
  byte own[4]; /* this thread's frames as it sees them */
  bool new_before[DEPTHS];
  byte d, current;
#ifdef SIGNALS
  bool signalled;
#endif

  /* Each step is one load or one look at a ghost; what a thread only puts into its own buffer goes
   * with the step before it. */
  do
  :: pc[0] == 0 && calls == 0 -> break
  :: atomic { pc[0] == 0 && calls > 0 ->
     calls--;
     if
     :: me == 0 -> hook[0] = 1 /* one caller with nesting is enough */
     :: me == 1 || CALLS1 == 0 -> hook[0] = 2
     :: me == 1 || CALLS1 == 0 -> hook[0] = 3
     fi;
     pc[0] = start }

  :: atomic { pc[d] == start ->
     chain[d] = mem[HOOK_CHAIN(hook[d])];
     new_before[d] = switched;
     if
     :: chain[d] == 0 -> pc[d] = done
     :: else -> publish_fast()
     fi }

  :: atomic { pc[d] == validate ->
     if
#ifdef VALIDATE_ONCE
     :: k[d] == 0 && mem[HOOK_GEN(hook[d])] != chain[d] -> pc[d] = slow
#else
     :: mem[HOOK_GEN(hook[d])] != chain[d] -> pc[d] = slow
#endif
     :: else -> inside[d] = ENTRY(chain[d], k[d]); after[d] = fast; decide()
     fi }
#ifdef SIGNALS
  :: atomic { pc[d] == validate && d == 0 && !signalled ->
     signalled = true; d = 1; hook[1] = 2; pc[1] = start }
#endif

  :: atomic { pc[d] == slow ->
     if
     :: k[d] > 0
     :: else -> chain[d] = mem[HOOK_CHAIN(hook[d])]
     fi;
#ifndef KEEP_FRAME
     own[2 * d] = AT_HEAD(chain[d]);
     buffer[me]!FRAME(me, 2 * d), own[2 * d];
#endif
     pc[d] = slow_entry }

  :: atomic { pc[d] == slow_entry && ENTRY(chain[d], k[d]) == 0 -> pc[d] = done }
  :: atomic { pc[d] == slow_entry && ENTRY(chain[d], k[d]) == X -> inside[d] = X; after[d] = slow_entry; decide() }
  :: atomic { pc[d] == slow_entry && MODULE(ENTRY(chain[d], k[d])) ->
     current = mem[CURRENT];
     if
     :: current < DRAINING -> enter(current)
#ifndef NO_EXEMPTION
#ifdef ONE_PHASE
     :: current >= DRAINING && INSIDE_OLD -> enter(OLD)
#else
     :: current == DRAINING && INSIDE_OLD -> enter(OLD)
#endif
#endif
     :: else -> mem[CURRENT] != current; current = 0 /* and look again */
     fi }
  :: atomic { pc[d] == recheck ->
     fence(me);
     if
#ifndef NO_RECHECK
     :: mem[CURRENT] != current ->
#ifndef KEEP_CALL_FRAME
        own[2 * d + 1] = 0;
        buffer[me]!FRAME(me, 2 * d + 1), 0;
#endif
        pc[d] = slow_entry
#endif
     :: else -> inside[d] = OWNER_OF(own[2 * d + 1]); after[d] = slow_entry; decide()
     fi;
     current = 0 }

  :: atomic { pc[d] == called ->
     assert(inside[d] != OLD || (!old_gone && !handing_over));
     pc[d] = ended;
     if
     :: d == 0 && hook[0] == 1 -> d = 1; hook[1] = 2; pc[1] = start
     :: else
     fi }
  :: atomic { pc[d] == ended ->
     assert(inside[d] != OLD || (!old_gone && !handing_over));
     inside[d] = 0;
     if
     :: own[2 * d + 1] != 0 ->
        own[2 * d + 1] = 0;
        buffer[me]!FRAME(me, 2 * d + 1), 0
     :: else
     fi;
     k[d]++;
     if
     :: after[d] == slow_entry -> pc[d] = slow_entry
     :: after[d] == fast && ENTRY(chain[d], k[d]) == 0 -> pc[d] = done
     :: else -> publish_fast()
     fi;
     after[d] = 0 }

  :: atomic { pc[d] == done ->
     assert(ran[d] == 1 || (hook[d] == 3 && !new_before[d]));
     if
     :: own[2 * d] != 0 ->
        own[2 * d] = 0;
        buffer[me]!FRAME(me, 2 * d), 0
     :: else
     fi;
     pc[d] = 0; hook[d] = 0; chain[d] = 0; k[d] = 0; ran[d] = 0; new_before[d] = false;
     d = 0 }
  od
}

#define FREE(t) (OWNER_OF(mem[FRAME(t, 0)]) != OLD && OWNER_OF(mem[FRAME(t, 1)]) != OLD && \
                 OWNER_OF(mem[FRAME(t, 2)]) != OLD && OWNER_OF(mem[FRAME(t, 3)]) != OLD)

/* Frame by frame, as the core does it: it never sees all frames at one moment. */
inline drain() {
  OWNER_OF(mem[FRAME(0, 0)]) != OLD;
  OWNER_OF(mem[FRAME(0, 1)]) != OLD;
  OWNER_OF(mem[FRAME(0, 2)]) != OLD;
  OWNER_OF(mem[FRAME(0, 3)]) != OLD;
  OWNER_OF(mem[FRAME(1, 0)]) != OLD;
  OWNER_OF(mem[FRAME(1, 1)]) != OLD;
  OWNER_OF(mem[FRAME(1, 2)]) != OLD;
  OWNER_OF(mem[FRAME(1, 3)]) != OLD
}

inline barrier() {
  skip;
#ifndef NO_MEMBARRIER
  membarrier(WRITER)
#endif
}

inline set(cell_, value_) {
  buffer[WRITER]!cell_, value_
}

proctype writer() {
  byte victim, cell, value;

#ifdef SWITCH_FIRST
  set(CURRENT, NEW);
#endif
#ifndef SWITCH_OPEN
  set(HOOK_GEN(1), 0);
#ifndef CLOSE_ONE
  set(HOOK_GEN(2), 0);
#endif
#endif
#ifndef UNION_LATE
  set(HOOK_CHAIN(3), 5);
#endif
#ifdef PAUSE
#ifdef ONE_PHASE
  set(CURRENT, DRAINING);
  barrier();
  drain();
#else
  do
  :: set(CURRENT, DRAINING);
     barrier();
     drain();
     set(CURRENT, PAUSED);
     barrier();
     if
     :: FREE(0) && FREE(1) -> break
     :: else
     fi
  od;
#endif
  handing_over = true;
  handing_over = false;
#endif
  set(CURRENT, NEW);
  /* Final chains, opened again. */
  set(HOOK_GEN(1), 0);
  set(HOOK_CHAIN(1), 4);
  set(HOOK_GEN(1), 4);
  set(HOOK_GEN(2), 0);
  set(HOOK_CHAIN(2), 3);
  set(HOOK_GEN(2), 3);
#ifdef UNION_LATE
  set(HOOK_CHAIN(3), 5);
#endif
  set(HOOK_GEN(3), 5);
  barrier();
#ifndef NO_DRAIN
  drain();
#endif
  old_gone = true
}

init {
  atomic {
    mem[HOOK_CHAIN(1)] = 1; mem[HOOK_GEN(1)] = 1;
    mem[HOOK_CHAIN(2)] = 2; mem[HOOK_GEN(2)] = 2;
    mem[CURRENT] = OLD;
    run flusher(0); run flusher(1); run flusher(WRITER);
    run caller(0, CALLS0); run caller(1, CALLS1); run writer()
  }
}
