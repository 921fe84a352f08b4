#!/usr/bin/env python3
"""steady_client.py PORT SECONDS: asks redis 500 times a second, whether or not it has answered in time
(one that waits for each answer would ask less while the server pauses, and hide that). Prints how many
answers there were, and how long the slowest took, from when it was due."""
import socket
import sys
import time

RATE = 500


def main(port, seconds):
    link = socket.create_connection(("127.0.0.1", port), timeout=10)
    link.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    stream = link.makefile("rb")
    begin = time.monotonic()
    slowest = 0.0
    total = int(RATE * seconds)
    for n in range(total):
        due = begin + n / RATE
        now = time.monotonic()
        if now < due:
            time.sleep(due - now)  # tidy: sleep-ok a constant rate is what this client is for
        link.sendall(b"*2\r\n$4\r\nECHO\r\n$8\r\n%08d\r\n" % n)
        answer = stream.readline() + stream.readline()
        if answer != b"$8\r\n%08d\r\n" % n:
            sys.exit(f"asked for {n}, and got {answer!r}")
        slowest = max(slowest, time.monotonic() - due)
    print(total, f"{slowest * 1000:.2f}ms")


main(int(sys.argv[1]), float(sys.argv[2]))
