// Functions of the host that patches of the kernel's tests replace; named after what those patch.
#pragma once

extern "C" __attribute__((noipa, used)) const char* cmdline_proc_show();
extern "C" __attribute__((noipa, used)) const char* meminfo_proc_show();
