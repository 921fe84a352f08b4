#!/bin/bash
# fails.sh WORDS COMMAND...: what was broken on purpose must be seen, and in these words.
words=$1
shift
output=$("$@" 2>&1)
code=$?
printf '%s\n' "$output"
if [ "$code" -ne 0 ] && grep -qE "$words" <<<"$output"; then
  echo "found, as it must be"
  exit 0
fi
echo "not found, although it was broken on purpose (exit code $code)"
exit 1
