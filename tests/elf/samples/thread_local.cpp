static int ended;

struct Guard {
  int uses = 0;
  ~Guard() { ended += uses; }
};

thread_local Guard per_thread_guard;

extern "C" void touch() { ++per_thread_guard.uses; }
