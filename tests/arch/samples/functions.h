// What a file of samples offers: functions with their names. `recursive`: it calls itself, so that
// several versions may take part in one result.
#ifdef __cplusplus
extern "C" {
#endif
struct sample {
  const char* name;
  long (*function)(long, long);
  int recursive;
};
__attribute__((visibility("default"))) extern const struct sample samples[];
#ifdef __cplusplus
}
#endif
