/* A shared object like any other. */
int no_module(void);
int no_module(void) { return 1; }
