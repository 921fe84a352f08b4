#!/usr/bin/env bash
# Modules come and go in a server that is busy all the time. `./run demo` calls this after the build.
#
# A load client in a process of its own sends requests at a constant rate. Meanwhile, many times over,
# modules are loaded, stacked, ordered, disabled, enabled, replaced by another version with their
# state, and unloaded, through nothing but the command line. In the end no request may have failed,
# each must have been counted exactly once, and nothing of any module may be left in the process.
#
# MOLT_DEMO_ROUNDS (100) and MOLT_DEMO_RATE (requests a second, 2000) change the length and the load.
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit

bin=${MOLT_BIN:-build/bin}
modules=${MOLT_LIB:-build/lib}/molt/examples
rounds=${MOLT_DEMO_ROUNDS:-100}
rate=${MOLT_DEMO_RATE:-2000}
connections=8
# Two phases overlap for a moment, and the demo asks something now and then: a thread for each.
workers=$((2 * connections + 4))
# Every 32nd request is for a file that limit_names refuses, another one for one that temp_files does.
requests=('24*GET /pub/small.bin' '4*GET /pub/large.bin' '2*PUT /incoming/note.txt'
  '?GET /keys/server.key' '?PUT /tmp/report.txt')

tmp=$(mktemp -d)
server_pid=
client_pid=

# stop PID: ends what was started here, by its id, and gives its exit status.
stop() {
  kill "$1" 2>/dev/null
  for _ in {1..200}; do
    kill -0 "$1" 2>/dev/null || break
    sleep 0.05
  done
  kill -KILL "$1" 2>/dev/null
  wait "$1" 2>/dev/null
}
cleanup() {
  [ -z "$client_pid" ] || stop "$client_pid"
  [ -z "$server_pid" ] || stop "$server_pid"
  rm -rf "$tmp"
}
trap cleanup EXIT
trap 'exit 130' INT
trap 'exit 143' TERM
trap 'fail "the load client has died: $(cat "$tmp/client.out")"' PIPE

fail() {
  echo "demo: FAIL: $*"
  exit 1
}

# --- The server, seen from outside ---------------------------------------------------------------

# wait_for FILE TEXT: until a line of FILE begins with TEXT.
wait_for() {
  local deadline=$((SECONDS + 20))
  until grep -q "^$2" "$1"; do
    kill -0 "$server_pid" 2>/dev/null || fail "the server has died"
    [ $SECONDS -lt $deadline ] || fail "waited in vain for '$2'; $1 says: $(cat "$1")"
    sleep 0.02
  done
}

# http METHOD PATH: the whole answer.
http() {
  local socket
  exec {socket}<>"/dev/tcp/127.0.0.1/$port" || return
  printf '%s %s HTTP/1.1\r\nHost: demo\r\nConnection: close\r\nContent-Length: 0\r\n\r\n' \
    "$1" "$2" >&"$socket"
  cat <&"$socket"
  exec {socket}>&-
}

# expect STATUS METHOD PATH
expect() {
  local status=
  read -r _ status _ < <(http "$2" "$3")
  if [ "$verbose" = 1 ]; then echo "  $2 $3 -> $status"; fi
  [ "$status" = "$1" ] || fail "$2 $3 was answered by '$status', expected $1"
}

# Files that are mapped, names only.
mapped_files() { awk '$6 ~ /^\// {print $6}' "/proc/$server_pid/maps" | sort -u; }
descriptors() { find "/proc/$server_pid/fd" -mindepth 1 | wc -l; }
threads() { find "/proc/$server_pid/task" -mindepth 1 -maxdepth 1 | wc -l; }
mappings() { wc -l <"/proc/$server_pid/maps"; }

# The server has noticed that the client's connections are closed.
wait_idle() {
  local deadline=$((SECONDS + 20))
  until [ "$(find "/proc/$server_pid/fd" -lname 'socket:*' | wc -l)" = "$idle_sockets" ]; do
    [ $SECONDS -lt $deadline ] || fail "connections stay open"
    sleep 0.02
  done
}

# --- Changing it ---------------------------------------------------------------------------------

# molt VERB ARGUMENT...: shown in the first round, and must succeed.
molt() {
  if [ "$verbose" = 1 ]; then echo "\$ molt -p $server_pid ${*//$modules\//}"; fi
  local said
  said=$("$bin/molt" -p "$server_pid" "$@" 2>&1) || fail "molt $*: $said"
  if [ "$verbose" = 1 ] && [ -n "$said" ]; then echo "$said"; fi
  if [[ $said =~ paused\ ([0-9]+)\ us ]]; then
    replaced=$((replaced + 1))
    ((longest_us >= BASH_REMATCH[1])) || longest_us=${BASH_REMATCH[1]}
  fi
  # These also succeed, and say so, when memory had to stay.
  case "$1: $said" in
    unload:*unmapped* | replace:*unmapped*) ;;
    unload:* | replace:*) fail "molt $*: $said" ;;
  esac
}

