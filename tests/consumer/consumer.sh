#!/usr/bin/env bash
# Builds and runs a project of somebody else's against an installed Molt.
# usage: consumer.sh CASE PREFIX WORK-DIR CXX
set -euo pipefail
case=$1 prefix=$2 work=$3
export CXX=$4
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
rm -rf "$work"
mkdir -p "$work"

fail() {
  echo "consumer: $*" >&2
  exit 1
}

# configure SOURCE [PREFIX]: nothing but the prefix tells the project where Molt is.
configure() {
  cmake -G Ninja -S "$here/$1" -B "$work/build" -DCMAKE_PREFIX_PATH="${2:-$prefix}" >"$work/log" ||
    { cat "$work/log"; fail "$1 cannot be configured"; }
}

# must_be_refused TARGET SYMBOL: the build fails, names the symbol, and leaves no module behind.
must_be_refused() {
  configure stuck
  if cmake --build "$work/build" --target "$1" >"$work/log" 2>&1; then
    fail "$1.so can never be unloaded, and was built without a complaint"
  fi
  cat "$work/log"
  grep -q -- "$2" "$work/log" || fail "the message does not name $2"
  [ ! -e "$work/build/$1.so" ] || fail "$1.so is still there"
  # The fault must be what the check found: the same module must link when nobody asks.
  cmake --build "$work/build" --target "$1_unchecked" || fail "$1 does not even build unchecked"
}

case $case in
  cmake)
    configure project
    cmake --build "$work/build"
    "$work/build/host" "$work/build/polite.so"
    ;;
  readme) # a program of which nothing is known to Molt but the lines in README.md
    mkdir "$work/project"
    cp "$here"/project/{host.cpp,greeting.hpp} "$work/project"
    cp "$here/project/polite.cpp" "$work/project/limiter.cpp"
    {
      printf '%s\n' 'cmake_minimum_required(VERSION 3.25)' 'project(readme CXX)' \
        'add_executable(server host.cpp)'
      # shellcheck disable=SC2016  # the quotes are Markdown's
      sed -n '/^```cmake$/,/^```$/{/^```/!p}' "$here/../../README.md"
    } >"$work/project/CMakeLists.txt"
    cmake -G Ninja -S "$work/project" -B "$work/build" -DCMAKE_PREFIX_PATH="$prefix" >/dev/null
    cmake --build "$work/build"
    "$work/build/server" "$work/build/limiter.so"
    ;;
  moved) # the installed tree works wherever it is moved
    cp -a "$prefix" "$work/elsewhere"
    configure project "$work/elsewhere"
    ! grep -rqF "$prefix" "$work/elsewhere/lib"*/cmake "$work/build/build.ninja" ||
      fail "the moved package still points to $prefix"
    cmake --build "$work/build"
    "$work/build/host" "$work/build/polite.so"
    ;;
  pkg_config)
    PKG_CONFIG_PATH=$(dirname "$(find "$prefix" -name molt.pc)")
    export PKG_CONFIG_PATH
    cd "$here/project"
    # shellcheck disable=SC2046  # flags are words
    "$CXX" -std=c++20 -O2 -o "$work/host" host.cpp $(pkg-config --cflags --libs molt) \
      -Wl,-rpath,"$(pkg-config --variable=libdir molt)"
    # shellcheck disable=SC2046
    "$CXX" $(pkg-config --variable=module_cflags molt) -O2 -o "$work/polite.so" polite.cpp \
      $(pkg-config --variable=module_ldflags molt) $(pkg-config --cflags --libs molt)
    "$prefix/bin/molt" check "$work/polite.so"
    "$work/host" "$work/polite.so"
    # A module in C: no flag of C++'s, which a C compiler warns of.
    cat >"$work/plain.c" <<'END'
#include <molt/module.h>
MOLT_MODULE("plain", "1.0", "MIT", "does nothing")
END
    # shellcheck disable=SC2046
    cc -Werror $(pkg-config --variable=module_c_cflags molt) -O2 -o "$work/plain.so" "$work/plain.c" \
      $(pkg-config --variable=module_ldflags molt) $(pkg-config --cflags --libs molt)
    "$prefix/bin/molt" check "$work/plain.so"
    ;;
  c_only) # the C interface does not drag C++ in
    cat >"$work/main.c" <<'END'
#include <molt/molt.h>
int main(void) { return molt_gc(); }
END
    cat >"$work/CMakeLists.txt" <<'END'
cmake_minimum_required(VERSION 3.25)
project(c_only C)
find_package(molt 0.1 REQUIRED)
add_executable(main main.c)
target_link_libraries(main PRIVATE molt::molt)
END
    cmake -G Ninja -S "$work" -B "$work/build" -DCMAKE_PREFIX_PATH="$prefix" >/dev/null
    cmake --build "$work/build"
    "$work/build/main"
    ;;
  unique) must_be_refused unique '_ZZ10rememberedvE5texts\|remembered' ;;
  nodelete) must_be_refused nodelete 'NODELETE' ;;
  thread_local) must_be_refused thread_local_destructor '__cxa_thread_atexit' ;;
  *) fail "no case '$case'" ;;
esac
