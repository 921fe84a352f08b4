/* tso.pml - memory as x86 threads see it.
 *
 * A store goes into its thread's FIFO buffer and reaches memory at any later time; loads read
 * memory at once. That is x86-TSO for threads that never load what they themselves have just
 * stored, which holds for all of these models. The buffers are bounded: a thread that finds its
 * buffer full waits, so behaviours with more pending stores are not covered.
 *
 * Before the #include: THREADS, MEMORY (cells), PENDING (stores per buffer).
 */
byte mem[MEMORY];
chan buffer[THREADS] = [PENDING] of { byte, byte };

proctype flusher(byte thread) {
  byte cell, value;
end:
  do
  :: atomic { buffer[thread]?cell, value -> mem[cell] = value; cell = 0; value = 0 }
  od
}

/* mfence, a locked instruction, or a system call by the thread itself */
inline fence(thread) {
  empty(buffer[thread])
}

/* membarrier(PRIVATE_EXPEDITED): a full fence on the caller, then on each other thread at some
 * moment before the call returns, not at the same moment on all. */
inline membarrier(thread) {
  fence(thread);
  victim = 0;
  do
  :: victim < THREADS ->
     atomic {
       do
       :: buffer[victim]?cell, value -> mem[cell] = value
       :: empty(buffer[victim]) -> break
       od;
       cell = 0; value = 0;
       victim++
     }
  :: else -> break
  od;
  victim = 0
}
