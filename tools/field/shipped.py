#!/usr/bin/env python3
"""shipped.py [--report PROGRAM] [--folder DIR] [PACKAGE...]

How much of what Debian ships is byte for byte what its source makes here: the package of the very version of the
source is fetched, the source is built by its own rules with the changelog's date, and each function of each object is
looked for in the file of the package, stripped as it is. A line for each; exit 1 if a function differs.
"""

import argparse
import os
import pathlib
import re
import subprocess
import sys

import packages
import source

FILES = {
    "redis": ("redis-tools", "usr/bin/redis-check-rdb"),  # redis-server is a link to it
    "memcached": ("memcached", "usr/bin/memcached"),
    "curl": ("libcurl4", "usr/lib/x86_64-linux-gnu/libcurl.so.4"),
    "nginx": ("nginx", "usr/sbin/nginx"),
}


def said(*words, **options):
    return subprocess.run([*map(str, words)], text=True, capture_output=True, check=True, **options).stdout.strip()


def fetch(package, version, folder):
    """The package's files; Missing if the mirrors have another version."""
    folder.mkdir(exist_ok=True)
    if not list(folder.glob("*.deb")):
        done = source.run(["apt-get", "-o", "APT::Sandbox::User=root", "download", f"{package}={version}"], cwd=folder, check=False)
        if done.returncode != 0:
            raise source.Missing(f"the mirrors do not have {package} {version}, which is the source's version")
    said("dpkg-deb", "-x", next(folder.glob("*.deb")), folder / "files")
    return folder / "files"


def compare(name, folder, report):
    package = source.Source(name, folder)
    tree = package.folder / "shipped"
    stamp = package.folder / "shipped.built"
    if not stamp.exists():
        said("rm", "-rf", tree)
        said("dpkg-source", "--no-check", "-x", package.fetch(), tree)
    version = said("dpkg-parsechangelog", "-l", tree / "debian/changelog", "-SVersion")
    binary, path = FILES[name]
    file = fetch(binary, version, package.folder / "package") / path
    if not stamp.exists():
        environment = source.build_environment(folder)
        environment["SOURCE_DATE_EPOCH"] = said("dpkg-parsechangelog", "-l", tree / "debian/changelog", "-STimestamp")
        what = packages.PACKAGES[name](tree, package.folder / "run")
        log = package.folder / "shipped.log"
        with open(log, "w", encoding="utf-8") as out:
            done = subprocess.run(what.whole(), cwd=tree, env=environment, stdin=subprocess.DEVNULL, stdout=out, stderr=subprocess.STDOUT, check=False)
        if done.returncode != 0:
            raise source.Missing(f"the package does not build; see {log}")
        stamp.touch()
    objects = [str(one) for one in sorted(tree.rglob("*.o"))]
    done = subprocess.run([report, str(file), *objects], text=True, capture_output=True, check=False)
    lines = done.stdout.strip().splitlines() or [done.stderr.strip()]
    print(f"{name} {version}: {lines[-1]}")
    for line in lines[:-1]:
        print(f"    {line}")
    return int(re.search(r"differs (\d+)", lines[-1]).group(1)) if "differs" in lines[-1] else 1


def main():
    root = pathlib.Path(__file__).resolve().parents[2]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--report", default=root / "build/bin/placement_report")
    parser.add_argument("--folder", default=root / "build/field")
    parser.add_argument("packages", nargs="*", default=list(FILES), metavar="PACKAGE")
    arguments = parser.parse_args()
    differing = 0
    for name in arguments.packages:
        try:
            differing += compare(name, pathlib.Path(arguments.folder).resolve(), os.fspath(arguments.report))
        except source.Missing as missing:
            print(f"{name}: not compared: {missing}")
    sys.exit(1 if differing else 0)


if __name__ == "__main__":
    main()
