"""Runs one of tools/ on files planted in a folder of their own."""
import os
import subprocess
import sys
import tempfile

TOOLS = os.path.abspath(sys.argv.pop(1))


def run(tool: str, files: dict) -> tuple:
    """(exit code, lines printed) of `tool` with all planted files as its arguments."""
    with tempfile.TemporaryDirectory() as folder:
        for path, text in files.items():
            path = os.path.join(folder, path)
            os.makedirs(os.path.dirname(path), exist_ok=True)
            with open(path, "w", encoding="utf-8") as file:
                file.write(text)
        done = subprocess.run([os.path.join(TOOLS, tool), *files], cwd=folder, text=True,
                              stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False)
        return done.returncode, done.stdout.splitlines()
