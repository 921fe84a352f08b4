#!/usr/bin/env bash
# Debian's redis-server and nginx, as packaged and started as usual, while redis-benchmark and wrk ask
# all they can: attached to, given policies and counters on the functions by which they open and write,
# patched live, relieved of all that, detached. `./run demo` ends with this act.
#
# A client at a constant rate watches redis meanwhile: the slowest of its answers is the longest pause
# that anybody has seen. In the end each server is the process that it was, no request has failed, and
# nothing of Molt runs in it.
#
# MOLT_DEMO_SECONDS (4) is how long each phase lasts.
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit
PATH=$PATH:/usr/sbin:/sbin

bin=${MOLT_BIN:-build/bin}
modules=${MOLT_LIB:-build/lib}/molt/examples
seconds=${MOLT_DEMO_SECONDS:-4}
tmp=$(mktemp -d)
chmod 755 "$tmp"
pids=()

fail() {
  echo "demo: FAIL: $*"
  exit 1
}

# stop PID...: ends what was started here, by its id.
stop() {
  local pid
  for pid in "$@"; do
    kill "$pid" 2>/dev/null
    for _ in {1..200}; do
      kill -0 "$pid" 2>/dev/null || break
      sleep 0.05
    done
    kill -KILL "$pid" 2>/dev/null
    wait "$pid" 2>/dev/null
  done
}
cleanup() {
  stop "${pids[@]}"
  rm -rf "$tmp"
}
trap cleanup EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

for program in redis-server redis-benchmark nginx wrk python3; do
  command -v "$program" >/dev/null || fail "$program is not installed; ./run deps does that"
done

free_port() {
  python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])'
}
# listening PORT PID: until it is.
listening() {
  local deadline=$((SECONDS + 20))
  until (exec 3<>"/dev/tcp/127.0.0.1/$1") 2>/dev/null; do
    kill -0 "$2" 2>/dev/null || fail "the server has died: $(cat "$tmp/log")"
    [ $SECONDS -lt $deadline ] || fail "nobody listens on port $1"
    sleep 0.02
  done
}
born() { cut -d' ' -f22 "/proc/$1/stat"; }
molt_threads() { grep -sl '^molt' /proc/"$1"/task/*/comm | wc -l; }

# molt ARGUMENT...: shown, and must succeed.
molt() {
  echo "\$ molt ${*//$modules\//}"
  local said
  said=$("$bin/molt" "$@" 2>&1) || fail "molt $*: $said"
  [ -z "$said" ] || echo "  ${said//$'\n'/$'\n'  }"
}

# --- Load ------------------------------------------------------------------------------------------

# Answers a second, longest pause in ms, errors.
redis_phase() {
  local asked
  python3 examples/steady_client.py "$redis_port" "$seconds" >"$tmp/steady" &
  local steady=$!
  asked=$(timeout "$seconds" redis-benchmark -p "$redis_port" -t set -n 100000000 -c 20 -P 4 -q 2>&1 |
    tr '\r' '\n')
  wait "$steady" || fail "redis: $(cat "$tmp/steady")"
  rate=$(sed -n 's/.*rps=[0-9.]* (overall: \([0-9.]*\)).*/\1/p' <<<"$asked" | tail -1)
  [ -n "$rate" ] || fail "redis-benchmark says: $asked"
  if grep -qi error <<<"$asked"; then fail "redis-benchmark says: $asked"; fi
  read -r _ pause <"$tmp/steady"
}

nginx_phase() {
  local asked
  asked=$(wrk -t 2 -c 20 -d "${seconds}s" --latency "http://127.0.0.1:$nginx_port/page" 2>&1)
  rate=$(sed -n 's/^Requests\/sec: *//p' <<<"$asked")
  pause=$(sed -n 's/^ *Latency  *[^ ]* *[^ ]* *\([^ ]*\).*/\1/p' <<<"$asked" | head -1)
  [ -n "$rate" ] || fail "wrk says: $asked"
  if grep -qE 'Socket errors|Non-2xx' <<<"$asked"; then fail "wrk says: $asked"; fi
}

