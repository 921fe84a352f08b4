#!/usr/bin/env bash
# The load client must see failures, or the demo proves nothing.
# usage: load_client_test.sh HTTP_FILES MOLT_LOAD_CLIENT
set -uo pipefail
server=$1 client=$2
tmp=$(mktemp -d)
server_pid=

cleanup() {
  [ -z "$server_pid" ] || { kill "$server_pid" 2>/dev/null && wait "$server_pid"; }
  rm -rf "$tmp"
}
trap cleanup EXIT

fail() {
  echo "load_client_test: $*" >&2
  cat "$tmp/out" >&2
  exit 1
}

# run EXIT_CODE COMMANDS ARGUMENT...: the client gets the commands, and reports into $tmp/out.
run() {
  local wanted=$1 commands=$2 got=0
  shift 2
  echo "$commands" | "$client" --port "$port" --rate 1000 "$@" >"$tmp/out" 2>&1 || got=$?
  [ "$got" = "$wanted" ] || fail "$* ended with $got, expected $wanted"
}
says() {
  grep -qE "$1" "$tmp/out" || fail "does not say '$1'"
}

mkdir "$tmp/files"
echo hello >"$tmp/files/there"
mkfifo "$tmp/ready"
"$server" --root "$tmp/files" >"$tmp/ready" 2>&1 &
server_pid=$!
read -r line <"$tmp/ready"
port=${line#ready on 127.0.0.1:}
port=${port%% *}

run 0 '' --seconds 0.5 --json "$tmp/report.json" 'GET /there' '2*PUT /new'
says '^run +5[0-9]{2} +0 +0 '
python3 - "$tmp/report.json" <<'END' || fail "the JSON report is wrong: $(cat "$tmp/report.json")"
import json, sys
phase, = json.load(open(sys.argv[1]))["phases"]
assert phase["requests"] == sum(phase["answered"].values()) >= 500
assert len(phase["answered"]) == 4 and all(c.startswith("127.0.1.") for c in phase["answered"])
latency = list(phase["latency_us"].values())
assert 0 < latency[0] and latency == sorted(latency)
END

# At the end of the input it stops, and every connection has had its first request by then.
run 0 $'phase one\nstop' --connections 1 'GET /there'
says '^answered one 127.0.1.1 1$'

run 1 '' --seconds 0.2 'GET /there' 'GET /missing'
says '^  first failure: GET /missing: status 404'

# Nothing refuses here: that is a failure for a phase that expects to be refused.
run 0 $'phase one either' '?GET /there'
run 1 $'phase one refused' '?GET /there'
says '^  first failure: GET /there: status 200'
run 0 $'phase one refused' 'GET /there'

run 2 '' --seconds 1 'GET there'
says 'a request is '

# The server stands still for 0.4 s of 1.5 s. Every request that was due meanwhile has waited: more than
# a quarter of all, not only the few that were under way.
"$client" --port "$port" --rate 1000 --seconds 1.5 --json "$tmp/report.json" 'GET /there' \
  >"$tmp/out" 2>&1 &
client_pid=$!
until grep -q 'began run' "$tmp/out"; do kill -0 "$client_pid" || fail "the client has died"; done
kill -STOP "$server_pid"
sleep 0.4 # tidy: sleep-ok the pause is what is measured
kill -CONT "$server_pid"
wait "$client_pid" || fail "a pause is not a failure"
python3 - "$tmp/report.json" <<'END' || fail "a pause is hidden: $(cat "$tmp/report.json")"
import json, sys
latency = json.load(open(sys.argv[1]))["phases"][0]["latency_us"]
assert latency["max"] > 390_000 and latency["p90"] > 100_000
END

# A server that goes away in the middle is noticed.
kill "$server_pid"
wait "$server_pid"
server_pid=
run 2 $'phase one' 'GET /there'
says 'Connection refused'
