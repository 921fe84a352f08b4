/* gate.pml - a transition: threads that call functions, and the agent that takes the
 * census, changes them over and back, or is gone after a fork.
 *
 * The thread's steps are those of a trampoline and of gate::settle() (src/livepatch/gate.cpp), the
 * agent's those of gate::try_switch() and of the transition (src/livepatch/transition.cpp). Words are
 * changed by locked operations or by the kernel, so memory is taken to be sequentially consistent; what
 * a running thread has in its store buffer does not matter, because the agent decides nothing about a
 * thread that runs.
 *
 * Shown, over all interleavings:
 *   - an activation of `outer` calls `inner` in the version that it has itself
 *   - once the transition is over nobody is in, or enters, the version that was left
 *   - nobody waits for ever (no invalid end states), with AGENT_DIES not either
 *
 * A thread whose self-check finds old code on its stack goes on in the version of its side without a look at
 * its word: what holds it is there for the agent to see.
 *
 * A thread may fall asleep anywhere, behind the decision of a trampoline too: a signal handler does.
 * With -DBIRTH a second thread is born at any moment. With -DTURN the transition is reversed once, at
 * any moment between two tries. With -DLEFTOVER a thread is in the other version from the beginning, as
 * force leaves one.
 *
 * Mutations, each of which must be found:
 *   NO_GATE          the agent looks without SWITCHING
 *   LATE_GATE        it looks first
 *   NO_TRAMPOLINE    a thread that has decided and not yet entered counts as outside
 *   NO_SELF_CHECK    PENDING is followed without a look at the stack
 *   NO_RECHECK       (BIRTH) a newcomer does not look again whether the transition was closed
 *   UNDO_ALWAYS      it begins anew whenever the rule has changed, old code on its stack or not
 *   NO_CLOSE         (BIRTH) the transition is over without a last look at the words
 *   EARLY_SEAL       the census is complete before it is taken
 *   BLIND_CENSUS     it takes everybody for out of the old code
 *   EARLY_LOOK       it looks before the gates are in place
 *   TURN_UNMARKED    (TURN, LEFTOVER) a reversal leaves those without a mark as they are
 *   OLD_CHECK        (TURN) a self-check made for one direction is used for the other
 *   STALE_WORD       what a self-check found once is believed when its frame has gone
 *   NO_FORK          (AGENT_DIES) nobody undoes the look of an agent that is gone
 * That a reversal takes PENDING away is for speed alone: without it nothing is found, since a check made
 * for the other direction counts for nothing (OLD_CHECK).
 */
#ifdef BIRTH
#define THREADS 2
#else
#define THREADS 1
#endif
#ifndef CALLS
#define CALLS 2
#endif

#define GEN 8
#define PENDING 2
#define SWITCHING 4
#define side_of(w) ((w) & 1)
#define of_this(w) ((w) >= GEN)

byte word[THREADS];
byte control; /* GEN + side of newcomers (+ CLOSED); 0: no transition */
#define CLOSED 4
bool gated, direct;
byte final;

bool born[THREADS], asleep[THREADS];
byte inside[2 * THREADS]; /* frames of each version on a thread's stack */
byte decided[THREADS];    /* 1 + version: behind a trampoline's decision, not yet inside */
byte target;              /* what the agent aims at, and self-checks are made for */
bool agent_gone;
byte ended;

#define IN(t, v) inside[2 * (t) + (v)]

inline nap(t) {
  if
  :: true
  :: asleep[t] = true; asleep[t] = false
  fi
}

proctype Thread(byte t) {
  byte level, v, outer, c, w, n;
  byte aim;
  bool ok, called, stays;

#ifdef LEFTOVER
  if
  :: t == 0 -> level = 1; v = 1; called = true
  :: else
  fi;
#endif
body:
  nap(t);
  if
  :: level == 2 -> IN(t, v)--; v = outer; level = 1; goto body
  :: level == 1 && called -> IN(t, v)--; level = 0; goto body
  :: level == 0 && n == CALLS -> goto done
  :: level == 0 && n < CALLS -> n++; called = false
  :: level == 1 && !called -> called = true; outer = v
  fi;

entry:
  if
  :: atomic { direct -> v = final; IN(t, v)++ }; goto in
  :: atomic { !direct && !gated -> v = 0; IN(t, v)++ }; goto in
  :: atomic { gated && word[t] == GEN -> v = 0; decided[t] = 1 }
  :: atomic { gated && word[t] == GEN + 1 -> v = 1; decided[t] = 2 }
  :: atomic { gated && word[t] != GEN && word[t] != GEN + 1 -> c = control }; goto settle
  fi;
take:
  nap(t);
  atomic { IN(t, v)++; decided[t] = 0 }

in:
  atomic {
    if
    :: level == 1 -> assert(v == outer) /* one activation, one version */
    :: else
    fi;
    level++
  }
  goto body;

settle:
  if
  :: c == 0 -> goto entry
  :: else
  fi;
  w = word[t];
  if
  :: !of_this(w) ->
     atomic {
       ok = (word[t] == w);
       if
       :: ok -> word[t] = c & ~CLOSED
       :: else
       fi
     }
#ifndef NO_RECHECK
     aim = control;
     if
#ifdef UNDO_ALWAYS
     :: ok && aim != c ->
#else
     :: ok && aim != c && (aim == 0 || (aim & CLOSED)) ->
#endif
        atomic {
          if
          :: word[t] == (c & ~CLOSED) -> word[t] = 0
          :: else
          fi
        }
     :: else
     fi
#endif
  :: of_this(w) && (w & SWITCHING) ->
     if
     :: !(word[t] & SWITCHING)
#ifndef NO_FORK
     :: atomic {
          agent_gone && (word[t] & SWITCHING) -> word[t] = (word[t] & ~SWITCHING) | PENDING
        }
#endif
     fi
  :: of_this(w) && !(w & SWITCHING) && (w & PENDING) ->
     /* Made for the aim as it is now; of use only if that is the one that was read before. */
     atomic {
       aim = target;
#ifdef NO_SELF_CHECK
       ok = true
#else
       ok = (IN(t, 1 - aim) == 0)
#endif
#ifdef STALE_WORD
       stays = stays || !ok
#else
       stays = !ok && (aim == side_of(c))
#endif
     }
#ifndef OLD_CHECK
     ok = ok && (aim == side_of(c));
#endif
     nap(t);
     if
     :: stays -> atomic { v = side_of(w); decided[t] = 1 + v }; goto take
     :: true /* or it has looked often enough */
     fi;
     atomic {
       if
       :: word[t] == w && ok -> word[t] = c & ~CLOSED
       :: word[t] == w && !ok -> word[t] = w & ~PENDING
       :: else
       fi
     }
  :: else
  fi;
  c = control;
  goto entry;

done:
  ended++
}

