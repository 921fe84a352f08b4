#!/bin/bash
# names.sh gdb|perf PROGRAM: a debugger and a profiler name a function that was patched live, in its new
# version and in the gate of the transition, and find who called it.
tool=$1 program=$2
command -v "$tool" >/dev/null || {
  echo "$tool is not installed (Debian: gdb, linux-perf)"
  exit 77
}
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
fail() {
  printf '%s\n' "$output"
  echo "$1"
  exit 1
}

if [ "$tool" = gdb ]; then
  # shellcheck disable=SC2016  # $pc is gdb's
  output=$(gdb -nx -q -batch \
    -iex 'set debuginfod enabled off' -iex 'set auto-load off' -iex 'set breakpoint pending on' \
    -ex 'break lp_in_transition' -ex run \
    -ex 'tbreak *(*(char**)&lp_gate)' -ex continue -ex 'echo GATE\n' -ex backtrace \
    -ex 'info symbol $pc' \
    -ex 'break lp_after_transition' -ex continue \
    -ex 'tbreak new_answer' -ex continue -ex 'echo NEW\n' -ex backtrace -ex 'info symbol $pc' \
    -ex continue "$program" 2>&1)
  if grep -q 'ptrace: Operation not permitted' <<<"$output"; then
    echo "ptrace is not permitted here"
    exit 77
  fi
  gate=$(sed -n '/^GATE/,/^NEW/p' <<<"$output") new=$(sed -n '/^NEW/,$p' <<<"$output")
  grep -qE '^#0 .*lp_answer@gate' <<<"$gate" || fail "the gate is not named"
  grep -qE '^#1 .*lp_calls_it' <<<"$gate" || fail "the gate's caller is not found"
  grep -q '^lp_answer@gate in section' <<<"$gate" || fail "the gate has no symbol"
  grep -qE '^#0 .*new_answer' <<<"$new" || fail "the new version is not named"
  grep -qE '^#1 .*lp_calls_it' <<<"$new" || fail "the new version's caller is not found"
  grep -qE '^new_answer.* in section .text of .*\.so' <<<"$new" || fail "it is not the module's"
  grep -q 'exited normally' <<<"$output" || fail "it did not go on"
  exit 0
fi

# A module's file goes with its process: the names are asked for while that lives.
mkfifo "$folder/told" "$folder/says"
MOLT_PERF_MAP=1 "$program" until-told <"$folder/told" >"$folder/says" &
pid=$!
exec 3>"$folder/told" 4<"$folder/says"
end() {
  exec 3>&- 4<&-
  wait "$pid"
  rm -rf "$folder" "/tmp/perf-$pid.map"
}
trap end EXIT
# What it does for a second, once it says that it is there.
names_while() {
  read -r line <&4
  [ "$line" = "$1" ] || fail "it ended before it was $1"
  # tidy: sleep-ok how long perf looks
  output=$(perf record -q -e cpu-clock -F 2000 -o "$folder/data" -p "$pid" -- sleep 1 2>&1) || {
    grep -qiE 'permi|not supported|paranoid' <<<"$output" || fail "perf record failed"
    printf '%s\n' "$output"
    echo "perf is not permitted here"
    exit 77
  }
  output=$(perf report -i "$folder/data" --stdio --sort dso,symbol 2>&1)
}
names_while "in transition"
grep -q 'lp_answer@gate' <<<"$output" || fail "perf does not name the gate"
echo >&3
names_while "after it"
grep -q 'new_answer' <<<"$output" || fail "perf does not name the new version"
echo >&3
wait "$pid" || fail "it did not go on"
