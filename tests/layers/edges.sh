#!/usr/bin/env bash
# Is the layer graph of the design enforced? For every layer and every other one, tries an #include
# of the other's headers: it must work along an edge, and nowhere else.
# usage: edges.sh COMPILER SRC FLAGS-DIR LAYER...
set -euo pipefail
compiler=$1 src=$2 flags=$3
shift 3
layers=("$@")

# Written down a second time on purpose: a wrong edge in src/CMakeLists.txt shall not excuse itself.
declare -A sees=(
  [abi]="abi"
  [base]="base"
  [arch]="arch base"
  [elf]="elf base"
  [threads]="threads arch elf base"
  [audit]="audit threads arch elf base"
  [hook]="hook abi threads arch elf base"
  [patchfile]="patchfile abi elf base"
  [linker]="linker patchfile abi arch elf base"
  [entries]="entries threads arch elf base"
  [interpose]="interpose entries hook abi threads arch elf base"
  [module]="module interpose entries hook linker patchfile abi audit threads arch elf base"
  [livepatch]="livepatch entries linker patchfile abi threads arch elf base"
  [control]="control module livepatch interpose entries hook linker patchfile abi audit threads arch elf base"
  [runtime]="runtime control module livepatch interpose entries hook linker patchfile abi audit threads arch elf base"
  [unwind]="unwind base"
  [attach]="attach abi arch base elf"
  [builder]="builder patchfile abi arch base elf"
  [cli]="cli attach builder patchfile unwind abi arch base elf"
)

# include FROM HEADER...: what the preprocessor says to a file of layer FROM; an edge is its business.
include() {
  local from=$1
  shift
  printf '#include "%s"\n' "$@" |
    "$compiler" -std=c++20 -x c++ -E -o /dev/null "@$flags/$from.flags" - 2>&1
}

permitted=0 forbidden=0 wrong=0
complain() {
  echo "$*"
  wrong=$((wrong + 1))
}

for layer in "${layers[@]}"; do
  [ -n "${sees[$layer]:-}" ] || complain "layer $layer is not in this test's table"
done

for to in "${!sees[@]}"; do
  mapfile -t headers < <(cd "$src" && find "$to" -name '*.hpp' 2>/dev/null | sort)
  [ ${#headers[@]} -gt 0 ] || continue
  for from in "${!sees[@]}"; do
    if [[ " ${sees[$from]} " == *" $to "* ]]; then
      permitted=$((permitted + 1))
      message=$(include "$from" "${headers[@]}") || complain "$from must see all of $to: $message"
    else
      forbidden=$((forbidden + 1))
      if message=$(include "$from" "${headers[0]}"); then
        complain "$from must not see $to, but finds ${headers[0]}"
      elif [[ $message != *"${headers[0]}: No such file"* && $message != *"${headers[0]}' file not found"* ]]; then
        complain "$from, ${headers[0]}: fails for another reason, which proves nothing: $message"
      fi
    fi
  done
done
echo "$permitted permitted edges, $forbidden forbidden ones, $wrong wrong"
[ "$wrong" = 0 ] && [ "$permitted" -gt 0 ] && [ "$forbidden" -gt 0 ]
