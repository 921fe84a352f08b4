/* errno's own variable is the C library's: an initial-exec reference to it costs nothing. */
extern __thread int errno __attribute__((tls_model("initial-exec")));
static __thread int dynamic_one;

void touch(void) { dynamic_one = errno; }
