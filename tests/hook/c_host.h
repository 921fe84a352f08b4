/* c_host.h - a host written in C: one hook, called with the walk functions alone. */
#ifndef C_HOST_H
#define C_HOST_H

#ifdef __cplusplus
extern "C" {
#endif

/* Default result 40; -5 for a callback that threw. */
enum { C_HOST_DEFAULT = 40, C_HOST_THREW = -5 };

int c_host_register(void);
void c_host_unregister(void);
/* The first result that differs from the default. */
int c_host_call(int argument);
/* The sum of all results; how many there were. */
int c_host_sum(int argument, int* count);
/* The result of one module's callback. */
int c_host_call_named(const char* module, int argument);
/* Another hook of that name, with another signature. */
int c_host_register_other_signature(void);
/* A hook whose fingerprint is not that of its signature, and one without a name. */
int c_host_register_malformed(void);

#ifdef __cplusplus
}
#endif
#endif
