__thread int per_thread[16];

void touch(void) { ++per_thread[0]; }