# phase SERVER WORDS: one line of the table.
phase() {
  "${1}_phase"
  printf '%-6s %-34s %10.0f requests/s, slowest answer %s\n' "$1" "$2" "$rate" "$pause"
}

# beside SERVER PORT FRESH_PORT REQUEST: its throughput beside one that Molt never touched. Both are asked in turn,
# some ms each: the figures of two phases differ by what the machine does meanwhile. Each time by connections of their
# own: how those fall to nginx's workers makes a third; the best time of each counts. A tenth is more than where
# their memory lies makes, and than the locks cost that the C library takes once there was a second thread.
beside() {
  local ratio
  ratio=$(for _ in {1..25}; do "$bin/bench_rounds" 10 400 "$4" "$2" "$3" || exit; done |
    awk 'NR == 1 || $1 < a {a = $1} NR == 1 || $2 < b {b = $2} END {if (NR == 250) print b / a}')
  [ -n "$ratio" ] || fail "$1 did not answer"
  printf '%s: %.2f of the throughput of one that was never touched\n' "$1" "$ratio"
  awk -v r="$ratio" 'BEGIN {exit r < 0.9}' || fail "$1 is slower than before"
}

# while_loaded SERVER COMMAND: the command's doings are done in the middle of a phase.
while_loaded() {
  (
    sleep 0.5
    "$2"
  ) >"$tmp/done" 2>&1 &
  local doing=$!
  phase "$1" "$3"
  wait "$doing" || fail "$(cat "$tmp/done")"
  cat "$tmp/done"
}

# --- redis -----------------------------------------------------------------------------------------

start_redis() { # start_redis PORT
  redis-server --port "$1" --bind 127.0.0.1 --save '' --dir "$tmp" >"$tmp/log" 2>&1 &
  pids+=("$!")
  listening "$1" "$!"
}
redis_port=$(free_port)
start_redis "$redis_port"
redis=${pids[-1]}
redis_born=$(born "$redis")
echo "redis-server: pid $redis, $(redis-server --version | cut -d' ' -f3)"

hook_redis() {
  molt load -v -p "$redis" "$modules/limit_opens.so" 'deny=/etc/shadow'
  molt load -v -p "$redis" "$modules/count_opens.so"
  molt hook list -p "$redis"
}
ping_is() { # ping_is TEXT: what redis answers to PING
  local answer
  answer=$(redis-cli -p "$redis_port" ping)
  echo "  PING -> $answer"
  [ "$answer" = "$1" ] || fail "PING was answered by $answer, expected $1"
}
patch_redis() {
  ping_is PONG
  molt apply -v -p "$redis" "$modules/redis_ping.so" answer=maintenance
  molt status -p "$redis"
  ping_is maintenance
  molt revert -v -p "$redis" redis_ping
  ping_is PONG
}
unhook_redis() {
  molt unload -v -p "$redis" limit_opens
  molt unload -v -p "$redis" count_opens
  # Redis has an allocator of its own, of which the search for pointers cannot tell what is free: an old
  # word there may hold a module back until it is overwritten.
  for _ in {1..50}; do
    [ -n "$("$bin/molt" list -p "$redis" | sed -n '/^Unloaded/,$p')" ] || break
    "$bin/molt" gc -p "$redis" >/dev/null
    sleep 0.1
  done
  molt detach -p "$redis"
}

phase redis 'as it was'
while_loaded redis hook_redis 'while it is attached to and hooked'
phase redis 'with hooks'
while_loaded redis patch_redis 'while it is patched and reverted'
while_loaded redis unhook_redis 'while it is unhooked and detached'
phase redis 'as it was'
[ "$(born "$redis")" = "$redis_born" ] || fail "redis-server is another process"
[ "$(molt_threads "$redis")" = 0 ] || fail "threads of Molt are left in redis-server"
fresh_port=$(free_port)
start_redis "$fresh_port"
beside redis "$redis_port" "$fresh_port" 'SET key value\r\n'
echo