stack_policies() {
  molt load -v "$modules/limit_names.so" 'deny=*.key'
  molt load -v "$modules/temp_files.so" mode=refuse
  expect 403 GET /keys/server.key
  expect 403 PUT /tmp/report.txt
  expect 200 GET /pub/small.bin

  molt hook order http.open temp_files,limit_names
  if [ "$verbose" = 1 ]; then molt hook list; fi
}

change_policies() {
  molt set modules/limit_names/enabled 0
  expect 200 GET /keys/server.key
  molt set modules/limit_names/enabled 1
  expect 403 GET /keys/server.key
  molt set modules/temp_files/parameters/mode log
  expect 201 PUT /tmp/report.txt
}

# client_count stays loaded from the first round to the last, and so does its state.
replace_counter() {
  case $counter in
    client_count_v2) counter=client_count_v2_1 ;;
    *) counter=client_count_v2 ;;
  esac
  molt replace -v "$modules/$counter.so"
  # The older version does not understand the newer one's state, and nothing happens.
  if [ "$verbose" = 1 ]; then echo "\$ molt -p $server_pid replace client_count_v1.so"; fi
  local said
  if said=$("$bin/molt" -p "$server_pid" replace "$modules/client_count_v1.so" 2>&1); then
    fail "version 2 was replaced by version 1, which does not understand its state"
  fi
  if [ "$verbose" = 1 ]; then echo "$said"; fi
  expect 200 GET /counters
}

unload_policies() {
  molt unload -v limit_names
  molt unload -v temp_files
  expect 200 GET /keys/server.key
  expect 201 PUT /tmp/report.txt
  if [ "$verbose" = 1 ]; then molt list; fi
}

round() {
  stack_policies
  change_policies
  replace_counter
  unload_policies
}

# --- The demo ------------------------------------------------------------------------------------

verbose=0
replaced=0
longest_us=0
mkdir -p "$tmp/files/pub" "$tmp/files/keys" "$tmp/files/tmp" "$tmp/files/incoming"
head -c 1000 /dev/urandom >"$tmp/files/pub/small.bin"
head -c 100000 /dev/urandom >"$tmp/files/pub/large.bin"
echo secret >"$tmp/files/keys/server.key"
: >"$tmp/server.out"

"$bin/http-files" --root "$tmp/files" --threads "$workers" >"$tmp/server.out" 2>&1 &
server_pid=$!
wait_for "$tmp/server.out" ready
port=$(sed -n 's/^ready on 127.0.0.1:\([0-9]*\) .*/\1/p' "$tmp/server.out")
idle_sockets=$(find "/proc/$server_pid/fd" -lname 'socket:*' | wc -l)
born=$(cut -d' ' -f22 "/proc/$server_pid/stat")
echo "http-files: pid $server_pid, $workers workers, port $port"

# What is set up once and stays (each thread's arena of the allocator, its record in the runtime) is
# set up now, so that the figures below show only what the rounds leave behind.
counter=none
molt load -v "$modules/client_count_v1.so"
stack_policies
"$bin/molt-load-client" --port "$port" --connections "$workers" --rate "$rate" --seconds 1 \
  'GET /pub/small.bin' 'GET /pub/large.bin' 'PUT /incoming/note.txt' >"$tmp/warm" ||
  fail "warming up: $(cat "$tmp/warm")"
wait_idle
unload_policies
molt unload -v client_count
files_before=$(mapped_files)
before=("$(descriptors)" "$(threads)" "$(mappings)")

mkfifo "$tmp/commands"
: >"$tmp/client.out"
"$bin/molt-load-client" --port "$port" --connections "$connections" --rate "$rate" \
  "${requests[@]}" <"$tmp/commands" >"$tmp/client.out" 2>&1 &
client_pid=$!
exec 8>"$tmp/commands"
phase() {
  echo "phase $*" >&8
  wait_for "$tmp/client.out" "began $1"
}

echo "load: $rate requests a second over $connections connections"
echo "phase quiet: 3 s without modules"
phase quiet
sleep 3
# The commands themselves take time of the same processors. What they cost without changing anything
# is to be seen too, so that it is not taken for the price of the changes.
echo "phase looking: 3 s of commands that change nothing"
phase looking
for ((end = SECONDS + 3; SECONDS < end; )); do
  molt list
  expect 200 GET /pub/small.bin
done

echo "phases loading, changes: modules come and go"
# The counter is loaded under load. It has missed requests of the clients that were there before,
# none of those that the next phase brings.
phase loading either
verbose=1
molt load -v "$modules/client_count_v1.so"
counter=client_count_v1
phase changes either
wait_for "$tmp/client.out" "ended loading"

