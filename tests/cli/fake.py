"""A process that speaks the control protocol from a script, and the `molt` program run against it.

A script maps a method to what the process does when asked: one of
    {"reply": PARAMETERS}       {"error": PARAMETERS}       {"stream": [PARAMETERS, ...]}
    {"raw": TEXT, "close": BOOL}    {"trickle": PARAMETERS}     {"hang": true}     {"die": true}
"raw" is sent as it is; a "close" of true closes the connection behind it. What the process was asked
is kept: Fake.requests().
"""
import contextlib
import itertools
import json
import os
import socket
import subprocess
import sys
import tempfile
import threading
import unittest
from pathlib import Path

MOLT = str(Path(os.environ.get("MOLT_BIN", "build/bin")) / "molt")


# ---- The process's side -------------------------------------------------------------------------

def message(fields):
    return json.dumps(fields).encode() + b"\0"


def answer(connection, behaviour):
    if "reply" in behaviour:
        connection.sendall(message({"parameters": behaviour["reply"]}))
    elif "error" in behaviour:
        connection.sendall(message({"error": "molt.Error", "parameters": behaviour["error"]}))
    elif "stream" in behaviour:
        for parameters in behaviour["stream"]:
            connection.sendall(message({"parameters": parameters}))
        connection.close()
    elif "trickle" in behaviour:
        for byte in message({"parameters": behaviour["trickle"]}):
            connection.sendall(bytes([byte]))
    elif "raw" in behaviour:
        connection.sendall(behaviour["raw"].encode("latin-1"))
        if behaviour.get("close"):
            connection.close()
    elif "die" in behaviour:
        os._exit(1)


def converse(connection, number, script, log):
    received = b""
    while True:
        data, descriptors, _, _ = socket.recv_fds(connection, 65536, 4)
        if not data:
            return
        received += data
        if not received.endswith(b"\0"):
            continue
        request = json.loads(received[:-1])
        request["connection"] = number
        received = b""
        if descriptors:
            request["file"] = os.pread(descriptors[0], 4096, 0).decode("latin-1")
        log(request)
        # A list holds one behaviour for each request of that method. Others ask as well: whoever runs `molt ps`.
        behaviour = script.get(request["method"], {"hang": True})
        answer(connection, behaviour.pop(0) if isinstance(behaviour, list) else behaviour)


def serve(script):
    folder = Path(os.environ["MOLT_DIRECTORY"], "molt", str(os.getpid()))
    folder.mkdir(parents=True)
    if "comm" in script:
        Path("/proc/self/comm").write_text(script["comm"], encoding="ascii")
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(folder / "control"))
    if script.pop("deaf", False):
        os.execvp("cat", ["cat"])  # the same pid, and nobody listens
    listener.listen()

    lock = threading.Lock()

    def log(line):
        with lock:
            print(json.dumps(line), flush=True)

    log({"ready": True})
    for number in itertools.count():
        connection, _ = listener.accept()
        threading.Thread(target=serve_one, args=(connection, number, script, log), daemon=True).start()


def serve_one(connection, number, script, log):
    with contextlib.suppress(OSError):  # molt may have given up on it
        converse(connection, number, script, log)


# ---- The test's side ----------------------------------------------------------------------------

class Fake:
    def __init__(self, directory, script):
        self.process = subprocess.Popen(
            [sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            env={**os.environ, "MOLT_DIRECTORY": directory})
        self.pid = str(self.process.pid)
        self.process.stdin.write(json.dumps(script) + "\n")
        self.process.stdin.flush()
        if not script.get("deaf"):
            self.process.stdout.readline()

    def requests(self):
        """What it was asked until now; ends the process."""
        self.process.kill()
        return [json.loads(line) for line in self.process.stdout]

    def close(self):
        self.process.kill()
        self.process.wait()
        self.process.stdin.close()
        self.process.stdout.close()


class MoltTest(unittest.TestCase):
    maxDiff = None

    def setUp(self):
        scratch = tempfile.TemporaryDirectory()
        self.addCleanup(scratch.cleanup)
        self.directory = scratch.name

    def fake(self, script):
        process = Fake(self.directory, script)
        self.addCleanup(process.close)
        return process

    def file(self, name, content="a module"):
        path = Path(self.directory, name)
        path.write_text(content)
        return str(path)

    def molt(self, *arguments, code=0):
        """Runs it; expects the exit code; gives stdout and stderr."""
        done = subprocess.run([MOLT, *arguments], capture_output=True, text=True, timeout=50,
                              env={**os.environ, "TZ": "UTC"})
        self.assertEqual(done.returncode, code, f"{arguments}:\n{done.stdout}{done.stderr}")
        return done.stdout, done.stderr

    def quiet(self, *arguments):
        self.assertEqual(self.molt(*arguments), ("", ""))

    def output(self, *arguments):
        out, err = self.molt(*arguments)
        self.assertEqual(err, "")
        return out

    def complaint(self, *arguments, code):
        """The one line of a verb that could not."""
        out, err = self.molt(*arguments, code=code)
        self.assertEqual(out, "")
        self.assertRegex(err, r"\Amolt: [^\n]+\n\Z")
        return err[len("molt: "):-1]

    def json(self, *arguments, code=0):
        return json.loads(self.molt(*arguments, "--json", code=code)[0])

    def asked(self, process, method):
        """The parameters of the one request for that method."""
        requests = [one for one in process.requests() if one["method"] == method]
        self.assertEqual(len(requests), 1)
        return requests[0]["parameters"]


if __name__ == "__main__":
    serve(json.loads(sys.stdin.readline()))