# --- nginx -----------------------------------------------------------------------------------------

nginx_port=$(free_port)
head -c 2000 /dev/urandom >"$tmp/page"
echo secret >"$tmp/server.key"
chmod 644 "$tmp/page" "$tmp/server.key"
paths=
for what in client_body proxy fastcgi uwsgi scgi; do paths+="${what}_temp_path $tmp/$what; "; done
user=
[ "$(id -u)" != 0 ] || user='user www-data;'
start_nginx() { # start_nginx PORT
  cat >"$tmp/$1.conf" <<END
daemon off; $user worker_processes 2; pid $tmp/$1.pid; error_log $tmp/error.log;
events { worker_connections 128; }
http {
  access_log off; keepalive_requests 100000000; $paths
  server { listen 127.0.0.1:$1; root $tmp; }
}
END
  nginx -p "$tmp" -e "$tmp/error.log" -c "$tmp/$1.conf" >"$tmp/log" 2>&1 &
  pids+=("$!")
  listening "$1" "$!"
}
start_nginx "$nginx_port"
nginx=${pids[-1]}
workers=$(cat "/proc/$nginx/task/$nginx/children")
echo "nginx: master $nginx, workers $workers"
all_born=$(for pid in $nginx $workers; do born "$pid"; done)

status() { # status PATH: what nginx answers
  local socket answer
  exec {socket}<>"/dev/tcp/127.0.0.1/$nginx_port" || return
  printf 'GET %s HTTP/1.0\r\n\r\n' "$1" >&"$socket"
  read -r _ answer _ <&"$socket"
  exec {socket}>&-
  echo "  GET $1 -> $answer"
  [ "$answer" = "$2" ] || fail "GET $1 was answered by $answer, expected $2"
}
hook_nginx() {
  status /server.key 200
  molt load -v --tree "$nginx" "$modules/limit_opens.so" 'deny=*.key'
  molt load --tree "$nginx" "$modules/temp_opens.so" mode=refuse
  molt load --tree "$nginx" "$modules/count_opens.so"
  status /server.key 403
}
etag_is() { # etag_is COUNT: how many of so many answers of either worker have one
  local answers=0 socket
  for _ in {1..10}; do
    exec {socket}<>"/dev/tcp/127.0.0.1/$nginx_port" || return
    printf 'HEAD /page HTTP/1.0\r\n\r\n' >&"$socket"
    answers=$((answers + $(grep -ci '^etag:' <&"$socket")))
    exec {socket}>&-
  done
  echo "  HEAD /page -> $answers of 10 answers with an ETag"
  [ "$answers" = "$1" ] || fail "$answers of 10 answers have an ETag, expected $1"
}
patch_nginx() {
  etag_is 10
  molt apply -v --tree "$nginx" "$modules/nginx_etag.so"
  etag_is 0
  molt revert -v --tree "$nginx" nginx_etag
  etag_is 10
}
unhook_nginx() {
  molt unload -v --tree "$nginx" limit_opens
  molt unload --tree "$nginx" temp_opens count_opens
  status /server.key 200
  molt detach --tree "$nginx"
}

phase nginx 'as it was'
while_loaded nginx hook_nginx 'while it is attached to and hooked'
phase nginx 'with three policies at every open'
while_loaded nginx patch_nginx 'while it is patched and reverted'
while_loaded nginx unhook_nginx 'while it is unhooked and detached'
phase nginx 'as it was'
[ "$(for pid in $nginx $workers; do born "$pid"; done)" = "$all_born" ] ||
  fail "nginx has other processes now"
for pid in $nginx $workers; do
  [ "$(molt_threads "$pid")" = 0 ] || fail "threads of Molt are left in nginx"
done
fresh_port=$(free_port)
start_nginx "$fresh_port"
beside nginx "$nginx_port" "$fresh_port" 'GET /page HTTP/1.1\r\nHost: a\r\n\r\n'
echo "demo: PASS"
