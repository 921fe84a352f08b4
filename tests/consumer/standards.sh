#!/usr/bin/env bash
# Every public C++ header, read as C++17, says first that it needs C++20, and is whole as that; every public
# C header is C99 and C++11.
# usage: standards.sh INCLUDE CC CXX
set -euo pipefail
include=$1 cc=$2 cxx=$3
wrong=0
complain() {
  printf '%s\n' "$@"
  wrong=$((wrong + 1))
}

# read_as LANGUAGE STANDARD HEADER COMPILER: what is said of it
read_as() {
  printf '#include <molt/%s>\n' "$3" |
    LC_ALL=C "$4" -x "$1" -std="$2" -I "$include" -fsyntax-only - 2>&1
}

headers=0
for file in "$include"/molt/*.hpp; do
  name=${file##*/}
  headers=$((headers + 1))
  if said=$(read_as c++ c++17 "$name" "$cxx"); then complain "$name is taken as C++17"; fi
  first=$(grep -m 1 'error' <<<"$said" || true)
  [[ $first == *'need C++20: compile with -std=c++20'* ]] || complain "$name says first: $first"
  said=$(read_as c++ c++20 "$name" "$cxx") || complain "$name is no C++20:" "$said"
done
for file in "$include"/molt/*.h; do
  name=${file##*/}
  headers=$((headers + 1))
  said=$(read_as c c99 "$name" "$cc") || complain "$name is no C99:" "$said"
  said=$(read_as c++ c++11 "$name" "$cxx") || complain "$name is no C++11:" "$said"
done

echo "$headers headers, $wrong complaints"
[ "$headers" -gt 8 ] && [ "$wrong" -eq 0 ]
