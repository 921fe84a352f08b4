#!/bin/bash
# finds.sh PROGRAM TEST: the engine was broken on purpose, and this test must see it, within a few runs.
for ((run = 1; run <= 20; ++run)); do
  if ! "$1" --gtest_filter="$2" --gtest_brief=1; then
    echo "found in run $run, as it must be"
    exit 0
  fi
done
echo "the test did not find what was broken on purpose"
exit 1
