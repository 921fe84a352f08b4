#!/usr/bin/env python3
"""A hole in redis, closed while it runs: `./run demo` begins with this act.

Redis as Debian's package had it before CVE-2024-51741 was fixed is built from source and started. An
access rule without rights, `%`, is a syntax error that this redis takes for a rule; whoever lists the
users then ends the server. The harmless half of that is asked: is the rule accepted? Under load, the fix
is built from Debian's own diff and applied; the same question is asked again; the fix is taken back.

Built once; what is in build/field is used again.
"""

import os
import pathlib
import subprocess

from stage import ROOT, fail, molt, threads_of  # first: it says where the two below are

import packages  # noqa: E402
import source  # noqa: E402

FOLDER = ROOT / "build/field/demo"
FIX = "0002-Fix-Read-Write-key-pattern-selector-CVE-2024-51741-1.patch"


def command():
    return ["make", "-s", "-C", "src", "MALLOC=libc", "redis-server"]


def prepare(environment):
    """The tree before the fix, and the program built from it."""
    package = source.Source("redis", FOLDER)
    tree = package.folder / "tree"
    if not (package.folder / "ready").exists():
        print("fetching and building redis as Debian had it before the fix; once", flush=True)
        package.unpack(tree)
        for patch in package.series(tree):
            if patch == FIX:
                break
            source.apply_patch(tree, patch)
        with open(package.folder / "build.log", "w", encoding="utf-8") as log:
            done = subprocess.run(command(), cwd=tree, env=environment, stdout=log, stderr=log, check=False)
        if done.returncode != 0:
            fail(f"redis does not build; see {package.folder}/build.log")
        (package.folder / "ready").touch()
    return package, tree


def ask(port):
    """Is the rule without rights taken? Its user goes away again at once, before anybody looks."""
    done = subprocess.run(
        ["redis-cli", "-p", str(port)], input="ACL SETUSER probe %\nACL DELUSER probe\n", text=True, capture_output=True, check=True
    )
    answer = done.stdout.splitlines()[0]
    is_open = answer == "OK"
    print(f"  ACL SETUSER probe %  ->  {answer[:60]}   {'the hole is open' if is_open else 'closed'}")
    return is_open


def main():
    environment = source.build_environment(FOLDER)
    environment["XDG_CACHE_HOME"] = str(FOLDER / "cache")
    # For the server and for every molt below.
    os.environ["MOLT_DIRECTORY"] = environment["MOLT_DIRECTORY"]
    pathlib.Path(environment["MOLT_DIRECTORY"]).mkdir(parents=True, exist_ok=True)
    pathlib.Path(environment["MOLT_DIRECTORY"]).chmod(0o700)
    try:
        package, tree = prepare(environment)
    except source.Missing as missing:
        print(f"demo: this act is left out: {missing}")
        return
    redis = packages.Redis(tree, package.folder / "run")
    redis.start()
    pid = redis.process.pid
    print(f"redis-server 7.0.15 of Debian, before CVE-2024-51741: pid {pid}, under load")
    patch = package.folder / "fix.molt"
    try:
        with packages.Load(redis.ask) as load:
            if not ask(redis.port):
                fail("the hole is not there")
            took = molt(
                "build", "--diff", str(tree / "debian/patches" / FIX), "--target", str(tree / "src/redis-server"),
                "--source", str(tree), "--cve", "CVE-2024-51741", "--patch-name", "cve-2024-51741", "-o", str(patch), "-q",
                "--", *command(), cwd=tree, env=environment,
                shown=["build", "--diff", "CVE-2024-51741.patch", "--target", "src/redis-server", "-o", "fix.molt", "--", "make"],
            )  # fmt: skip
            print(f"  {took:.1f} s")
            took = molt("apply", str(patch), "-p", str(pid), shown=["apply", "fix.molt", "-p", str(pid)])
            print(f"  {1000 * took:.0f} ms")
            molt("status", "-p", str(pid))
            if ask(redis.port):
                fail("the hole is still open")
            molt("revert", "cve-2024-51741", "-p", str(pid))
            if not ask(redis.port):
                fail("the fix is still in")
            molt("detach", "-p", str(pid))
        if load.failures:
            fail(f"{len(load.failures)} requests failed: {load.failures[0]}")
        if redis.process.poll() is not None:
            fail("redis has ended")
        if any(name.startswith("molt") for name in threads_of(pid)):
            fail("a thread of Molt is left")
        print(f"pid {pid} still; {load.done} requests answered meanwhile, none failed; nothing is left in it\n")
    finally:
        redis.stop()


main()
