"""Debian's source packages: fetched, unpacked, and their patches one by one.

Package lists of our own: nothing of the system's is changed, and no package is installed from here.
"""

import os
import pathlib
import re
import shutil
import subprocess

MIRRORS = (
    "deb-src http://deb.debian.org/debian bookworm main",
    "deb-src http://deb.debian.org/debian-security bookworm-security main",
)
SECURITY = re.compile(r"CVE|security|HTTP2bomb|CV\.patch", re.IGNORECASE)


class Missing(Exception):
    """What is needed cannot be had here: one line for the user."""


def run(command, **options):
    options.setdefault("check", True)
    return subprocess.run(command, text=True, capture_output=True, **options)


def build_environment(folder):
    """What dpkg-buildpackage sets; tests and documentation left out."""
    jobs = os.environ.get("MOLT_JOBS") or str(os.cpu_count())
    environment = dict(os.environ)
    environment.update(
        DEB_BUILD_OPTIONS=f"nocheck nodoc parallel={jobs}",
        DEB_BUILD_MAINT_OPTIONS="hardening=+all",
        SOURCE_DATE_EPOCH="1700000000",
        LC_ALL="C.UTF-8",
    )
    environment.pop("CC", None)
    # Control sockets of these processes, and of no others on this machine.
    environment["MOLT_DIRECTORY"] = str(folder / "control")
    # A repository around build/field is not the package's.
    environment["GIT_CEILING_DIRECTORIES"] = str(folder)
    return environment


class Source:
    """One source package in build/field/NAME."""

    def __init__(self, name, folder, source=""):
        self.name = source or name
        self.folder = pathlib.Path(folder) / name
        self.folder.mkdir(parents=True, exist_ok=True)

    def _apt(self):
        lists = self.folder.parent / "apt"
        (lists / "lists" / "partial").mkdir(parents=True, exist_ok=True)
        sources = lists / "src.list"
        sources.write_text("\n".join(MIRRORS) + "\n")
        return [
            "-o", f"Dir::Etc::sourcelist={sources}",
            "-o", "Dir::Etc::sourceparts=-",
            "-o", f"Dir::State::lists={lists}/lists",
            "-o", "APT::Sandbox::User=root",
        ]  # fmt: skip

    def fetch(self):
        """The newest version that the mirrors still have; returns its .dsc."""
        found = sorted(self.folder.glob("*.dsc"))
        if found:
            return found[-1]
        options = self._apt()
        marker = self.folder.parent / "apt" / "updated"
        if not marker.exists():
            done = run(["apt-get", *options, "update"], check=False)
            if done.returncode != 0:
                raise Missing(f"no package lists: {done.stderr.strip().splitlines()[-1]}")
            marker.touch()
        said = run(["apt-cache", *options, "showsrc", self.name]).stdout
        versions = re.findall(r"^Version: (.*)$", said, re.MULTILINE)
        ordered = []
        for version in versions:
            place = 0
            while place < len(ordered) and (
                run(["dpkg", "--compare-versions", version, "lt", ordered[place]], check=False).returncode == 0
            ):
                place += 1
            ordered.insert(place, version)
        for version in ordered:
            done = run(
                ["apt-get", *options, "source", "--download-only", f"{self.name}={version}"],
                cwd=self.folder, check=False,
            )  # fmt: skip
            found = sorted(self.folder.glob("*.dsc"))
            if done.returncode == 0 and found:
                return found[-1]
            for part in found:
                part.unlink()
        raise Missing(f"the mirrors have no version of {self.name} that can be fetched")

    def unpack(self, into):
        """The sources as upstream has them, with debian/ beside; no patch applied."""
        into = pathlib.Path(into)
        shutil.rmtree(into, ignore_errors=True)
        run(["dpkg-source", "--no-check", "--skip-patches", "-x", str(self.fetch()), str(into)])

    @staticmethod
    def series(tree):
        patches = []
        for line in (pathlib.Path(tree) / "debian/patches/series").read_text().splitlines():
            name = line.split("#")[0].split()
            if name:
                patches.append(name[0])
        return patches

    @staticmethod
    def is_security(name):
        return SECURITY.search(name) is not None


def apply_patch(tree, name):
    """As dpkg-source does it: -p1, no fuzz."""
    patch = pathlib.Path(tree) / "debian/patches" / name
    done = run(["patch", "-p1", "-s", "-f", "-F0", "--no-backup-if-mismatch", "-d", str(tree), "-i", str(patch)], check=False)
    if done.returncode != 0:
        raise Missing(f"{name} does not apply: {(done.stdout + done.stderr).strip()[-200:]}")


def build_in_place(copy, tree, command, log, environment):
    """Builds a copy of the tree at the tree's own path, as a package builder that has it there would."""
    script = 'mount --bind "$1" "$2" && cd "$2" && shift 2 && exec "$@"'
    with open(log, "w", encoding="utf-8") as out:
        done = subprocess.run(
            ["unshare", "--mount", "sh", "-c", script, "sh", str(copy), str(tree), *command],
            stdin=subprocess.DEVNULL, stdout=out, stderr=subprocess.STDOUT, env=environment, check=False,
        )  # fmt: skip
    if done.returncode != 0:
        raise Missing(f"the package does not build; see {log}")
