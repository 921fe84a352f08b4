#!/bin/bash
# finds.sh PROGRAM ARGUMENT...: what was broken on purpose must be found out by the program, the sooner the better.
output=$("$@" 2>&1)
code=$?
printf '%s\n' "$output"
if [ "$code" -eq 1 ] && grep -q VIOLATION <<<"$output"; then
  echo "found, as it must be"
  exit 0
fi
echo "the program did not find what was broken on purpose (exit code $code)"
exit 1
