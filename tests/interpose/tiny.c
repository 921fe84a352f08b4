/* Shorter than a jump. Behind it lies what only a complete symbol table tells from another function. */
__attribute__((visibility("default"), noipa)) long tiny(long a) { return a; }
__attribute__((visibility("default"), noipa)) long tiny_next(long a) { return a + 1; }
