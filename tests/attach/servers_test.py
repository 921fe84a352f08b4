#!/usr/bin/env python3
"""Servers as Debian ships them, under load: attached to, given a module, relieved of it, detached.

Each server is started here, on a loopback port, in a folder of its own, and ended by its pid. A client
checks every answer meanwhile: none may be wrong or missing.
"""
import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import threading
import time
import unittest
from pathlib import Path

MOLT = str(Path(os.environ["MOLT_BIN"]) / "molt")
MODULE = os.environ["MOLT_MODULE"]
COUNTED_SENDS = Path(MODULE).with_name("attach_counted_sends.so")
EXAMPLES = Path(os.environ["MOLT_LIB"]) / "molt" / "examples"


def molt(*arguments):
    return subprocess.run([MOLT, *map(str, arguments)], capture_output=True, text=True, timeout=60)


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def connect(port, patience_s=10):
    """To a server that is just starting."""
    end = time.monotonic() + patience_s
    while True:
        try:
            return socket.create_connection(("127.0.0.1", port), timeout=20)
        except ConnectionRefusedError:
            if time.monotonic() > end:
                raise
            time.sleep(0.005)  # tidy: sleep-ok between two looks, bounded


def children(pid):
    return [int(child) for child in
            Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def threads(pid):
    """Names, but for those that end while they are asked for."""
    names = []
    for tid in os.listdir(f"/proc/{pid}/task"):
        with contextlib.suppress(OSError):
            names.append(Path(f"/proc/{pid}/task/{tid}/comm").read_text().strip())
    return sorted(names)


def has_ended(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] in "ZX"
    except OSError:
        return True


class Load:
    """Clients that ask and check the answer until told to stop; one connection each."""

    def __init__(self, port, exchange, clients=2):
        self.answers, self.errors, self.longest_s = 0, [], 0.0
        self.lock, self.over = threading.Lock(), threading.Event()
        self.begun = threading.Semaphore(0)
        self.counts = [0] * clients
        self.threads = [threading.Thread(target=self.run, args=(port, exchange, i)) for i in range(clients)]
        for thread in self.threads:
            thread.start()
        for _ in self.threads:
            self.begun.acquire(timeout=30)

    def run(self, port, exchange, number):
        count, longest = 0, 0.0
        try:
            with connect(port) as link:
                stream = link.makefile("rb")
                while not self.over.is_set():
                    begin = time.monotonic()
                    exchange(link, stream, number, count)
                    longest = max(longest, time.monotonic() - begin)
                    count += 1
                    self.counts[number] = count
                    if count == 20:
                        self.begun.release()
        except Exception as error:  # told by check()
            with self.lock:
                self.errors.append(repr(error))
            self.begun.release()
        with self.lock:
            self.answers += count
            self.longest_s = max(self.longest_s, longest)

    def count(self):
        return sum(self.counts)

    def end(self):
        self.over.set()
        for thread in self.threads:
            thread.join(timeout=30)


def expect(stream, wanted):
    got = stream.read(len(wanted))
    if got != wanted:
        raise ValueError(f"{got!r} and not {wanted!r}")


def redis(link, stream, number, count):
    value = b"%08d" % count
    link.sendall(b"*3\r\n$3\r\nSET\r\n$2\r\nk%d\r\n$8\r\n%s\r\n*2\r\n$3\r\nGET\r\n$2\r\nk%d\r\n" % (number, value, number))
    expect(stream, b"+OK\r\n$8\r\n%s\r\n" % value)


def memcached(link, stream, number, count):
    value = b"%08d" % count
    link.sendall(b"set k%d 0 0 8\r\n%s\r\nget k%d\r\n" % (number, value, number))
    expect(stream, b"STORED\r\nVALUE k%d 0 8\r\n%s\r\nEND\r\n" % (number, value))


PAGE = b"what the page says\n" * 100


def nginx(link, stream, _number, _count):
    link.sendall(b"GET /page HTTP/1.1\r\nHost: localhost\r\n\r\n")
    status = stream.readline()
    if status != b"HTTP/1.1 200 OK\r\n":
        raise ValueError(f"{status!r}")
    length = 0
    while (line := stream.readline()) != b"\r\n":
        if line.lower().startswith(b"content-length:"):
            length = int(line.split(b":")[1])
    if length != len(PAGE):
        raise ValueError(f"{length} bytes announced")
    expect(stream, PAGE)


class Servers(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory(prefix="servers-test-")
        self.addCleanup(folder.cleanup)
        self.folder = Path(folder.name)
        os.chmod(self.folder, 0o755)
        self.port = free_port()

    def program(self, name):
        found = shutil.which(name, path=os.environ["PATH"] + ":/usr/sbin:/sbin")
        self.assertTrue(found, f"{name} is not installed; `./run deps` does that")
        return found

    def start(self, *command):
        log = open(self.folder / "log", "wb")
        self.addCleanup(log.close)
        process = subprocess.Popen(list(map(str, command)), stdin=subprocess.DEVNULL, stdout=log,
                                   stderr=subprocess.STDOUT, cwd=self.folder)
        self.addCleanup(self.stop, process)
        return process

    def stop(self, process):
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(timeout=20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    def load(self, exchange):
        load = Load(self.port, exchange)
        self.addCleanup(load.end)
        return load

    def check(self, load):
        load.end()
        self.assertEqual(load.errors, [])
        self.assertGreater(load.answers, 100)
        # An attach borrows a thread for 100 us; the rest is the machine's.
        print(f"{load.answers} answers, the slowest after {load.longest_s * 1000:.1f} ms")

    def does(self, *arguments):
        done = molt(*arguments)
        self.assertEqual((done.returncode, done.stderr), (0, ""), arguments)
        return done.stdout

    def come_and_go(self, pids, *select):
        """A module in all of `pids`, and out again; then nothing of Molt is left but its memory."""
        self.does("load", *select, MODULE)
        for pid in pids:
            self.assertIn("plain", self.does("list", "-p", pid))
            self.assertIn("molt", threads(pid))
        reply = json.loads(self.does("unload", *select, "plain", "--json"))
        for answer in reply if isinstance(reply, list) else [reply]:
            self.assertEqual(answer["result"], "unmapped", answer)
        for pid in pids:
            self.assertNotIn("plain", Path(f"/proc/{pid}/maps").read_text())
        self.does("detach", *select)
        for pid in pids:
            # The server has threads and connections that come and go; none is ours.
            self.assertEqual([name for name in threads(pid) if "molt" in name], [])
            for fd in os.listdir(f"/proc/{pid}/fd"):
                with contextlib.suppress(FileNotFoundError):
                    self.assertNotIn("molt", os.readlink(f"/proc/{pid}/fd/{fd}"))
            for folder in ("/run/molt", "/tmp/molt-33"):
                self.assertFalse(Path(folder, str(pid)).exists())
            self.assertIn("no control socket", molt("list", "-p", pid).stderr)

    def test_redis(self):
        server = self.start(self.program("redis-server"), "--port", self.port, "--bind", "127.0.0.1",
                            "--save", "", "--dir", self.folder)
        load = self.load(redis)
        for _ in range(3):
            self.come_and_go([server.pid], "-p", server.pid)
        self.check(load)

    def test_redis_is_patched_live(self):
        server = self.start(self.program("redis-server"), "--port", self.port, "--bind", "127.0.0.1",
                            "--save", "", "--dir", self.folder)
        load = self.load(redis)
        with connect(self.port) as link:
            stream = link.makefile("rb")

            def ping(wanted):
                link.sendall(b"PING\r\n")
                self.assertEqual(stream.read(len(wanted)), wanted)

            for _ in range(3):
                ping(b"+PONG\r\n")
                self.does("apply", "-p", server.pid, EXAMPLES / "redis_ping.so", "answer=maintenance")
                ping(b"+maintenance\r\n")
                self.assertIn("pingCommand", self.does("status", "-p", server.pid))
                self.does("revert", "-p", server.pid, "redis_ping")
            ping(b"+PONG\r\n")
        self.does("detach", "-p", server.pid)
        self.check(load)

    def test_redis_saves_in_a_child(self):
        server = self.start(self.program("redis-server"), "--port", self.port, "--bind", "127.0.0.1",
                            "--save", "", "--dir", self.folder)
        load = self.load(redis)
        self.does("load", "-p", server.pid, MODULE)
        self.does("apply", "-p", server.pid, EXAMPLES / "redis_ping.so")
        with connect(self.port) as link:
            stream = link.makefile("rb")
            # Slow enough to be looked at, however few keys the load has written, and on a machine that is busy.
            for delay_us in (500_000, 2_000_000, 8_000_000):
                for request, answer in ((b"SET slow slow", b"+OK"),
                                        (b"CONFIG SET rdb-key-save-delay %d" % delay_us, b"+OK"),
                                        (b"BGSAVE", b"+Background saving started")):
                    link.sendall(request + b"\r\n")
                    self.assertEqual(stream.readline().strip(), answer)
                child = children(server.pid)[0]
                told = [molt(*words, "-p", child) for words in (["status"], ["revert", "redis_ping"], ["status"])]
                if all(done.returncode == 0 for done in told) or not has_ended(child):
                    break
                self.until(lambda: not children(server.pid))
            self.assertEqual([(done.returncode, done.stderr) for done in told], [(0, "")] * 3)
            self.assertIn("pingCommand", told[0].stdout)
            self.assertNotIn("pingCommand", told[2].stdout)
            self.assertIn("pingCommand", self.does("status", "-p", server.pid))
            link.sendall(b"CONFIG SET rdb-key-save-delay 0\r\n")
            stream.readline()
            end = time.monotonic() + 60
            saved = {}
            while saved.get("rdb_bgsave_in_progress") != "0" and time.monotonic() < end:
                time.sleep(0.01)  # tidy: sleep-ok between two looks, bounded
                link.sendall(b"INFO persistence\r\n")
                text = stream.read(int(stream.readline()[1:]) + 2).decode()
                saved = dict(line.split(":", 1) for line in text.splitlines() if ":" in line)
        self.assertEqual((saved["rdb_bgsave_in_progress"], saved["rdb_last_bgsave_status"]), ("0", "ok"))
        self.assertTrue((self.folder / "dump.rdb").exists())
        self.does("revert", "-p", server.pid, "redis_ping")
        self.does("unload", "-p", server.pid, "plain")
        self.check(load)

    def test_memcached(self):
        user = ["-u", "root"] if os.geteuid() == 0 else []
        server = self.start(self.program("memcached"), "-l", "127.0.0.1", "-p", self.port, "-t", "4", *user)
        load = self.load(memcached)
        for _ in range(3):
            self.come_and_go([server.pid], "-p", server.pid)
        self.check(load)

    def test_memcached_without_privileges(self):
        """As Debian's service runs it: what it was as root it may not look at any more, its own threads."""
        if os.geteuid() != 0:
            self.skipTest("needs root, who gives up his rights")
        server = self.start(self.program("memcached"), "-l", "127.0.0.1", "-p", self.port, "-t", "4", "-u", "memcache")
        load = self.load(memcached)
        self.assertNotEqual(Path(f"/proc/{server.pid}/status").read_text().split("\nUid:")[1].split()[0], "0")
        self.assertEqual(os.stat(f"/proc/{server.pid}/task/{server.pid}/syscall").st_uid, 0)
        select = "-p", server.pid
        for _ in range(2):
            self.come_and_go([server.pid], *select)
        self.does("load", *select, EXAMPLES / "count_opens.so")
        self.assertIn("libc.so.6:open64", self.does("hook", "list", *select))
        for _ in range(3):
            self.does("apply", *select, COUNTED_SENDS)
            self.assertIn("sendmsg", self.does("status", *select))
            before = load.count()
            while load.count() < before + 100 and not load.errors:
                time.sleep(0.002)  # tidy: sleep-ok until it has answered so often
            self.assertGreaterEqual(
                int(self.does("get", *select, "modules/counted_sends/parameters/sent")), 100)
            self.does("revert", *select, "counted_sends")
            self.assertNotIn("counted_sends", self.does("list", *select))
        unloaded = json.loads(self.does("unload", *select, "count_opens", "--json"))
        self.assertEqual(unloaded["result"], "unmapped", unloaded)
        self.does("detach", *select)
        # It is as closed as it was.
        self.assertEqual(os.stat(f"/proc/{server.pid}/task/{server.pid}/syscall").st_uid, 0)
        self.check(load)

    def start_nginx(self, more=""):
        (self.folder / "page").write_bytes(PAGE)
        user = "user www-data;" if os.geteuid() == 0 else ""
        temporary = "".join(f"{what}_temp_path {self.folder}/{what};" for what in
                            ("client_body", "proxy", "fastcgi", "uwsgi", "scgi"))
        (self.folder / "nginx.conf").write_text(
            f"daemon off; {user} worker_processes 2; pid {self.folder}/pid; error_log {self.folder}/error.log;"
            "events { worker_connections 64; }"
            f"http {{ access_log off; keepalive_requests 1000000; {temporary}"
            f"server {{ listen 127.0.0.1:{self.port}; root {self.folder}; {more} }} }}")
        master = self.start(self.program("nginx"), "-p", self.folder, "-e", self.folder / "error.log",
                            "-c", self.folder / "nginx.conf")
        connect(self.port).close()
        return master

    def workers(self, master, but=()):
        """The two of them, once they are there and older ones gone."""
        end = time.monotonic() + 20
        while time.monotonic() < end:
            now = children(master.pid)
            if len(now) == 2 and not set(now) & set(but):
                return now
            time.sleep(0.005)  # tidy: sleep-ok between two looks, bounded
        self.fail("nginx has no two workers")

    def test_nginx(self):
        master = self.start_nginx()
        load = self.load(nginx)
        workers = self.workers(master)
        if os.geteuid() == 0:  # they have given up their privileges
            self.assertNotEqual(Path(f"/proc/{workers[0]}/status").read_text().split("\nUid:")[1].split()[0], "0")
        for _ in range(2):
            self.come_and_go([master.pid, *workers], "--tree", master.pid)
        self.check(load)
        self.assertEqual(self.workers(master), workers)

    def ask(self, path):
        """The status that nginx answers."""
        with connect(self.port) as link:
            link.sendall(f"GET {path} HTTP/1.0\r\n\r\n".encode())
            return int(link.makefile("rb").readline().split()[1])

    def opened(self, pid, what):
        return int(self.does("get", "-p", pid, f"modules/count_opens/parameters/{what}"))

    def test_nginx_policies(self):
        """The three policies, stacked on what nginx opens its files by."""
        master = self.start_nginx()
        (self.folder / "server.key").write_text("secret")
        (self.folder / "server.key").chmod(0o644)
        load = self.load(nginx)
        workers = self.workers(master)
        both = "-p", ",".join(map(str, workers))
        self.assertEqual(self.ask("/server.key"), 200)
        self.does("load", *both, EXAMPLES / "limit_opens.so", "deny=*.key")
        self.does("load", *both, EXAMPLES / "temp_opens.so", "mode=refuse", f"directories={self.folder}")
        self.does("load", *both, EXAMPLES / "count_opens.so")
        for first, second in (("limit_opens", "temp_opens"), ("temp_opens", "limit_opens")):
            for pid in workers:
                hooks = {hook["name"]: hook for hook in json.loads(self.does("hook", "list", "-p", pid, "--json"))["hooks"]}
                self.assertEqual([callback["module"] for callback in hooks["libc.so.6:open64"]["callbacks"]],
                                 [first, second])
            # In the order of loading, until another one is asked for.
            self.does("hook", "order", *both, "libc.so.6:open64", f"{second},{first}")
        before = sum(self.opened(pid, "opened") for pid in workers)
        self.assertEqual(self.ask("/server.key"), 403)  # limit_opens
        self.assertEqual(self.ask("/page"), 200)
        self.assertGreater(sum(self.opened(pid, "opened") for pid in workers), before)
        self.does("set", "-p", workers[0], "modules/limit_opens/enabled", "0")
        self.does("set", "-p", workers[1], "modules/limit_opens/enabled", "0")
        self.assertEqual(self.ask("/server.key"), 200)
        for name in ("limit_opens", "temp_opens", "count_opens"):
            reply = json.loads(self.does("unload", *both, name, "--json"))
            self.assertEqual([answer["result"] for answer in reply], ["unmapped"] * 2)
        for pid in workers:
            self.assertNotIn(":", self.does("hook", "list", "-p", pid))
        self.does("detach", *both)
        self.assertEqual(self.ask("/server.key"), 200)
        self.check(load)

    def test_nginx_workers_born_later(self):
        master = self.start_nginx()
        workers = self.workers(master)
        self.does("load", "-p", master.pid, MODULE)
        master.send_signal(signal.SIGHUP)
        born = self.workers(master, but=workers)
        load = self.load(nginx)
        for pid in born:  # it came with the fork
            self.assertEqual(json.loads(self.does("attach", "-p", pid, "--json"))["found"], "started")
            self.assertIn("plain", self.does("list", "-p", pid))
        self.does("unload", "-p", ",".join(map(str, [master.pid, *born])), "plain")
        self.check(load)

    def has_etag(self):
        """Asked of both workers, as it comes."""
        found = set()
        for _ in range(20):
            with connect(self.port) as link:
                link.sendall(b"GET /page HTTP/1.0\r\n\r\n")
                found.add(b"\netag:" in link.makefile("rb").read().lower())
        self.assertEqual(len(found), 1, "some workers send it, and some do not")
        return found.pop()

    def test_nginx_workers_born_later_are_patched(self):
        """Master and workers are patched; who is born afterwards has the patch, and can be addressed."""
        master = self.start_nginx()
        load = self.load(nginx)
        workers = self.workers(master)
        self.assertTrue(self.has_etag())
        self.does("apply", "--tree", master.pid, EXAMPLES / "nginx_etag.so")
        self.assertFalse(self.has_etag())
        # One dies and has a successor; then all are replaced.
        os.kill(workers[0], signal.SIGKILL)
        self.until(lambda: len(children(master.pid)) == 2 and workers[0] not in children(master.pid))
        self.assertFalse(self.has_etag())
        born = next(pid for pid in children(master.pid) if pid not in workers)
        self.assertIn("forked", next(line for line in self.does("ps").splitlines() if f" {born} " in f" {line} "))
        self.assertIn("ngx_http_set_etag", self.does("status", "-p", born))
        load.end()  # the killed worker's connections are lost
        master.send_signal(signal.SIGHUP)
        born = self.workers(master, but=[*workers, born])
        load = self.load(nginx)
        self.assertFalse(self.has_etag())
        self.does("revert", "-p", born[0], "nginx_etag")
        self.assertNotIn("nginx_etag", self.does("status", "-p", born[0]))
        self.assertIn("nginx_etag", self.does("status", "-p", born[1]))
        self.does("revert", "-p", f"{master.pid},{born[1]}", "nginx_etag")
        self.assertTrue(self.has_etag())
        self.does("detach", "--tree", master.pid)
        self.check(load)

    def until(self, condition):
        end = time.monotonic() + 20
        while not condition():
            self.assertLess(time.monotonic(), end)
            time.sleep(0.005)  # tidy: sleep-ok between two looks, bounded


if __name__ == "__main__":
    unittest.main()
