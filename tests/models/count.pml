/* count.pml - one count of the threads in place of two listings (N5, src/threads/census.hpp).
 *
 * The prover has a list from some earlier time, which may lack anybody and may have dead ones on it. Thread
 * KEPT is there before the prover begins, and may be lacking. It counts the threads, once, and looks at each
 * that it knows. If all of those sleep, and are as many as were counted, it believes that they are all.
 *
 * A thread that ends is taken off the number first and answers for a while longer. It runs until it has ended: it
 * does not sleep again. The number of one that has gone may be given to another.
 *
 * Shown: what is believed is true of KEPT, if that lives still. With -DRUN_COUNTS the prover does not look at
 * those who were asleep before it counted, but at their run counts afterwards.
 *
 * Mutations, each of which must be found:
 *   ANSWERS      who answers counts, asleep or not
 *   COUNT_LATE   the threads are counted after the looks
 *   OLD_COUNT    they were counted before KEPT was born
 *   BY_NUMBER    a look is at whoever has the number now
 *   RUNS_LATE    (RUN_COUNTS) the run counts are those after the count, both times
 */
#define THREADS 4
#define KEPT 2
#define HEIR 3 /* may get the number of thread 0 */

mtype = { unborn, runs, sleeps, ending, gone };
mtype state[THREADS] = unborn;
bool known[THREADS], began;
byte ran[THREADS]; /* run counts; few are enough */

#define NUMBER (is_there(0) + is_there(1) + is_there(2) + is_there(3))
#define is_there(t) (state[t] == runs || state[t] == sleeps)
#define is_seen_asleep(t) (state[t] == sleeps)
#define answers(t) (state[t] != unborn && state[t] != gone)

proctype Thread(byte t) {
  byte wakes;
  if
  :: t == HEIR -> end: state[0] == gone
  :: else
  fi;
  state[t] = runs;
  do
  :: wakes < 1 -> state[t] = sleeps; atomic { state[t] = runs; ran[t]++; wakes++ }
  :: t == KEPT && wakes == 1 -> goto stays
  :: t != KEPT -> break
  od;
  state[t] = ending;
  state[t] = gone;
stays:
  skip
}

proctype prover() {
  byte i, number, count, before[THREADS];
  bool all = true, is_asleep;

  /* Whoever had been seen until now, or not. */
  i = 0;
  do
  :: i < THREADS ->
     if
     :: atomic { answers(i) -> known[i] = true; count++ }
     :: true
     fi;
     i++
  :: else -> break
  od;
#ifdef OLD_COUNT
  number = NUMBER;
#endif
  is_there(KEPT); /* from here on it is to be known */
#if defined(RUN_COUNTS) && !defined(RUNS_LATE)
  i = 0;
  do
  :: i < THREADS ->
     atomic {
       if
       :: known[i] && is_seen_asleep(i) -> before[i] = ran[i]
       :: known[i] && !is_seen_asleep(i) -> all = false
       :: else
       fi
     }
     i++
  :: else -> break
  od;
#endif
#if !defined(OLD_COUNT) && !defined(COUNT_LATE)
  number = NUMBER;
#endif
  i = 0;
  do
  :: i < THREADS && known[i] ->
#ifdef RUN_COUNTS
#ifdef RUNS_LATE
     before[i] = ran[i];
#endif
     /* A count is read of whoever answers, be it about to end. */
     is_asleep = answers(i) && ran[i] == before[i];
#else
#ifdef ANSWERS
     is_asleep = answers(i);
#else
     is_asleep = is_seen_asleep(i);
#ifdef BY_NUMBER
     is_asleep = is_asleep || (i == 0 && state[0] == gone && is_seen_asleep(HEIR));
#endif
#endif
#endif
     all = all && is_asleep;
     i++
  :: i < THREADS && !known[i] -> i++
  :: else -> break
  od;
#ifdef COUNT_LATE
  number = NUMBER;
#endif
  assert(!(all && count == number) || known[KEPT])
}

init {
  atomic {
    run Thread(0);
    run Thread(1);
    run Thread(KEPT);
    run Thread(HEIR);
    run prover()
  }
}
