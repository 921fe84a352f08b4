#!/usr/bin/env bash
# check.sh MODEL holds|fails [-Dmacro...]: one exhaustive search of MODEL.pml, in a folder of its own.
#
# holds: no error, and the search was complete. fails: the mutation must be found; if it is not, the
# model has gone blind, and that is the failure.
set -euo pipefail

model=$1 expected=$2
shift 2
here=$(cd "$(dirname "$0")" && pwd)
command -v spin >/dev/null || {
  echo "spin is not installed (./run deps)"
  exit 77
}

work=$(mktemp -d "${TMPDIR:-/tmp}/molt-model.XXXXXX")
trap 'rm -rf "$work"' EXIT
cd "$work"

spin -a "$@" "$here/$model.pml" >spin.log 2>&1 || {
  cat spin.log
  exit 1
}
# The generated code is not ours to warn about, and what is found soon is not worth optimising for.
# COLLAPSE: a third of the memory.
optimise=-O0
if [ "$expected" = holds ]; then optimise=-O2; fi
"${CC:-cc}" $optimise -w -DSAFETY -DCOLLAPSE -DVECTORSZ=512 -DMEMLIM="${MOLT_MODEL_MB:-2048}" -o pan pan.c
./pan -n -m5000 -w22 >pan.log || true

# Cut short by depth or memory: what was not visited was not shown.
complete=yes
if grep -qE 'search not completed|max search depth too small|reached -DMEMLIM' pan.log; then
  complete=no
fi
errors=$(sed -n 's/.*errors: \([0-9]*\).*/\1/p' pan.log)
states=$(sed -n 's/^ *\([0-9.e+]*\) states, stored.*/\1/p' pan.log)

case $expected-$complete-$errors in
  holds-yes-0) echo "$model $*: holds in all $states states" ;;
  fails-*-1) echo "$model $*: found after $states states: $(sed -n 's/^pan:1: //p' pan.log)" ;;
  *)
    echo "$model $*: expected that it $expected; errors: ${errors:-?}, complete: $complete"
    cat pan.log
    # The interleaving that leads there.
    if [ -e "$model.pml.trail" ]; then ./pan -r "$model.pml.trail" | head -n 200; fi
    exit 1
    ;;
esac
