/* slot.pml - callers against a writer that unloads a module, loads it again and reuses chains.
 *
 * The caller's two paths are those of molt::hook (include/molt/host.hpp) and of the general walk
 * (src/hook); the writer's steps are those of disable, drain, load and of the recycling of chains.
 *
 * Shown, over all interleavings and store-buffer delays:
 *   - no callback of a module begins or goes on after the module is gone          (P1, I1)
 *   - a chain that a validated frame points into keeps its content                (I1, I3)
 *   - a call by one hook never runs another hook's callbacks, whoever had the chain before
 *   - module B, attached all the time, runs exactly once in each invocation, A at most once (R2)
 *   - the writer always comes to an end (no invalid end states)
 *
 * With -DFALLBACK the same without membarrier: generations are never opened, all calls take the
 * slow path, both sides fence.
 *
 * Mutations, each of which must be found:
 *   NO_MEMBARRIER   the writer reads frames with no barrier before
 *   NO_VALIDATE     the caller does not compare generations
 *   VALIDATE_ONCE   it does so for the first callback only
 *   RECYCLE_EARLY   a retired chain is rewritten without a look at the frames
 *   GEN_FIRST       a recycled chain gets its generation before its entries
 *   GEN_PER_HOOK    generations are counted for each hook, not for the process
 *   NULL_FIRST      a recycled chain is cleared before it is filled
 *   OWNER_REUSED    an owner's record is used again while a chain in use still names it
 *   CURRENT_LATE    disable clears the lineage's current version only after the drain
 *   NO_RECHECK      the slow path enters a version without looking again whether it is current
 *   NO_SLOW_FENCE   (FALLBACK) no fence between the slow path's frame and its re-check
 *   NO_WRITER_FENCE (FALLBACK) no fence between the writer's stores and its look at the frames
 */
#define CALLERS 2
#define THREADS 3 /* the last is the writer */
#define WRITER 2
#ifndef PENDING
#define PENDING 2
#endif

/* Cells. A chain is {gen, entry 0, entry 1}; an entry is the owner, 0 ends the chain. */
#define HOOK_CHAIN 0
#define HOOK_GEN 1
#define CURRENT_A 2
#define GEN(c) (3 * (c))
#define ENTRY(c, k) (3 * (c) + 1 + (k))
#define FRAME(t, depth) (9 + 2 * (t) + (depth))
#define MEMORY 13
#include "tso.pml"

#define A 1
#define B 2
#define C 3 /* a module on another hook */
bool alive[4];
/* What an owner's record says it is a version of. */
byte lineage_of[4];

/* Frames: an entry of a chain, a chain's head (holds no module), or an owner's own entry. */
#define AT_ENTRY(c, k) (4 * (c) + (k))
#define AT_HEAD(c) (4 * (c) + 3)
#define AT_SELF(owner) (16 + (owner))
#define CHAIN_OF(frame) ((frame) < 16 -> (frame) / 4 : 0)
#define OWNER_OF(frame)                                                        \
  ((frame) >= 16 -> (frame) - 16 : ((frame) % 4 == 3 || (frame) == 0 -> 0 \
   : mem[ENTRY((frame) / 4, (frame) % 4)]))

inline run_callback(module) {
  assert(alive[module] && module != C);
  if
  :: module == A -> ran_a++
  :: module == B -> ran_b++
  fi;
  /* The callback sleeps here for as long as it likes. */
  assert(alive[module])
}

proctype caller(byte me; byte calls) {
  byte chain, gen, k, fn, current, ran_a, ran_b;

  do
  :: calls == 0 -> break
  :: else ->
     calls--;
     ran_a = 0; ran_b = 0; k = 0;
     chain = mem[HOOK_CHAIN];
     gen = mem[GEN(chain)];
     do
     :: k == 2 -> goto leave
     :: else ->
        fn = mem[ENTRY(chain, k)];
        if
        :: fn == 0 -> goto leave
        :: else
        fi;
        buffer[me]!FRAME(me, 0), AT_ENTRY(chain, k);
#ifndef NO_VALIDATE
        if
#ifdef VALIDATE_ONCE
        :: k == 0 && mem[HOOK_GEN] != gen -> goto slow
#else
        :: mem[HOOK_GEN] != gen -> goto slow
#endif
        :: else
        fi;
#endif
        assert(mem[ENTRY(chain, k)] == fn);
        run_callback(fn);
        assert(mem[ENTRY(chain, k)] == fn);
        k++
     od;

slow:
     if
     :: k > 0 -> buffer[me]!FRAME(me, 0), AT_HEAD(chain) /* held since entry k-1 */
     :: else ->
        do
        :: chain = mem[HOOK_CHAIN];
           buffer[me]!FRAME(me, 0), AT_HEAD(chain);
#ifndef NO_SLOW_FENCE
           fence(me);
#endif
           if
           :: mem[HOOK_CHAIN] == chain -> break
           :: else
           fi
        od
     fi;
     do
     :: k == 2 -> break
     :: else ->
        fn = mem[ENTRY(chain, k)];
        if
        :: fn == 0 -> break
        :: else
        fi;
        do
        :: current = (lineage_of[fn] == A -> mem[CURRENT_A] : lineage_of[fn]);
           if
           :: current == 0 -> break
           :: else
           fi;
           buffer[me]!FRAME(me, 1), AT_SELF(current);
#ifndef NO_SLOW_FENCE
           fence(me);
#endif
#ifndef NO_RECHECK
           if
           :: lineage_of[fn] == A && mem[CURRENT_A] != current -> skip
           :: else ->
#endif
              run_callback(current);
              break
#ifndef NO_RECHECK
           fi
#endif
        od;
        buffer[me]!FRAME(me, 1), 0;
        assert(mem[ENTRY(chain, k)] == fn);
        k++
     od;

leave:
     buffer[me]!FRAME(me, 0), 0;
     assert(ran_b == 1 && ran_a <= 1);
     chain = 0; gen = 0; fn = 0; current = 0
  od
}

