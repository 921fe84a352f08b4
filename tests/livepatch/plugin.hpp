// What plugin.cpp, the patch of it and the test program know of each other.
#pragma once

extern "C" {
// Of the program: adds "what" or "what value" to the transcript.
__attribute__((visibility("default"))) void lp_note(const char* what, int value);
// Of the program: sleeps in the constructor while the test wants it to.
__attribute__((visibility("default"))) void lp_plugin_wait();
}
