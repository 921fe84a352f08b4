/* entry_write.pml - the bytes of a function's entry are rewritten while threads execute them.
 *
 * The protocols are those of src/arch/x86_64/redirect.hpp: -DPREPARED the short jump over two NOPs,
 * otherwise int3 first over a prologue of two instructions, of one byte and of four.
 *
 * A core executes from its own copy of each byte (or stretch of bytes), which it renews whenever it
 * likes, each alone: that is what fetching ahead, decoded-instruction caches and an entry across two
 * cache lines amount to. Only serialise() renews all of them, on one core after the other. The writer
 * stores single bytes; a longer write is seen half done.
 *
 * Shown, over all interleavings:
 *   - no thread ever executes half of something                                       (R1)
 *   - an int3 is always met by a handler that knows where to go, also when it is delivered late
 *                                                                                      (S1, S2)
 *   - after install returned, a call that begins leads to the new version; after remove, to the old
 *   - the writer always comes to an end
 *
 * Mutations, each of which must be found:
 *   HEAD_FIRST     (PREPARED) eb before its distance, and the other way round when undone
 *   RESTORE_PAD    (PREPARED) undoing puts the padding back at once
 *   NO_PROOF       the tail is written while a thread may stand behind the first instruction
 *   NO_INT3        the same with the proof, but nothing keeps others from entering
 *   NO_SYNC_CLOSE  the proof is taken before every core has seen the int3
 *   NO_SYNC_TAIL   the first byte while cores may have fetched the old tail (both)
 *   DISARM_EARLY   the destination is cleared while the int3 is still there
 *   FORGET_SITE    a late trap is nobody's
 *   LOOK_ONCE      the handler does not see that the site was changed while it looked
 */
#define CORES 2
#ifndef CALLS
#define CALLS 2
#endif
#ifndef ROUNDS
#define ROUNDS 2
#endif

/* What a cell can hold. */
#define OLD 0
#define HALF 1
#define NEW 2
#define INT3 3

#define HEAD 0 /* the first byte */
#define TAIL 1 /* what follows: one byte (PREPARED), or four */
#define PAD 2  /* PREPARED: the five bytes in front */
#define CELLS 3

byte mem[CELLS];
byte copy[CORES * CELLS];
#define SEEN(core, cell) copy[(core) * CELLS + (cell)]

bool inside[CORES];  /* stands between the two old instructions */
bool at_pad[CORES];  /* has taken the short jump and not yet the long one */
bool armed, known;
byte arms; /* changes of `armed` */
byte done_calls;
/* What a call that begins now must lead to; HALF while both are right. */
byte expected, changes;

/* Any of the copies may be renewed, and none has to be. */
inline fetch(core) {
  do
  :: SEEN(core, HEAD) != mem[HEAD] -> SEEN(core, HEAD) = mem[HEAD]
  :: SEEN(core, TAIL) != mem[TAIL] -> SEEN(core, TAIL) = mem[TAIL]
  :: SEEN(core, PAD) != mem[PAD] -> SEEN(core, PAD) = mem[PAD]
  :: break
  od
}

/* If another change has begun meanwhile either is right. */
inline end_call(version) {
  assert(wanted == HALF || changes != since || wanted == version)
}

