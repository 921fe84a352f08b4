/* call.h - hooks on the functions of a program that declares no hooks at all.
 *
 * A callback whose hook is named LIBRARY:FUNCTION ("libc.so.6:open64"), or :FUNCTION for one of the
 * program itself, is called before each call of that function; one named LIBRARY:FUNCTION:after, when
 * the function has returned. Both get the call:
 *
 *     int before(struct molt_call* call);     0, or not 0: `result` is the answer, with `error` in
 *                                             errno unless that is 0; the function is not entered
 *     void after(struct molt_call* call);     `result` is there, and may be changed
 *
 * The hook's signature is the function's own, as the module's author declares it: integers, pointers,
 * float and double, by value. Several modules stack in order; they must agree on the signature.
 * MOLT_BEFORE and MOLT_AFTER of molt/function.hpp are the typed way to write such callbacks.
 *
 * Arguments are for reading. Functions that a callback calls are not hooked meanwhile on its thread,
 * and neither is what the runtime's own threads call. An exception of the function passes, and `after`
 * is not called. Of a function with "..." only what the signature names is handed on, where there is
 * an `after`.
 */
#ifndef MOLT_CALL_H
#define MOLT_CALL_H

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

struct molt_call {
  uint64_t integers[6]; /* arguments that are integers or pointers, in order */
  double floats[8];     /* those that are floating; a float is in the low half */
  uint64_t result;
  double float_result;  /* of a function that returns float or double */
  uint64_t* stack;      /* further arguments, each in 8 bytes */
  const void* reserved; /* the runtime's */
  int32_t error;        /* errno of an answer */
  uint32_t is_answered; /* molt/function.hpp */
};

#ifdef __cplusplus
}
#endif
#endif
