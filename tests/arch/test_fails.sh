#!/bin/bash
# test_fails.sh PROGRAM TEST: over what was broken on purpose, that test fails (and does not crash).
program=$1 test=$2
output=$("$program" --gtest_filter="$test" 2>&1)
code=$?
printf '%s\n' "$output"
if [ "$code" -eq 1 ] && grep -q "\[  FAILED  \] $test" <<<"$output"; then
  echo "found, as it must be"
  exit 0
fi
echo "not found (exit code $code)"
exit 1
