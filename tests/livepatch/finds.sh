#!/bin/bash
# finds.sh PROGRAM TEST: the engine was broken on purpose, and this test must see it, within a few runs.
[ -x "$1" ] || { echo "$1 was not built"; exit 1; }
for ((run = 1; run <= 20; ++run)); do
  output=$("$1" --gtest_filter="$2" --gtest_brief=1 2>&1)
  code=$?
  [ "$code" -eq 0 ] && continue
  printf '%s\n' "$output"
  [ "$code" -ge 128 ] || grep -q "FAILED\|VIOLATION" <<<"$output" || exit 1
  echo "found in run $run, as it must be"
  exit 0
done
echo "the test did not find what was broken on purpose"
exit 1
