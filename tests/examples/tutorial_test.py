#!/usr/bin/env python3
"""Does what a reader of a tutorial does, and compares what the tutorial says with what happens.

usage: tutorial_test.py TUTORIAL.md SOURCE_DIR BUILD_DIR

    **`name`**   alone on a line: the code block that follows is written to that file
    ```console   lines that begin with "$ " are typed into one shell; the lines behind each are what
                 it must print, with "..." for any text. What only looks is looked at again until it
                 shows that, for some seconds: the reader is slower than this test.

Every code block must be of one of these kinds. It all happens in a new home folder that is removed
in the end, with the source tree as the first working folder, where build/release means BUILD_DIR.
"""
import os
import pathlib
import re
import signal
import subprocess
import sys
import tempfile
import time

LOOKS_ONLY = re.compile(r"(tail|cat|grep|molt( \S+)*? (list|info|get|ps|events|tree))\b")
PATIENCE_S = 20


def blocks(text):
    """Yields (line, kind or file name, content) of every fenced block."""
    lines = text.split("\n")
    at, name = 0, None
    while at < len(lines):
        title = re.fullmatch(r"\*\*`([^`]+)`\*\*", lines[at])
        fence = re.fullmatch(r"```(\w*)", lines[at])
        if fence:
            end = lines.index("```", at + 1)
            kind = fence[1] if fence[1] == "console" else name
            assert kind, f"line {at + 1}: a block that is neither a file nor typed into a console"
            yield at + 1, kind, "\n".join(lines[at + 1:end]) + "\n"
            at, name = end, None
        elif title:
            name = title[1]
        elif lines[at].strip():
            name = None
        at += 1


def typed(content):
    """Yields (command, expected output) of a console block."""
    for part in re.split(r"^\$ ", content, flags=re.M)[1:]:
        lines = part.split("\n")
        end = 0
        while lines[end].endswith("\\"):
            end += 1
        yield "\n".join(lines[:end + 1]), "\n".join(lines[end + 1:])


class Shell:
    """One bash that keeps its variables, its folder and its background processes."""

    MARK = "-- end of output --"

    def __init__(self, folder, home):
        environment = dict(os.environ, HOME=home, PS1="", TERM="dumb")
        self.process = subprocess.Popen(
            ["bash", "--norc"], cwd=folder, env=environment, text=True, start_new_session=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)

    def run(self, command):
        self.process.stdin.write(f"{command}\necho '{self.MARK}'\n")
        self.process.stdin.flush()
        output = []
        for line in self.process.stdout:
            if line.endswith(self.MARK + "\n"):
                output.append(line[:-len(self.MARK) - 1])
                return "".join(output)
            output.append(line)
        raise SystemExit(f"the shell ended after `{command}`: {''.join(output)}")

    def close(self):
        # Its own session, hence its own process group: nothing outlives the test.
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


def matches(expected, output):
    pattern = ".*".join(re.escape(part) for part in expected.strip().split("..."))
    return re.fullmatch(pattern, output.strip(), flags=re.S)


def main():
    tutorial, source, build = map(os.path.abspath, sys.argv[1:4])
    commands = files = 0
    with tempfile.TemporaryDirectory() as home:
        shell = Shell(source, home)
        try:
            for line, kind, content in blocks(pathlib.Path(tutorial).read_text(encoding="utf-8")):
                if kind != "console":
                    folder = pathlib.Path(shell.run("pwd").strip())
                    assert folder.is_relative_to(home), f"line {line}: would write to {folder}"
                    (folder / kind).write_text(content, encoding="utf-8")
                    files += 1
                    continue
                for command, expected in typed(content):
                    run = command.replace("build/release", build)
                    deadline = time.monotonic() + PATIENCE_S
                    output = shell.run(run)
                    while not matches(expected, output) and LOOKS_ONLY.match(run) \
                            and time.monotonic() < deadline:
                        output = shell.run(run)
                    commands += 1
                    print(f"$ {command}\n{output}", end="", flush=True)
                    if not matches(expected, output):
                        raise SystemExit(f"{tutorial}:{line}: `{command}` should have printed:\n"
                                         f"{expected}")
            shell.run("wait")  # a tutorial that leaves a program running hangs here
        finally:
            shell.close()
    assert commands and files
    print(f"{commands} commands and {files} files of the tutorial do what it says")


if __name__ == "__main__":
    main()
