#!/usr/bin/env python3
"""The example that does everything wrong is found out: before loading by `molt check`, while it is
loaded by `molt audit`, and by `molt unload`, which leaves it resident with each reason named. Its host
goes on, and what the module left behind still works.

usage: everything_wrong_test.py HOST MOLT MODULE"""

import json
import os
import signal
import subprocess
import sys
import tempfile

host, molt, module = sys.argv[1:]
failures = []


def expect(holds, what):
    print("ok" if holds else "FAILED", what)
    if not holds:
        failures.append(what)


def run(*arguments, code=0):
    done = subprocess.run([molt, *arguments], capture_output=True, text=True, timeout=60, check=False)
    expect(done.returncode == code, f"molt {' '.join(arguments)} answers {code}: {done.stderr}")
    return done


def has(texts, *words):
    return any(all(word in text for word in words) for text in texts)


# What is found in memory while the module is there, and again when it is to go.
REASONS = [
    ("thread", ["[heap] block of ", "_State_impl", "vtable"]),
    ("callback", ["libstdc++.so", "on_terminate", "+0x0 (callback)"]),
    ("signal handler", ["handler of SIGUSR2", "on_signal", "+0x0 (callback)"]),
    ("timer", ["[heap] block of ", "on_timer", "+0x0 (callback)"]),
]

checked = run("check", module, code=5).stderr
for what in ["thread_local object", "STB_GNU_UNIQUE symbol", "regex"]:
    expect(what in checked, f"check names: {what}")

with tempfile.TemporaryDirectory() as directory:
    os.environ["MOLT_DIRECTORY"] = directory
    with subprocess.Popen([host], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            expect(process.stdout.readline() == "ready\n", "the host is ready")
            pid = str(process.pid)
            run("-p", pid, "load", module)

            audit = json.loads(run("-p", pid, "--json", "audit", "everything_wrong").stdout)
            found = [f"{p['where']} -> {p['target']} ({p['looks']})" for p in audit["pointers"]]
            for name, words in REASONS:
                expect(has(found, *words), f"audit names the {name}")
            for text in found:
                print("   ", text)
            expect(not has([p["owner"] for p in audit["pointers"]], "libmolt"),
                   "what Molt itself knows the module by is not shown")

            unload = run("-p", pid, "--json", "unload", "everything_wrong")
            reply = json.loads(unload.stdout)
            expect(reply["result"] == "resident", f"it stays resident: {reply['result']}")
            expect("pointers left" in reply["reason"], "because of pointers")
            for what in ["thread_local object", "STB_GNU_UNIQUE symbol"]:
                expect(what in reply["reason"], f"unload names: {what}")
            expect("memory stays" in unload.stderr, f"a line says that it stays: {unload.stderr}")

            events = json.loads(run("-p", pid, "--json", "events").stdout)["events"]
            texts = [e["text"] for e in events]
            for name, words in REASONS:
                expect(has(texts, "pointer left", *words), f"the log of unload names the {name}")
            for what in ["thread_local object", "STB_GNU_UNIQUE symbol"]:
                expect(has(texts, "cannot be unmapped once loaded", what), f"load names: {what}")

            listed = run("-p", pid, "list").stdout
            expect("everything_wrong" in listed and "resident" in listed, "list shows it")
            kept = json.loads(run("-p", pid, "--json", "gc").stdout)["kept"]
            expect(has([k["reason"] for k in kept], "pointers left"), "gc keeps it")

            audit = json.loads(run("-p", pid, "--json", "audit", "everything_wrong").stdout)
            again = [f"{p['where']} -> {p['target']} ({p['looks']})" for p in audit["pointers"]]
            for name, words in REASONS:
                expect(has(again, *words), f"audit of what is left in memory names the {name}")

            nodes = json.loads(run("-p", pid, "--json", "tree", "resident").stdout)["nodes"]
            run("-p", pid, "audit", nodes[1]["path"].split("/")[1])

            # All that it left behind is alive.
            process.send_signal(signal.SIGUSR2)
            run("-p", pid, "list")
            expect(process.poll() is None, "its host goes on")
        finally:
            process.stdin.close()
            process.wait(timeout=20)
    expect(process.returncode == 0, f"the host ended by itself: {process.returncode}")

print(f"{len(failures)} failures")
sys.exit(1 if failures else 0)
