#!/bin/bash
# What makes the broken engines easy to find must not find anything in the sound one.
program=$1 modules=$2
export MOLT_AUDIT=0
exec "$program" --seconds 3 --modules "$modules"
