#!/usr/bin/env python3
"""Functions of a busy server are patched while a request sleeps in one of them: an act of `./run demo`.

The server sends text as if it were no text. A patch of two functions, which belong together, mends that;
a request that waits for a file sleeps in one of them, and holds the patch up. It is looked at, the patch
is reversed, applied again, and is complete once the request has had its answer: the old one, whole. Then a
second patch is stacked on the first, a third takes the place of both, and goes.

All the time clients send requests at a constant rate, and others compare each answer with what may come at
that moment: a type of one version beside a header of another is what must never be seen.

MOLT_DEMO_SVG (build/transition.svg) is where the picture of the transition goes.
"""

import contextlib
import http.client
import json
import os
import pathlib
import re
import subprocess
import tempfile
import threading
import time
import xml.etree.ElementTree

from stage import BIN, MODULES, ROOT, ask_molt, fail, molt, threads_of  # first: it says where the one below is

import packages  # noqa: E402

SVG = pathlib.Path(os.environ.get("MOLT_DEMO_SVG", ROOT / "build/transition.svg"))
RATE = 2000
ANSWERS = 500  # that are compared between two steps
CONNECTIONS = 8
PATIENCE_S = 20

# What a GET of a text is answered with: Content-Type and X-Content-Type-Options.
ORIGINAL = ("application/octet-stream", None)
TYPES = ("text/plain", "nosniff")  # text_types
LATIN1 = ("text/plain; charset=iso-8859-1", "nosniff")  # text_latin1 on top of it
UTF8 = ("text/plain; charset=utf-8", None)  # text_utf8 in place of both


def until(holds, what):
    """Until it holds, and what it then is."""
    deadline = time.monotonic() + PATIENCE_S
    while not (found := holds()):
        if time.monotonic() > deadline:
            fail(f"waited in vain for {what}")
        time.sleep(0.005)  # tidy: sleep-ok between two looks at another process
    return found


class Watch:
    """Compares each answer with those that may come."""

    def __init__(self, port):
        self.port = port
        self.allowed = {ORIGINAL}
        self.wrong = set()
        self.compared = 0  # by two threads: some may be missed

    def ask(self, state):
        link = state.setdefault("link", http.client.HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE_S))
        before = self.allowed
        link.request("GET", "/notes.txt")
        got = read_answer(link)
        if got not in before | self.allowed:
            self.wrong.add(got)
        self.compared += 1

    @contextlib.contextmanager
    def change(self, old, new):
        """Both may come meanwhile, and nothing but the new one afterwards."""
        self.allowed = {old, new}
        yield
        self.allowed = {new}


def read_answer(link, status=200):
    answer = link.getresponse()
    answer.read()
    if answer.status != status:
        raise RuntimeError(f"status {answer.status}, expected {status}")
    return answer.getheader("Content-Type"), answer.getheader("X-Content-Type-Options")


def once(port, method, path, status=200):
    link = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE_S)
    try:
        link.request(method, path, body=b"news\n" if method == "PUT" else None)
        return read_answer(link, status)
    finally:
        link.close()


class SleepingRequest:
    """Asks for a file that is not there yet."""

    def __init__(self, server):
        self.answer = self.failure = None
        asleep = self.sleepers(server.pid)
        self._thread = threading.Thread(target=self._ask, args=(server.port,), daemon=True)
        self._thread.start()
        # A worker waits for the file, which is a wait with a time-out; for work it waits without.
        until(lambda: self.failure or self.sleepers(server.pid) > asleep, "the request to sleep")

    def _ask(self, port):
        try:
            self.answer = once(port, "GET", f"/news.txt?wait={2 * PATIENCE_S}")
        except Exception as error:  # noqa: BLE001  what failed is the finding
            self.failure = error

    @staticmethod
    def sleepers(pid):
        """Threads in a futex wait that ends by itself."""
        count = 0
        for path in pathlib.Path(f"/proc/{pid}/task").glob("*/syscall"):
            with contextlib.suppress(OSError):
                words = path.read_text().split()
                count += words[0] == "202" and int(words[4], 16) != 0
        return count

    def is_over(self):
        return not self._thread.is_alive()

    def end(self):
        self._thread.join(PATIENCE_S)
        if self.answer is None:
            fail(f"the request that slept was not answered: {self.failure}")
        return self.answer


class Server:
    def __init__(self, folder):
        (folder / "notes.txt").write_text("a text\n")
        self.process = subprocess.Popen(
            [BIN / "http-files", "--root", folder, "--threads", str(2 * CONNECTIONS + 8)], stdout=subprocess.PIPE, text=True
        )
        words = self.process.stdout.readline().split()
        if words[:1] != ["ready"]:
            fail("the server does not start")
        self.port = int(words[2].split(":")[1])
        self.pid = self.process.pid

    def status(self):
        done = subprocess.run([BIN / "molt", "--json", "-p", str(self.pid), "status"], text=True, capture_output=True, check=True)
        return json.loads(done.stdout)

    def mapped(self):
        return {line.split()[-1] for line in pathlib.Path(f"/proc/{self.pid}/maps").read_text().splitlines() if "/" in line}

    def stop(self):
        """Ends when all requests are answered."""
        self.process.terminate()
        if self.process.wait(timeout=PATIENCE_S) != 0:
            fail(f"the server ended with {self.process.returncode}")


def molt_at(server, *words):
    words = ["-p", str(server.pid), *words]
    return ask_molt(*words, shown=[word.replace(f"{MODULES}/", "") for word in words])


