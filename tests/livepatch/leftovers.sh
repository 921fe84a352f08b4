#!/bin/bash
# leftovers.sh HOST: what is left when a patch is turned back, forced or kept, and that the next verb copes with it.
set -euo pipefail
molt=$MOLT_BIN/molt patches=$MOLT_LIB/livepatch

coproc host { exec "$1"; }
pid=$! out=${host[0]} in=${host[1]}
told=$(mktemp)
trap 'kill $pid 2>/dev/null || true; rm -f "$told"' EXIT
read -r _ <&"$out"

die() {
  echo "$1"
  "$molt" status -p "$pid"
  "$molt" list -p "$pid"
  "$molt" blocking lp_two -p "$pid"
  "$molt" events -p "$pid"
  exit 1
}
expect() { # COMMAND ANSWER, of the program
  local got
  echo "$1" >&"$in"
  read -r got <&"$out"
  [ "$got" = "$2" ] || die "$1: expected '$2', got '$got'"
}
run() { # CODE WORDS VERB...: the exit code, and what its one line has ("": it says nothing)
  local code=$1 words=$2 got output
  shift 2
  output=$("$molt" "$@" -p "$pid" 2>&1) && got=0 || got=$?
  [ "$got" = "$code" ] || die "$*: exit code $got, not $code: $output"
  if [ -z "$words" ]; then
    [ -z "$output" ] || die "$*: it says: $output"
  else
    grep -q -- "$words" <<<"$output" || die "$*: no '$words' in: $output"
  fi
}
modules() { "$molt" list --proc -p "$pid" | cut -d' ' -f1 | xargs; }
expect_modules() { [ "$(modules)" = "$1" ] || die "modules: '$(modules)', not '$1'"; }

# Two at once: what the one has done the other finds done, or the patch not there any more.
for _ in 1 2 3; do
  run 0 "" apply "$patches/lp_two.so"
  "$molt" revert -p "$pid" lp_two >"$told" 2>&1 &
  one=$!
  "$molt" revert -p "$pid" lp_two >"$told.2" 2>&1 &
  other=$!
  wait $one && code=0 || code=$?
  wait $other && code=$code-0 || code=$code-$?
  case $code in
    0-0 | 0-3 | 3-0) ;;
    *) die "two reverts: $code: $(cat "$told" "$told.2")" ;;
  esac
  rm -f "$told.2"
done

# Its module stays, on request: `apply` puts it in force again.
run 0 "" apply "$patches/lp_two.so"
run 0 "" apply "$patches/lp_two.so"
expect call 'answer 2'
run 0 "" revert lp_two --keep
expect_modules lp_two
expect call 'answer 1'
run 0 "" apply "$patches/lp_two.so"
expect call 'answer 2'
run 0 "" revert lp_two
expect_modules ""

# A picture is of one process: the other one would draw over it.
run 2 'draws one process' status --svg "$told" -p $$

# A module that is no livepatch is not ours to unload.
run 0 "" load "$MOLT_LIB/livepatch/lp_plain.so"
run 3 'lp_plain is live, and enables no patch' apply "$patches/lp_plain.so"
expect_modules lp_plain
run 0 "" unload lp_plain

# Turned back by somebody else while `apply` waits: nothing of it stays.
expect sleep asleep
"$molt" apply -p "$pid" "$patches/lp_three.so" sleeper=1 2>"$told" &
apply=$!
until "$molt" get -p "$pid" patches/lp_three/transition 2>/dev/null | grep -q 1; do :; done
run 0 "" set patches/lp_three/enabled 0
wait "$apply" && code=0 || code=$?
[ "$code" = 1 ] || die "apply, reverted meanwhile: exit code $code"
grep -q 'it was reverted meanwhile' "$told" || die "apply says: $(cat "$told")"
expect_modules ""
expect wake 'woken 1'

# Whoever waits for a transition that somebody else has begun leaves it as it was.
expect sleep asleep
run 0 "" apply "$patches/lp_two.so" sleeper=1 --no-wait
run 6 'its transition goes on' apply "$patches/lp_two.so" --timeout 0.2
run 0 1 get patches/lp_two/enabled
# shellcheck disable=SC2016  # the quotes are the message's
run 1 'lp_two has a patch in force; `molt revert`' unload lp_two
expect wake 'woken 1'
run 0 "" wait lp_two
expect sleep asleep
run 0 "" set patches/lp_two/enabled 0
run 6 'its reversion goes on' revert lp_two --timeout 0.2
run 0 0 get patches/lp_two/enabled
expect wake 'woken 2'
run 0 "" wait
run 0 "" unload lp_two

# In force still when its module's name is free.
run 0 "" apply "$patches/lp_two.so"
run 0 "" unload lp_two --resident
expect call 'answer 2'
run 0 "" revert lp_two
expect call 'answer 1'
expect_modules ""
run 0 "lp_two: freed" gc
run 3 'lp_two: no such patch is installed' force lp_two
run 1 'cannot write /dev/null/picture: Not a directory' status --svg /dev/null/picture

# An immediate patch with a thread in it: taken back, and its name is free. The thread holds up the next one.
run 0 "" apply "$patches/lp_two.so" sleeper=1 immediate=1
expect sleep asleep
run 0 'reverted, but its memory stays: it is immediate' revert lp_two
expect call 'answer 1'
run 0 "" apply "$patches/lp_two.so" sleeper=1 --no-wait
run 6 'in lp_sleeper, asleep' wait lp_two --for patched --timeout 0.2
run 6 'in lp_sleeper, asleep' wait lp_two --timeout 0.2
run 0 "" revert lp_two
expect_modules ""
run 0 'may return into new_sleeper' blocking lp_two
expect wake 'woken 2'
run 0 "" wait lp_two --for freed --timeout 60
run 0 "" apply "$patches/lp_two.so" sleeper=1
run 0 "" revert lp_two
expect_modules ""

# Forced back with a thread in it.
run 0 "" apply "$patches/lp_three.so" sleeper=1
expect sleep asleep
"$molt" revert -p "$pid" lp_three 2>"$told" &
revert=$!
until "$molt" get -p "$pid" patches/lp_three/enabled 2>/dev/null | grep -q 0; do :; done
run 0 "" force lp_three
wait "$revert" || die "revert: $(cat "$told")"
grep -q 'its memory stays: its transition was forced' "$told" || die "revert says: $(cat "$told")"
expect_modules ""
expect wake 'woken 3'
run 0 "" wait lp_three --for freed --timeout 60
