#!/bin/bash
# finds.sh PROGRAM: the proof that was broken on purpose must be found out, the sooner the better.
output=$("$1" 60 2>&1)
code=$?
printf '%s\n' "$output"
if [ "$code" -eq 1 ] && grep -q VIOLATION <<<"$output"; then
  echo "found, as it must be"
  exit 0
fi
echo "the stress did not find what was broken on purpose (exit code $code)"
exit 1
