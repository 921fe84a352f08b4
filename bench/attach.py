#!/usr/bin/env python3
"""attach.py [--records] [WHAT...]: what attaching costs programs that never heard of Molt. `./run bench attach`
calls it; `./run build` first.

stop       how long a thread is stopped by the first attach, over fresh processes
attaches   MOLT_ATTACHES (10000) attaches in a row, to targets with 1 to 200 threads that allocate,
           lock, get signals
kills      MOLT_KILLS (1000) kills of the attaching program at random moments
idle       throughput of redis and nginx with an idle agent beside the same server without
processes  a livepatch into MOLT_PROCESSES (1000) processes, and out again

Without an argument, all. --records: each figure is a line of JSON, and MOLT_QUICK=1 makes fewer. Bounded load on the loopback; everything that is started is ended here.
"""
import json
import os
import re
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

TREE = Path(__file__).resolve().parent.parent
MOLT = TREE / "build/bin/molt"
RUNTIME = TREE / "build/lib/libmolt.so.0"
TARGETS = TREE / "build/release/tests/attach/targets"
MANY = TREE / "build/bin/attach_many"
PATCH = TARGETS / "attach_other_word.so"
os.environ["PATH"] += ":/usr/sbin:/sbin"


records_wanted = False


def number(name, default):
    return int(os.environ.get(name, default // 10 if os.environ.get("MOLT_QUICK") else default))


def record(name, value, unit, goal, **more):
    if records_wanted:
        print(json.dumps({"name": name, "value": value, "unit": unit, "goal": goal, **more}), flush=True)


def tell(text):
    """For people; where records are wanted, on stderr."""
    print(text, flush=True, file=sys.stderr if records_wanted else sys.stdout)


def molt(*arguments):
    done = subprocess.run([MOLT, *map(str, arguments)], capture_output=True, text=True)
    if done.returncode != 0:
        sys.exit(f"molt {' '.join(map(str, arguments))}: {done.stderr}")
    return done.stdout


class Sleeper:
    def __init__(self, program=TARGETS / "sleeper"):
        self.process = subprocess.Popen([program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.pid = self.process.pid

    def ready(self):
        assert self.process.stdout.readline().startswith("ready")
        return self

    def end(self):
        out, _ = self.process.communicate(input="x", timeout=60)
        assert out.endswith("ok\n") and self.process.returncode == 0, out


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def listening(port):
    for _ in range(2000):
        try:
            socket.create_connection(("127.0.0.1", port)).close()
            return
        except ConnectionRefusedError:
            time.sleep(0.005)  # tidy: sleep-ok between two looks, bounded
    sys.exit(f"nobody listens on port {port}")


def stop():
    times, totals = [], []
    for _ in range(number("MOLT_STOPS", 200)):
        target = Sleeper().ready()
        report = json.loads(molt("attach", "-p", target.pid, "--json"))
        assert report["found"] == "loaded", report
        times.append(report["stopped_us"])
        totals.append(report["total_us"] / 1000)
        target.end()
    record("attach.stop", statistics.median(times), "us", {"at_most": 150, "unit": "us"})
    record("attach.stop.longest", max(times), "us", {"at_most": 150, "unit": "us"})
    record("attach.stop.in_all", statistics.median(totals), "ms", {})
    tell(f"stop: {len(times)} first attaches; one thread stopped for {min(times):.0f} us at least, "
         f"{statistics.median(times):.0f} median, {max(times):.0f} at most (goal 150); "
         f"{statistics.median(totals):.1f} ms in all, median")


def many(count, *command):
    env = dict(os.environ, GLIBC_TUNABLES="glibc.pthread.stack_cache_size=0")
    done = subprocess.run([MANY, RUNTIME, count, TARGETS / "busy", *map(str, command)], env=env,
                          capture_output=True, text=True)
    lines = done.stdout.strip().split("\n")
    # What failed is said before the sum.
    return done.returncode, lines[-1] if done.returncode == 0 else "; ".join(lines + [done.stderr.strip()])


def attaches():
    kinds = [("malloc", 1), ("malloc", 8), ("malloc", 50), ("locks", 8), ("locks", 50), ("locks", 200),
             ("signals", 4), ("signals", 50), ("events", 8), ("events", 200)]
    each = number("MOLT_ATTACHES", 10000) // 8
    bad = total = 0
    for kind, threads in kinds:
        # Crowds that are busy all the time are met at their calls, and have the processors to themselves.
        count = max(1, each // 40) if (kind, threads) in (("malloc", 50), ("signals", 50)) else each
        code, text = many(str(count), kind, threads)
        bad += code != 0
        total += count
        tell(f"attaches: {kind} {threads}: {'ok' if code == 0 else 'FAILED'}: {text}")
    record("attach.attaches", total, "", {})
    record("attach.attaches.failed", bad, "targets", {"zero": True})
    tell(f"attaches: {total} in {len(kinds)} targets, {bad} targets failed")
    return bad == 0


def kills():
    each = number("MOLT_KILLS", 1000) // 4
    bad = total = 0
    for kind, threads in (("malloc", 8), ("locks", 8), ("signals", 4), ("events", 4)):
        # About half of them come before the end.
        killed = 0
        while killed < each:
            env = dict(os.environ, GLIBC_TUNABLES="glibc.pthread.stack_cache_size=0")
            done = subprocess.run([MANY, RUNTIME, "100k", TARGETS / "busy", kind, str(threads)], env=env,
                                  capture_output=True, text=True)
            found = re.search(r"(\d+) of \d+ were killed", done.stdout)
            if done.returncode != 0 or not found:
                tell(f"kills: {kind}: FAILED: {done.stdout}{done.stderr}")
                bad += 1
                break
            killed += int(found.group(1))
        else:
            tell(f"kills: {kind} {threads}: killed {killed} times; the target noticed nothing")
        total += killed
    record("attach.kills", total, "", {})
    record("attach.kills.noticed", bad, "targets", {"zero": True})
    return bad == 0


def redis_rate(port, seconds):
    done = subprocess.run(["timeout", str(seconds), "redis-benchmark", "-p", str(port), "-t", "set", "-n", "100000000",
                           "-c", "20", "-q"], capture_output=True, text=True)
    return float(re.findall(r"rps=[\d.]+ \(overall: ([\d.]+)\)", done.stdout)[-1])


def nginx_rate(port, seconds):
    done = subprocess.run(["wrk", "-t", "1", "-c", "20", "-d", f"{seconds}s", f"http://127.0.0.1:{port}/page"],
                          capture_output=True, text=True)
    assert "Socket errors" not in done.stdout and "Non-2xx" not in done.stdout, done.stdout
    return float(re.search(r"Requests/sec: *([\d.]+)", done.stdout).group(1))


def compare(name, rate, port, select):
    """With and without in turn, each other time in the opposite order: what disturbs, disturbs both."""
    ratios, all_rates = [], {True: [], False: []}
    rounds = max(5, number("MOLT_ROUNDS", 15))
    for n in range(rounds):
        rates = {}
        for attached in ((True, False) if n % 2 else (False, True)):
            if attached:
                molt("attach", *select)
            rates[attached] = rate(port, int(os.environ.get("MOLT_SECONDS", 1)))
            all_rates[attached].append(rates[attached])
            if attached:
                molt("detach", *select)
        ratios.append(rates[True] / rates[False])
    record(f"attach.idle.{name}", statistics.median(all_rates[True]), "req/s", {"ratio_at_least": 0.99},
           rival="without an agent", rival_value=statistics.median(all_rates[False]), ratio=statistics.median(ratios))
    tell(f"idle: {name} with an idle agent: {statistics.median(ratios):.3f} of its throughput without, "
          f"median of {rounds} rounds ({min(ratios):.2f} to {max(ratios):.2f}; goal 0.99)")


def idle():
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)
        port = free_port()
        redis = subprocess.Popen(["redis-server", "--port", str(port), "--bind", "127.0.0.1", "--save", "",
                                  "--dir", folder], stdout=subprocess.DEVNULL)
        listening(port)
        try:
            compare("redis", redis_rate, port, ("-p", redis.pid))
        finally:
            redis.terminate()
            redis.wait()
        port = free_port()
        Path(folder, "page").write_bytes(b"x" * 2000)
        paths = "".join(f"{what}_temp_path {folder}/{what};" for what in
                        ("client_body", "proxy", "fastcgi", "uwsgi", "scgi"))
        user = "user www-data;" if os.geteuid() == 0 else ""
        Path(folder, "nginx.conf").write_text(
            f"daemon off; {user} worker_processes 1; pid {folder}/pid; error_log {folder}/error.log;"
            f"events {{ worker_connections 128; }} http {{ access_log off; keepalive_requests 100000000; {paths}"
            f"server {{ listen 127.0.0.1:{port}; root {folder}; }} }}")
        nginx = subprocess.Popen(["nginx", "-p", folder, "-e", f"{folder}/error.log", "-c", f"{folder}/nginx.conf"])
        listening(port)
        try:
            compare("nginx", nginx_rate, port, ("--tree", nginx.pid))
        finally:
            nginx.terminate()
            nginx.wait()


def processes():
    count = number("MOLT_PROCESSES", 1000)
    with tempfile.TemporaryDirectory() as folder:
        program = shutil.copy(TARGETS / "sleeper", folder)
        all_of_them = [Sleeper(program) for _ in range(count)]
        for target in all_of_them:
            target.ready()
        begin = time.monotonic()
        molt("apply", "--exe", program, PATCH)
        applied = time.monotonic()
        listed = json.loads(molt("status", "--exe", program, "--json"))
        assert len(listed) == count and all(answer["patches"][0]["enabled"] for answer in listed)
        revert = time.monotonic()
        molt("revert", "--exe", program, "other_word")
        reverted = time.monotonic()
        record("attach.processes", applied - begin, "s", {"at_most": 6, "unit": "s"} if count == 1000 else {})
        record("attach.processes.reverted", reverted - revert, "s", {})
        tell(f"processes: attached to and a patch applied to {count} in {applied - begin:.2f} s (goal for 1000: 6 s); "
              f"reverted and unloaded with proof in {reverted - revert:.2f} s")
        for target in all_of_them:
            target.end()


def main(wanted):
    global records_wanted
    records_wanted = "--records" in wanted
    wanted = [name for name in wanted if name != "--records"]
    parts = {"stop": stop, "attaches": attaches, "kills": kills, "idle": idle, "processes": processes}
    for name in wanted or parts:
        if name not in parts:
            sys.exit(__doc__)
    good = [parts[name]() for name in wanted or parts]
    return 0 if all(result in (None, True) for result in good) else 1


sys.exit(main(sys.argv[1:]))
