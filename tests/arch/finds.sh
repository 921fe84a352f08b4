#!/bin/bash
# finds.sh PROGRAM MODE: what was broken on purpose must kill the process or give a wrong result within
# the 30 s budget.
ulimit -c 0
program=$1 mode=$2
output=$("$program" "$mode" 30 crowd 2>&1)
code=$?
printf '%s\n' "$output"
if [ "$code" -ge 128 ] || { [ "$code" -eq 1 ] && grep -q VIOLATION <<<"$output"; }; then
  echo "found, as it must be (exit code $code)"
  exit 0
fi
echo "not found (exit code $code)"
exit 1
