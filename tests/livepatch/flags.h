/* What flags_targets.c, its patch and flags_main.c know of each other. */
#ifndef FLAGS_H
#define FLAGS_H
#ifdef __cplusplus
extern "C" {
#endif
int fl_inner(void);
int fl_outer(int depth);
int fl_sleeps(void);
/* Of the program: sleeps while it is told to. */
__attribute__((visibility("default"))) void fl_wait(void);
#ifdef __cplusplus
}
#endif
#endif
