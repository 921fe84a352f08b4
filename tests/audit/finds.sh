#!/bin/bash
# The tests of the filter must fail, each of them that is not skipped, in a build that is broken on
# purpose.
program=$1 filter=$2
output=$("$program" "--gtest_filter=$filter" 2>&1)
printf '%s\n' "$output"
if grep -q '^\[       OK' <<<"$output"; then
  echo "a test passed although the search is broken"
  exit 1
fi
grep -q '^\[  FAILED  \]' <<<"$output" || {
  echo "no test ran"
  exit 1
}
echo "found, as it must be"