inline fill(c, e0, e1, g) {
#ifdef NULL_FIRST
  buffer[WRITER]!ENTRY(c, 0), 0;
#endif
#ifdef GEN_FIRST
  buffer[WRITER]!GEN(c), g;
#endif
  buffer[WRITER]!ENTRY(c, 0), e0;
  buffer[WRITER]!ENTRY(c, 1), e1;
#ifndef GEN_FIRST
  buffer[WRITER]!GEN(c), g
#endif
}

inline publish(c, g) {
  buffer[WRITER]!HOOK_GEN, 0;
  buffer[WRITER]!HOOK_CHAIN, c;
#ifndef FALLBACK
  buffer[WRITER]!HOOK_GEN, g
#endif
}

/* Between a change and a look at the frames. */
inline barrier() {
  skip;
#ifdef FALLBACK
#ifndef NO_WRITER_FENCE
  fence(WRITER)
#endif
#else
#ifndef NO_MEMBARRIER
  membarrier(WRITER)
#endif
#endif
}

#define FREE_OF(owner, frame) (OWNER_OF(mem[frame]) != (owner))
inline drain(owner) {
  FREE_OF(owner, FRAME(0, 0));
  FREE_OF(owner, FRAME(0, 1));
  FREE_OF(owner, FRAME(1, 0));
  FREE_OF(owner, FRAME(1, 1))
}

/* Frame 1 never points into a chain here. The core does not wait, it takes another chain. */
inline wait_unused(c) {
  skip;
#ifndef RECYCLE_EARLY
  CHAIN_OF(mem[FRAME(0, 0)]) != c;
  CHAIN_OF(mem[FRAME(1, 0)]) != c
#endif
}

proctype writer() {
  byte victim, cell, value;

  /* unload A */
#ifndef CURRENT_LATE
  buffer[WRITER]!CURRENT_A, 0;
#endif
  fill(2, B, 0, 2);
  publish(2, 2);
  barrier();
  drain(A);
  alive[A] = false;
#ifdef CURRENT_LATE
  buffer[WRITER]!CURRENT_A, 0;
#endif
#ifdef OWNER_REUSED
  lineage_of[A] = C;
#endif
  wait_unused(1);

  /* chain 1 serves another hook for a while */
#ifdef GEN_PER_HOOK
  fill(1, C, 0, 2);
#else
  fill(1, C, 0, 3);
#endif

  /* load A again, behind B */
  alive[A] = true;
  lineage_of[A] = A;
  buffer[WRITER]!CURRENT_A, A;
  fill(1, B, A, 4);
  publish(1, 4);
  barrier();
  wait_unused(2);

  /* unload A */
#ifndef CURRENT_LATE
  buffer[WRITER]!CURRENT_A, 0;
#endif
  fill(2, B, 0, 5);
  publish(2, 5);
  barrier();
  drain(A);
  alive[A] = false
}

init {
  atomic {
    alive[A] = true; alive[B] = true; alive[C] = true;
    lineage_of[A] = A; lineage_of[B] = B; lineage_of[C] = C;
    mem[CURRENT_A] = A;
    mem[GEN(1)] = 1; mem[ENTRY(1, 0)] = A; mem[ENTRY(1, 1)] = B;
    mem[HOOK_CHAIN] = 1;
#ifndef FALLBACK
    mem[HOOK_GEN] = 1;
#endif
    run flusher(0); run flusher(1); run flusher(WRITER);
    run caller(0, CALLS0); run caller(1, CALLS1); run writer()
  }
}
