struct Counter {
  static inline int count = 1;
};

extern "C" void touch() { ++Counter::count; }