proctype executor(byte core; byte calls) {
  byte wanted, since, seen_arms;
  do
  :: calls == 0 -> break
  :: else ->
     calls--;
     atomic { wanted = expected; since = changes }
again:
     fetch(core);
#ifdef PREPARED
     if
     :: atomic { SEEN(core, HEAD) == OLD -> inside[core] = true } /* the first NOP */
        fetch(core);
        /* nop, or the f9 of eb f9: stc. Both go on in the old version. */
        atomic { inside[core] = false }
        end_call(OLD)
     :: atomic { SEEN(core, HEAD) == NEW ->
          assert(SEEN(core, TAIL) == NEW); /* eb 90 leads astray */
          at_pad[core] = true }
        fetch(core);
        atomic { assert(SEEN(core, PAD) == NEW); at_pad[core] = false }
        end_call(NEW)
     fi;
#else
     if
     :: atomic { SEEN(core, HEAD) == OLD -> inside[core] = true }
        fetch(core);
        atomic { assert(SEEN(core, TAIL) == OLD); inside[core] = false }
        end_call(OLD)
     :: atomic { SEEN(core, HEAD) == NEW -> assert(SEEN(core, TAIL) == NEW) }
        end_call(NEW)
     :: SEEN(core, HEAD) == INT3 ->
        /* The exception serialises; the handler runs some time later. */
        SEEN(core, HEAD) = mem[HEAD]; SEEN(core, TAIL) = mem[TAIL];
look:
        seen_arms = arms;
        if
        :: armed -> skip /* sent on, to where both kinds of call may go */
        :: else ->
           assert(known);
           if
           :: mem[HEAD] != INT3 ->
              SEEN(core, HEAD) = mem[HEAD]; SEEN(core, TAIL) = mem[TAIL];
              goto again
           :: else ->
#ifndef LOOK_ONCE
              if :: seen_arms != arms -> goto look :: else fi;
#endif
              assert(false) /* taken for the host's: its default action is death */
           fi
        fi
     fi;
#endif
     wanted = 0; since = 0; seen_arms = 0
  od;
  done_calls++
}

inline serialise() {
  core = 0;
  do
  :: core < CORES ->
     atomic {
       SEEN(core, HEAD) = mem[HEAD]; SEEN(core, TAIL) = mem[TAIL]; SEEN(core, PAD) = mem[PAD];
       core++
     }
  :: else -> break
  od;
  core = 0
}

inline write_long(cell, value) {
  mem[cell] = HALF;
  mem[cell] = value
}

inline prove() {
  (!inside[0] && !inside[1])
}

#ifdef PREPARED
inline head_and_tail(first, other, value) {
  mem[first] = value;
#ifndef NO_SYNC_TAIL
  serialise();
#endif
  mem[other] = value;
  serialise()
}
#endif

inline change(value) {
  atomic { expected = HALF; changes++ }
#ifdef PREPARED
  if
  :: value == NEW ->
     if
     :: mem[PAD] == OLD ->
        write_long(PAD, NEW)
        /* No serialise() here: the one between tail and head is the padding's too. */
     :: else
     fi;
#ifdef HEAD_FIRST
     head_and_tail(HEAD, TAIL, NEW)
#else
     head_and_tail(TAIL, HEAD, NEW)
#endif
  :: else ->
#ifdef HEAD_FIRST
     head_and_tail(TAIL, HEAD, OLD);
#else
     head_and_tail(HEAD, TAIL, OLD);
#endif
#ifdef RESTORE_PAD
     write_long(PAD, OLD);
     serialise()
#endif
  fi;
#else
  known = true;
  atomic { arms++; armed = true }
#ifndef NO_INT3
  mem[HEAD] = INT3;
#endif
#ifndef NO_SYNC_CLOSE
  serialise();
#endif
#ifndef NO_PROOF
  /* Undone, there is one instruction where there is a boundary afterwards: nothing to prove. */
  if :: value == NEW -> prove() :: else fi;
#endif
  write_long(TAIL, value);
#ifndef NO_SYNC_TAIL
  serialise();
#endif
#ifdef DISARM_EARLY
  atomic { armed = false; arms++ }
#endif
  mem[HEAD] = value;
  serialise();
#ifndef DISARM_EARLY
  atomic { armed = false; arms++ }
#endif
#ifdef FORGET_SITE
  known = false;
#endif
#endif
  expected = value
}

active proctype writer() {
  byte core, rounds = ROUNDS;
  do
  :: rounds == 0 -> break
  :: else -> rounds--; change(NEW); change(OLD)
  od;
  /* Nobody is left with a copy that is neither. */
  (done_calls == CORES)
}

init {
  atomic {
    run executor(0, CALLS);
    run executor(1, 1)
  }
}
