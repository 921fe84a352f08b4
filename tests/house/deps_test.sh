#!/usr/bin/env bash
# `./run deps` on machines that lack something, played by fakes of dpkg-query, apt-get, id and sudo.
# usage: deps_test.sh RUN
set -euo pipefail
run=$1
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

bin=$work/bin
mkdir "$bin"
for tool in bash cat comm dirname echo env nproc sed sort touch xargs; do
  ln -s "$(type -P "$tool")" "$bin/$tool"
done
fake() { # fake NAME: reads the script
  { echo "#!$bin/bash"; cat; } >"$bin/$1"
  chmod +x "$bin/$1"
}
# All packages are there, except those in the file `absent`.
fake dpkg-query <<END
for package in "\${@:3}"; do
  case " \$(cat $work/absent) " in *" \$package "*) ;; *) echo "installed \$package" ;; esac
done
END
# Knows no packages until it is updated.
fake apt-get <<END
echo "apt-get \$*" >>$work/calls
[ "\$1" != update ] || touch $work/lists
[ -e $work/lists ]
END
fake id <<<"cat $work/uid"

deps() { # deps UID ABSENT...
  rm -f "$work/calls" "$work/lists"
  touch "$work/calls"
  echo "$1" >"$work/uid"
  echo "${@:2}" >"$work/absent"
  status=0
  said=$(PATH=$bin "$run" deps 2>&1) || status=$?
}
expect() { # expect WHAT CONDITION...
  "${@:2}" || { echo "deps: $1; exit code $status, said: $said"; cat "$work/calls"; exit 1; }
}
install="apt-get install -qq -y --no-install-recommends"

deps 0
expect "nothing missing: quiet" [ "$status$said$(cat "$work/calls")" = 0 ]

deps 0 scdoc spin
expect "lists are stale: update, then install" [ "$status" = 0 ]
expect "exactly what is missing" [ "$(cat "$work/calls")" = "$install scdoc spin
apt-get update -qq
$install scdoc spin" ]

deps 1000 scdoc
expect "neither root nor sudo: refuse" [ "$status" = 1 ]
expect "in one line that says what to do" \
  [ "$said" = "run: packages are missing; as root: apt-get install scdoc" ]

fake sudo <<<'"$@"'
deps 1000 scdoc
expect "sudo is used" [ "$status" = 0 ]
