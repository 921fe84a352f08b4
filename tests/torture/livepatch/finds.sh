#!/bin/bash
# The broken engine must be found within the 30 s budget; the sooner the better.
program=$1 modules=$2
# Many transitions a second find it; the search of memory before a patch goes would make them few.
export MOLT_AUDIT=0
output=$("$program" --seconds 30 --modules "$modules" 2>&1)
code=$?
printf '%s\n' "$output"
if [ "$code" -eq 1 ] && grep -q VIOLATION <<<"$output"; then
  echo "found, as it must be"
  exit 0
fi
echo "the torture did not find what was broken on purpose (exit code $code)"
exit 1