for ((n = 1; n <= rounds; ++n)); do
  round
  if [ $n = 1 ]; then
    verbose=0
    comm -13 <(echo "$files_before") <(mapped_files) | sed 's/^/  mapped, for client_count: /'
    echo "round 1 of $rounds done; the others do the same"
  elif ((n % 10 == 0)); then
    echo "round $n of $rounds done; client_count is version $(
      "$bin/molt" -p "$server_pid" get modules/client_count/version), load goes on"
  fi
done

# All requests of the phase that is being counted are answered; the next phase's load goes on.
phase unloading
wait_for "$tmp/client.out" "ended changes"
sed -n 's/^answered changes //p' "$tmp/client.out" | sort >"$tmp/seen"
clients=$(cut -d. -f1-3 "$tmp/seen" | uniq)
http GET /counters | awk -v prefix="$clients." 'index($1, prefix) == 1 {print $1, $2}' |
  sort >"$tmp/counted"
verbose=1
molt unload -v client_count
molt list
sleep 1
files_after=$(mapped_files)
# Modules are mapped from the runtime's store of copies, whose names say nothing.
left=$(grep -E '/store/|limit_names|temp_files|client_count' "/proc/$server_pid/maps")
echo stop >&8
exec 8>&-
wait "$client_pid"
client_status=$?
client_pid=
wait_idle
after=("$(descriptors)" "$(threads)" "$(mappings)")

# --- What came of it -----------------------------------------------------------------------------

sum() { awk '{sum += $2} END {print sum + 0}' "$1"; }
echo
grep -A20 '^phase ' "$tmp/client.out"
echo
echo "counted: $(sum "$tmp/counted") requests of $(wc -l <"$tmp/counted") clients;" \
  "the clients saw $(sum "$tmp/seen") answers"
echo "pauses:  client_count was replaced $replaced times; callers of it waited at most $longest_us us"
echo "mapped:  $(wc -l <<<"$files_after") files now, $(wc -l <<<"$files_before") before;" \
  "$(grep -c . <<<"$left") mappings of modules in /proc/$server_pid/maps"
echo "before:  ${before[0]} descriptors, ${before[1]} threads, ${before[2]} mappings"
echo "after:   ${after[0]} descriptors, ${after[1]} threads, ${after[2]} mappings"
echo "process: pid $server_pid throughout"

[ $client_status = 0 ] || fail "requests failed"
[ -s "$tmp/seen" ] || fail "the client has seen nothing"
cmp -s "$tmp/seen" "$tmp/counted" || fail "the counter is not exact: $(
  diff "$tmp/seen" "$tmp/counted" | tr '\n' ' ')"
[ -z "$left" ] || fail "still mapped: $left"
[ "$files_after" = "$files_before" ] || fail "still mapped: $(
  comm -13 <(echo "$files_before") <(echo "$files_after") | tr '\n' ' ')"
[ "${after[0]}" = "${before[0]}" ] || fail "descriptors are left open"
[ "${after[1]}" = "${before[1]}" ] || fail "threads are left"
# The allocator takes one more or less for itself now and then; one left by each round would be many.
((after[2] < before[2] + 5)) || fail "mappings are left"
[ "$(cut -d' ' -f22 "/proc/$server_pid/stat")" = "$born" ] || fail "it is another process"
# --- A module that does everything wrong -----------------------------------------------------------

echo
echo "everything_wrong: a detached thread, a forgotten callback, a signal handler, a timer, ..."
molt load "$modules/everything_wrong.so"
echo "\$ molt -p $server_pid unload --timeout 0.2 everything_wrong"
"$bin/molt" -p "$server_pid" unload --timeout 0.2 everything_wrong 2>&1 ||
  fail "everything_wrong could not be unloaded"
echo "it is out of use, and its memory stays, since:"
"$bin/molt" -p "$server_pid" blocking everything_wrong | sed 's/^/  /'
"$bin/molt" -p "$server_pid" events | sed -n 's/.*everything_wrong: pointer left: /  /p' |
  c++filt
for what in thread 'handler of SIGUSR2' on_timer on_terminate; do
  grep -q "$what" <("$bin/molt" -p "$server_pid" blocking everything_wrong
    "$bin/molt" -p "$server_pid" events) || fail "unload did not name: $what"
done
"$bin/molt" -p "$server_pid" list | grep -q 'everything_wrong.*resident' ||
  fail "what everything_wrong left behind is not shown as resident"
expect 200 GET /pub/small.bin

stop "$server_pid"
status=$?
server_pid=
[ $status = 0 ] || fail "the server ended with $status"
echo "demo: PASS"
