#!/bin/bash
# gdb_names.sh PROGRAM: a debugger that stops in a trampoline says its name and finds the caller.
program=$1
command -v gdb >/dev/null || {
  echo "gdb is not installed (./run deps)"
  exit 77
}
# shellcheck disable=SC2016  # $pc is gdb's
output=$(gdb -nx -q -batch \
  -iex 'set debuginfod enabled off' -iex 'set auto-load off' -iex 'set breakpoint pending on' \
  -ex 'break named_code_is_there' -ex run \
  -ex 'tbreak molt_test_trampoline' -ex continue -ex backtrace -ex 'info symbol $pc' \
  -ex continue "$program" 2>&1)
printf '%s\n' "$output"
if grep -q 'ptrace: Operation not permitted' <<<"$output"; then
  echo "ptrace is not permitted here"
  exit 77
fi
grep -qE '^#0 .*molt_test_trampoline' <<<"$output" || { echo "not named"; exit 1; }
grep -qE '^#1 .*calls_the_trampoline' <<<"$output" || { echo "its caller is not found"; exit 1; }
grep -q '^molt_test_trampoline in section' <<<"$output" || { echo "no symbol"; exit 1; }
grep -q 'exited normally' <<<"$output" || { echo "it did not go on"; exit 1; }