def show(server, watch, expected):
    """One answer for the reader; and the clients see many."""
    got = once(server.port, "GET", "/notes.txt")
    print(f"  GET /notes.txt -> {got[0]}{', ' + got[1] if got[1] else ''}")
    if got != expected:
        fail(f"answered by {got}, expected {expected}")
    enough = watch.compared + ANSWERS
    until(lambda: watch.wrong or watch.compared >= enough, "answers")
    if watch.wrong:
        fail(f"answered by a mixture of versions, or by one whose time it is not: {watch.wrong}")


def apply_while_one_sleeps(server, watch):
    """Everybody has the new version but the request that sleeps in the old one."""
    watch.allowed = {ORIGINAL, TYPES}
    molt_at(server, "apply", "-v", "--no-wait", str(MODULES / "text_types.so"))

    def one_is_left():
        transition = server.status()["transition"]
        if transition is None:
            fail("nobody holds the patch up: the request that sleeps in compose_head() was overlooked")
        return transition["left"] == 1

    until(one_is_left, "all others to change over")
    watch.allowed = {TYPES}
    molt_at(server, "status")
    blocking = re.match(r"thread (\d+) .* http_files::compose_head\(", molt_at(server, "blocking"))
    if not blocking:
        fail("`molt blocking` does not name the thread that sleeps, and the function")
    states = [molt_at(server, "get", f"threads/{tid}/patch_state").strip() for tid in (blocking[1], server.pid)]
    if states != ["0", "1"]:
        fail(f"the states of the thread that sleeps and of another one are {states}, not 0 and 1")
    show(server, watch, TYPES)


def check_picture(server):
    """The history goes from all in the old version to all in the new one, with one asleep in between."""
    molt_at(server, "status", "--svg", str(SVG))
    tags = [element.tag.split("}")[1] for element in xml.etree.ElementTree.parse(SVG).iter()]
    if tags.count("polygon") != 3:
        fail(f"{SVG} does not show old, pending and new")
    history = server.status()["history"]
    moments = history["moments"]
    _, old, pending, new = moments[0]
    if history["patch"] != "text_types" or not history["over"] or new or pending or not old:
        fail(f"the history begins wrong: {history}")
    if moments[-1][1:] != [0, 0, old] or not any(m[1] == 1 and m[3] == old - 1 for m in moments):
        fail(f"the history does not show who held the patch up: {history}")
    print(f"  drawn: {SVG}")


def perform(server, watch):
    show(server, watch, ORIGINAL)
    print("\na request sleeps in compose_head(), until /news.txt is there")
    sleeping = SleepingRequest(server)
    apply_while_one_sleeps(server, watch)
    print("\nreversed, half-way")
    with watch.change(TYPES, ORIGINAL):
        molt_at(server, "revert", "-v", "text_types")
    show(server, watch, ORIGINAL)
    print("\napplied again; then the file comes")
    apply_while_one_sleeps(server, watch)
    if sleeping.is_over():
        fail(f"the request that sleeps was disturbed: {sleeping.failure or sleeping.answer}")
    once(server.port, "PUT", "/news.txt", 201)
    answer = sleeping.end()
    print(f"  GET /news.txt  -> {answer[0]}: as it began")
    if answer != ORIGINAL:
        fail(f"the request that slept was answered by a mixture of versions: {answer}")
    molt_at(server, "wait", "text_types", "--for", "patched")
    molt_at(server, "status")
    check_picture(server)

    print("\nstacked")
    with watch.change(TYPES, LATIN1):
        molt_at(server, "apply", "-v", str(MODULES / "text_latin1.so"))
    show(server, watch, LATIN1)
    molt_at(server, "status")
    print("\nreplaced, both in one step")
    with watch.change(LATIN1, UTF8):
        molt_at(server, "apply", "-v", str(MODULES / "text_utf8.so"))
    show(server, watch, UTF8)
    if [patch["name"] for patch in server.status()["patches"]] != ["text_utf8"]:
        fail("patches that were replaced are still there")
    molt_at(server, "unload", "-v", "text_types")
    molt_at(server, "unload", "-v", "text_latin1")
    print("\nreverted")
    with watch.change(UTF8, ORIGINAL):
        molt_at(server, "revert", "-v", "text_utf8")
    show(server, watch, ORIGINAL)


def main():
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        server = Server(folder)
        try:
            print(f"http-files: pid {server.pid}, {RATE} requests a second over {CONNECTIONS} connections")
            once(server.port, "GET", "/notes.txt")
            files = server.mapped()
            load = subprocess.Popen(
                [BIN / "molt-load-client", "--port", str(server.port), "--connections", str(CONNECTIONS), "--rate", str(RATE),
                 "GET /notes.txt"],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            )  # fmt: skip
            load.stdin.write("phase patches\n")
            load.stdin.flush()
            if load.stdout.readline() != "began patches\n":
                fail("the load client does not begin")
            watch = Watch(server.port)
            try:
                with packages.Load(watch.ask) as watching:
                    perform(server, watch)
            finally:
                answered, _ = load.communicate("stop\n", timeout=PATIENCE_S)
            print("\n" + "\n".join(line for line in answered.splitlines() if line.startswith("p")))
            if load.returncode != 0 or watching.failures:
                fail(f"requests failed: {answered} {watching.failures[:1]}")
            until(lambda: "molt-patch" not in threads_of(server.pid), "the patches' thread to end")
            if left := server.mapped() - files:
                fail(f"still mapped: {left}")
            if server.process.poll() is not None:
                fail("the server has died")
            print(f"pid {server.pid} still; {watching.done} answers compared, none of two versions; nothing is left in it\n")
            server.stop()
        finally:
            server.process.kill()
            server.process.wait()


main()
