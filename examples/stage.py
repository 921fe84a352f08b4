"""What the acts of `./run demo` that are written in Python share."""

import os
import pathlib
import subprocess
import sys
import time

ROOT = pathlib.Path(__file__).resolve().parents[1]
BIN = pathlib.Path(os.environ.get("MOLT_BIN", ROOT / "build/bin")).resolve()
MODULES = pathlib.Path(os.environ.get("MOLT_LIB", ROOT / "build/lib")).resolve() / "molt/examples"

sys.path.insert(0, str(ROOT / "tools/field"))


def fail(text):
    sys.exit(f"demo: FAIL: {text}")


def ask_molt(*words, shown=None, **options):
    """Shown with its answer, which is returned; must succeed."""
    print(f"$ molt {' '.join(shown or words)}", flush=True)
    done = subprocess.run([BIN / "molt", *words], text=True, capture_output=True, check=False, **options)
    if done.returncode != 0:
        fail(f"molt {words[0]}: {done.stderr.strip()}")
    for line in done.stdout.rstrip().splitlines():
        print(f"  {line}", flush=True)
    return done.stdout


def molt(*words, **options):
    """How long it took."""
    began = time.monotonic()
    ask_molt(*words, **options)
    return time.monotonic() - began


def threads_of(pid):
    """Their names."""
    return [path.read_text().strip() for path in pathlib.Path(f"/proc/{pid}/task").glob("*/comm")]
