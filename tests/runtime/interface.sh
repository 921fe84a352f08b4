#!/bin/bash
# The frozen list of exports, and the imports that a host process may be asked for. A new name in
# either is a decision: write it into the list beside this script in the same change.
set -euo pipefail
library=$1
here=$(dirname "$0")
failed=0

compare() { # compare WHAT ALLOWED ACTUAL
  local unexpected
  unexpected=$(comm -13 <(sort "$2") <(sort -u <<<"$3"))
  if [ -n "$unexpected" ]; then
    printf '%s that are not in %s:\n%s\n' "$1" "$(basename "$2")" "$unexpected"
    failed=1
  fi
}

exports=$(nm -D --defined-only "$library" | awk '$2 != "A" {print $3}' | sed 's/@.*//')
imports=$(nm -D --undefined-only "$library" | awk '$1 == "U" {print $2}' | sed 's/@.*//')
compare exports "$here/exports.txt" "$exports"
compare imports "$here/imports.txt" "$imports"

missing=$(comm -23 <(sort "$here/exports.txt") <(sort -u <<<"$exports"))
if [ -n "$missing" ]; then
  printf 'no longer exported, which breaks hosts and modules:\n%s\n' "$missing"
  failed=1
fi

needed=$(readelf -dW "$library" | sed -n 's/.*NEEDED.*\[\(.*\)\]/\1/p' | grep -v '^libc\.so\.6$' \
  | grep -v '^ld-linux-x86-64\.so\.2$' || true)
if [ -n "$needed" ]; then
  printf 'needs libraries that a host may have in another version:\n%s\n' "$needed"
  failed=1
fi
exit $failed
