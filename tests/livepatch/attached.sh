#!/bin/bash
# attached.sh HOST: a program built without Molt loads a library that a patch waits for.
set -euo pipefail
molt=$MOLT_BIN/molt modules=$MOLT_LIB/livepatch

coproc host { exec "$1" "$modules/liblp_plugin.so"; }
pid=$! out=${host[0]} in=${host[1]}
svg=$(mktemp)
trap 'kill $pid 2>/dev/null || true; rm -f "$svg"' EXIT
read -r line <&"$out"

# What the program prints until it is done, in one line.
tell() {
  local all=
  echo "$1" >&"$in"
  while read -r line <&"$out" && [ "$line" != "done" ]; do all+="$line, "; done
  echo "${all%, }"
}
expect() {
  local got
  got=$(tell "$1")
  [ "$got" = "$2" ] || { echo "$1: expected '$2', got '$got'"; exit 1; }
}
expect open 'constructor 1'
expect close 'destructor 1'
"$molt" apply -p "$pid" "$modules/lp_library.so"
expect open 'pre_patch 0, post_patch 0, constructor 2'
expect call 'answer 2'
"$molt" list -p "$pid"
# The picture of the transition: an area for each kind of thread, and the name.
"$molt" status -p "$pid" --svg "$svg"
if [ "$(grep -c '<polygon' "$svg")" != 3 ] || ! grep -q 'lp_library: threads over time<' "$svg"; then
  echo "no picture of the transition:"
  cat "$svg"
  exit 1
fi
expect close 'destructor 2, pre_unpatch 0, post_unpatch 0'
expect open 'pre_patch 0, post_patch 0, constructor 2'
"$molt" revert -p "$pid" lp_library
# In the pipe since then, and read with the next answer.
expect call 'pre_unpatch 0, post_unpatch 0, answer 1'
expect close 'destructor 1'
expect open 'constructor 1'
