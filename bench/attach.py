#!/usr/bin/env python3
"""attach.py [--records] [WHAT...]: what attaching costs programs that never heard of Molt. `./run bench attach`
calls it; `./run build` first.

stop       how long a thread is stopped by the first attach, over fresh processes
attaches   MOLT_ATTACHES (10000) attaches in a row, to targets with 1 to 200 threads that allocate,
           lock, get signals
kills      MOLT_KILLS (1000) kills of the attaching program at random moments
idle       throughput of redis and nginx with an idle agent beside such a server without
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
ROUNDS = TREE / "build/bin/bench_rounds"
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


REQUESTS = {"redis": "*3\\r\\n$3\\r\\nSET\\r\\n$3\\r\\nkey\\r\\n$3\\r\\nabc\\r\\n",
            "nginx": "GET /page HTTP/1.1\\r\\nHost: localhost\\r\\n\\r\\n"}


class Server:
    """redis or nginx as Debian ships it, in a folder of its own. With `threads` nginx has a pool of one thread,
    which sleeps: a server of one thread does without locks in the C library, and not any more once it has two."""

    def __init__(self, name, folder, threads=False):
        self.port = free_port()
        folder = Path(tempfile.mkdtemp(dir=folder))
        os.chmod(folder, 0o755)
        if name == "redis":
            command = ["redis-server", "--port", str(self.port), "--bind", "127.0.0.1", "--save", "", "--dir", str(folder)]
        else:
            (folder / "page").write_bytes(b"x" * 2000)
            paths = "".join(f"{what}_temp_path {folder}/{what};" for what in
                            ("client_body", "proxy", "fastcgi", "uwsgi", "scgi"))
            (folder / "nginx.conf").write_text(
                f"daemon off; {'user www-data;' if os.geteuid() == 0 else ''} worker_processes 1; pid {folder}/pid;"
                f"error_log {folder}/error.log; {'thread_pool own threads=1;' if threads else ''}"
                f"events {{ worker_connections 128; }} http {{ access_log off; keepalive_requests 100000000; {paths}"
                f"server {{ listen 127.0.0.1:{self.port}; root {folder}; }} }}")
            command = ["nginx", "-p", str(folder), "-e", f"{folder}/error.log", "-c", f"{folder}/nginx.conf"]
        self.process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        listening(self.port)

    def end(self):
        self.process.terminate()
        self.process.wait()


def compare(name, first, second, record_name=None, attach=False):
    """Throughput of the second kind of server beside that of the first, over pairs that are started anew: where
    its memory lies moves a server by a per cent. In each pair they are asked in turn, some ms each."""
    ratios, times = [], ([], [])
    pairs, rounds, requests = max(4, number("MOLT_PAIRS", 20)), 60, 800
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)
        for pair in range(pairs):
            # Each other time the other one is the elder.
            servers = [None, None]
            try:
                for i in ((0, 1) if pair % 2 else (1, 0)):
                    servers[i] = Server(name, folder, (first, second)[i])
                if attach:
                    molt("attach", "--tree", servers[1].process.pid)
                done = subprocess.run([ROUNDS, str(rounds), str(requests), REQUESTS[name],
                                       *(str(server.port) for server in servers)], capture_output=True, text=True)
                assert done.returncode == 0, done.stderr
            finally:
                for server in filter(None, servers):
                    server.end()
            ns = [tuple(map(float, line.split())) for line in done.stdout.splitlines()]
            for i in (0, 1):
                times[i].append(statistics.median(both[i] for both in ns))
            ratios.append(statistics.median(without / with_it for without, with_it in ns))
    ratios.sort()
    middle = statistics.median(ratios)
    # Of the median's confidence interval: so many pairs are below and above it (95 %).
    outside = max(0, int(pairs / 2 - 0.98 * pairs ** 0.5) - 1)
    low, high = ratios[outside], ratios[-1 - outside]
    rates = [1e9 / statistics.median(of) for of in times]
    if record_name:
        goal = {"ratio_at_least": 0.99} if attach else {}
        record(record_name, rates[1], "req/s", goal, rival="without", rival_value=rates[0], ratio=middle)
    return (f"{middle:.3f} ({low:.3f} to {high:.3f}) of its throughput without; median of {pairs} pairs of servers, "
            f"{rates[0]:.0f} requests a second")


def idle():
    tell("idle: redis with an idle agent: " + compare("redis", False, False, "attach.idle.redis", True))
    tell("idle: nginx with an idle agent: " + compare("nginx", False, False, "attach.idle.nginx", True))
    tell("idle: nginx that has a thread of its own, with an idle agent: "
         + compare("nginx", True, True, "attach.idle.nginx.threads", True))
    tell("idle: nginx with such a thread, and no agent: " + compare("nginx", False, True, "attach.idle.nginx.thread"))


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