#ifdef NO_TRAMPOLINE
#define is_out(t) (asleep[t] && IN(t, 1 - target) == 0)
#else
#define is_out(t) (asleep[t] && IN(t, 1 - target) == 0 && decided[t] != 2 - target)
#endif

#ifdef AGENT_DIES
#define may_die if :: true :: agent_gone = true; goto gone fi
#else
#define may_die skip
#endif

/* One try for one thread; `left` says whether it is still on the other side. */
inline try_switch(t) {
  w = word[t];
  if
  :: !of_this(w) || w == GEN + target
  :: of_this(w) && w != GEN + target && side_of(w) == target ->
     word[t] = word[t] & ~(PENDING | SWITCHING);
     left = left || (word[t] != GEN + target)
  :: of_this(w) && side_of(w) != target ->
#ifdef LATE_GATE
     out = is_out(t);
#endif
#ifndef NO_GATE
     atomic { word[t] = word[t] | SWITCHING; w = word[t] }
#endif
     may_die;
     if
     :: side_of(w) == target -> word[t] = word[t] & ~(PENDING | SWITCHING)
     :: else ->
#ifndef LATE_GATE
        out = is_out(t);
#endif
        if
        :: out ->
           word[t] = (word[t] & ~1) | target;
           word[t] = word[t] & ~(PENDING | SWITCHING)
        :: else ->
           word[t] = word[t] | PENDING;
           word[t] = word[t] & ~SWITCHING;
           left = true
        fi
     fi
  fi
}

proctype Agent() {
  byte w, i;
  bool left, out, listed[THREADS], seen_out[THREADS], turned;

  target = 1;
  control = GEN;
#ifdef EARLY_LOOK
  atomic { i = 0; do :: i < THREADS -> seen_out[i] = born[i] && is_out(i); i++ :: else -> break od }
#endif
  gated = true;
#ifdef EARLY_SEAL
  control = GEN + 1;
#endif
  atomic { i = 0; do :: i < THREADS -> listed[i] = born[i]; i++ :: else -> break od }
  i = 0;
  do
  :: i < THREADS && listed[i] ->
#ifdef BLIND_CENSUS
     seen_out[i] = true;
#endif
#ifdef LEFTOVER
     seen_out[i] = seen_out[i] || is_out(i) || (IN(i, 1) > 0 && IN(i, 0) == 0);
#else
#ifndef EARLY_LOOK
     seen_out[i] = seen_out[i] || is_out(i);
#endif
#endif
     atomic { if :: !seen_out[i] && !of_this(word[i]) -> word[i] = GEN :: else fi };
     i++
  :: i < THREADS && !listed[i] -> i++
  :: else -> break
  od;
  control = GEN + 1;

again:
#ifdef TURN
  if
  :: !turned ->
     turned = true;
#ifndef TURN_UNMARKED
     atomic { i = 0; do :: i < THREADS -> listed[i] = born[i]; i++ :: else -> break od }
     i = 0;
     do
     :: i < THREADS && listed[i] ->
        atomic { if :: !of_this(word[i]) -> word[i] = GEN + 1 :: else fi };
        i++
     :: i < THREADS && !listed[i] -> i++
     :: else -> break
     od;
#endif
     target = 0;
     control = GEN
  :: true
  fi;
#endif
  left = false;
  atomic { i = 0; do :: i < THREADS -> listed[i] = born[i]; i++ :: else -> break od }
  i = 0;
  do
  :: i < THREADS && listed[i] -> try_switch(i); i++
  :: i < THREADS && !listed[i] -> i++
  :: else -> break
  od;
  may_die;
  if
  :: left -> goto again
  :: else
  fi;
#ifndef NO_CLOSE
  control = control | CLOSED;
  atomic { i = 0; do :: i < THREADS -> listed[i] = born[i]; i++ :: else -> break od }
  i = 0;
  do
  :: i < THREADS ->
     w = word[i];
     if
     :: listed[i] && of_this(w) && w != GEN + target -> left = true
     :: else
     fi;
     i++
  :: else -> break
  od;
  if
  :: left -> control = control & ~CLOSED; goto again
  :: else
  fi;
#endif
  atomic {
    direct = true;
    gated = false;
    final = target;
    i = 0;
    do
    :: i < THREADS ->
       assert(IN(i, 1 - target) == 0);
       assert(decided[i] != 2 - target);
       i++
    :: else -> break
    od
  }
  control = 0;
gone:
  skip
}

init {
  atomic {
    born[0] = true;
#ifdef LEFTOVER
    IN(0, 1) = 1;
#endif
    run Thread(0);
    run Agent()
  }
#ifdef BIRTH
  atomic { born[1] = true; run Thread(1) }
#endif
}
