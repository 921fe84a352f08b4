#!/usr/bin/env python3
"""calls_test.py LIBRARY ATTACH_MANY SRC: what seccomp filters are asked about is all that the runtime may do.

By what it imports from the C library, and by the system calls that it makes itself. A call that only some
runs make (a machine with many processes, a slow answer) would otherwise kill a program that was told to be
served.
"""
import re
import subprocess
import sys
from pathlib import Path

library, attach_many, src = sys.argv[1:]
OF_THE_RUNTIME = ("abi base threads arch elf hook module livepatch control entries interpose audit linker unwind "
                  "patchfile runtime").split()
# What a function of the C library makes of its name (glibc 2.36), or of none.
BECOMES = {"open": "openat", "stat": "newfstatat", "fstatat": "newfstatat", "eventfd": "eventfd2", "getrlimit": "prlimit64",
           "setrlimit": "prlimit64", "time": "clock_gettime", "opendir": "openat", "readdir": "getdents64",
           "pread": "pread64", "pwrite": "pwrite64", "send": "sendto", "usleep": "clock_nanosleep",
           "sigaction": "rt_sigaction", "sigtimedwait": "rt_sigtimedwait", "pthread_sigmask": "rt_sigprocmask",
           "statvfs": "statfs", "getentropy": "getrandom", "arc4random": "getrandom", "sbrk": "brk",
           "realpath": "readlink", "sysconf": "sched_getaffinity", "pthread_setname_np": "prctl"}
NUMBERS = dict(re.findall(r"#define __NR_(\w+) (\d+)", subprocess.run(
    ["cc", "-E", "-dM", "-include", "asm/unistd_64.h", "-x", "c", "/dev/null"], capture_output=True, text=True,
    check=True).stdout))


def run(*command):
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


asked = set(run(attach_many, "calls").split())
made = {}
for line in run("nm", "-D", "--undefined-only", library).splitlines():
    name = line.split()[-1].split("@")[0]
    call = BECOMES.get(name, name)
    if call in NUMBERS:
        made[call] = f"{name}() is imported"
for folder in OF_THE_RUNTIME:
    for file in Path(src, folder).rglob("*.[ch]pp"):
        for call in re.findall(r"syscall\(\s*SYS_(\w+)", file.read_text()):
            made[call] = f"in {file.relative_to(src)}"
assert len(made) > 60, "that cannot be all"
missing = [f"{call}: {why}" for call, why in sorted(made.items()) if NUMBERS[call] not in asked]
print(f"{len(made)} system calls, {len(missing)} of which no filter is asked about (src/attach/seccomp.cpp)")
print(*missing, sep="\n")
sys.exit(bool(missing))
