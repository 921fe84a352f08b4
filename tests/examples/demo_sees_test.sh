#!/usr/bin/env bash
# The demo fails, and says why, when one of its modules is replaced by one that breaks a promise.
# usage: demo_sees_test.sh DEMO MODULE REPLACEMENT WORDS
# MODULE (limit_names.so) is REPLACEMENT (a path); the demo must fail with WORDS.
set -uo pipefail
demo=$1 module=$2 replacement=$3 words=$4
tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT

mkdir -p "$tmp/molt/examples"
ln -s "$MOLT_LIB"/molt/examples/*.so "$tmp/molt/examples"
ln -sf "$replacement" "$tmp/molt/examples/$module"

status=0
MOLT_LIB=$tmp MOLT_DEMO_ROUNDS=1 MOLT_DEMO_RATE=500 "$demo" >"$tmp/out" 2>&1 || status=$?
tail -n 3 "$tmp/out"
[ $status = 1 ] || { echo "ended with $status, expected 1"; exit 1; }
grep "^demo: FAIL: .*$words" "$tmp/out" || { echo "the reason is not '$words'"; exit 1; }
