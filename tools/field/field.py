#!/usr/bin/env python3
"""field.py [--molt PROGRAM] [--folder DIR] [--only PATTERN] [PACKAGE...]

Debian's own security fixes as live patches. For each security patch of a package, in the order of its
series: the tree as it was before that patch, built for real and started; a patch file of that one
diff; applied to the process under load, seen to take effect; the package's own tests against the
patched process; reverted, unloaded, and nothing left of it.

Everything lies in build/field; what is there already is not done again: a row that was applied stays, one
that was refused is asked again of another molt, one that failed is made anew. The result is a table, which
is in build/field/report.txt and report.json too. Exit 1: something was built wrongly, or failed.
"""

import argparse
import fcntl
import hashlib
import json
import pathlib
import re
import shutil
import subprocess
import sys
import time

import by_hand
import packages
import source

# What a hand-written callback could do something about, by the builder's words for it.
HEADING = f"{'package':15} {'patch':44} {'fns':>4} {'bytes':>7} {'build s':>7} {'cmp s':>6} {'ms':>7}  verdict"
BROKEN = ("failed", "wrong")
REFUSED = ("needs a callback", "refused")
BY_HAND = "applied with lines"
WANTS_CALLBACK = {
    "layout_changed", "data_changed", "data_resized", "variable_type_changed", "constructor_added", "constructor_changed",
}  # fmt: skip


def molt(program, *arguments, timeout=900, cwd=None, environment=None):
    return subprocess.run(
        [program, *arguments], text=True, capture_output=True, timeout=timeout, check=False, cwd=cwd, env=environment
    )


def memory_of(pid, address, size):
    with open(f"/proc/{pid}/mem", "rb") as memory:
        memory.seek(address)
        return memory.read(size)


def base_of(pid, path):
    """Where the file's first page is mapped."""
    for line in pathlib.Path(f"/proc/{pid}/maps").read_text().splitlines():
        part = line.split(None, 5)
        if len(part) == 6 and pathlib.Path(part[5]).name == pathlib.Path(path).resolve().name and part[2] == "00000000":
            return int(part[0].split("-")[0], 16)
    return 0


def entries_of(path, names):
    """Link-time addresses of functions; of names that occur once."""
    said = subprocess.run(["nm", str(path)], text=True, capture_output=True, check=False).stdout
    found = {}
    for line in said.splitlines():
        part = line.split()
        if len(part) == 3 and part[2] in names:
            found.setdefault(part[2], []).append(int(part[0], 16))
    return {name: addresses[0] for name, addresses in found.items() if len(addresses) == 1}


def is_executable(pid, address):
    """Is there code at this address?"""
    for line in pathlib.Path(f"/proc/{pid}/maps").read_text().splitlines():
        part = line.split(None, 2)
        begin, end = (int(bound, 16) for bound in part[0].split("-"))
        if "x" in part[1] and begin <= address < end:
            return True
    return False


class Field:
    def __init__(self, arguments):
        self.molt = str(pathlib.Path(arguments.molt).resolve())
        made_of = [pathlib.Path(self.molt), pathlib.Path(self.molt).parents[1] / "lib/libmolt.so.0"]
        self.tool = hashlib.sha256(b"".join(path.read_bytes() for path in made_of)).hexdigest()[:16]
        self.folder = pathlib.Path(arguments.folder).resolve()
        self.only = re.compile(arguments.only)
        self.again = arguments.again
        self.keep_refused = arguments.keep_refused
        self.rows = []
        self.locks = []
        self.environment = source.build_environment(self.folder)
        self.environment["XDG_CACHE_HOME"] = str(self.folder / "cache")
        (self.folder / "control").mkdir(parents=True, exist_ok=True)
        (self.folder / "control").chmod(0o700)

    def package(self, name):
        print(f"field: {name}: fetching", file=sys.stderr)
        package_source = source.Source(name, self.folder, packages.PACKAGES[name].source)
        lock = open(package_source.folder / "lock", "w", encoding="utf-8")  # noqa: SIM115  until the end
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise source.Missing("another field test works on it") from None
        self.locks.append(lock)
        tree = package_source.folder / "tree"
        built = package_source.folder / "built"
        what = packages.PACKAGES[name](built, package_source.folder / "run")
        package_source.unpack(tree)
        what.prepare(tree)
        for patch in package_source.series(tree):
            if package_source.is_security(patch) and self.only.search(patch):
                done = package_source.folder / "rows" / (pathlib.Path(patch).name + ".json")
                row = json.loads(done.read_text()) if done.exists() else None
                if row and self.is_final(row):
                    self.rows.append(row)
                else:
                    row = self.one(what, tree, built, patch, row if self.keep_refused else None)
                    done.parent.mkdir(exist_ok=True)
                    done.write_text(json.dumps(row, indent=1))
                    self.rows.append(row)
                print(self.text_of(self.rows[-1]), flush=True)
            source.apply_patch(tree, patch)

    def is_final(self, row):
        """Need it not be done again? What was refused is asked again of another molt."""
        if self.again:
            return False
        if row["verdict"] in ("applied", "no code"):
            return True
        if row["verdict"] == BY_HAND:
            written = by_hand.Written(row["patch"])
            return (row.get("words"), row["lines"]) == (written.words(), written.lines())
        if row["verdict"] in BROKEN or by_hand.Written(row["patch"]).exists:
            return False
        return row.get("tool") == self.tool or self.keep_refused

    @staticmethod
    def text_of(row):
        verdict = row["verdict"] if row["verdict"] != BY_HAND or row["lines"] else "applied with a word"
        return (
            f"{row['package']:15} {row['patch'][:44]:44} {row['functions']:4} {row['size']:7} {row['build_s']:7.1f} "
            f"{row['compare_s']:6.2f} {row['apply_ms']:7.1f}  {verdict}{': ' + row['why'] if row['why'] else ''}"
        )

    def bring_up(self, what, tree, built):
        """The built copy gets the tree's sources of now, and is built where the tree lies."""
        if not built.exists():
            shutil.copytree(tree, built, symlinks=True)
        else:
            for path in tree.rglob("*"):
                twin = built / path.relative_to(tree)
                if path.is_symlink() or not path.is_file():
                    continue
                if not twin.exists() or twin.read_bytes() != path.read_bytes():
                    twin.parent.mkdir(parents=True, exist_ok=True)
                    if path.suffix in (".c", ".h") or path.is_relative_to(tree / "debian") or not twin.exists():
                        shutil.copyfile(path, twin)
                        shutil.copymode(path, twin)
        source.build_in_place(built, tree, what.whole(), what.scratch.parent / "build.log", self.environment)

    def one(self, what, tree, built, patch, refused=None):
        """`refused`: the row of an earlier run, which is not asked for again."""
        row = dict(
            package=what.name, patch=pathlib.Path(patch).name, functions=0, size=0, build_s=0.0, compare_s=0.0,
            proven=0, compared=0, apply_ms=0.0, requests=0, verdict="failed", why="", names=[], notes=[], tool=self.tool,
        )  # fmt: skip
        try:
            print(f"field: {what.name}: {row['patch']}: building the program", file=sys.stderr)
            self.bring_up(what, tree, built)
            if refused and "refused" in refused:
                row.update(refused, verdict=REFUSED[0], why=refused["refused"])
            elif refused and refused["verdict"] in REFUSED:
                row.update(refused)
            else:
                self.build_and_apply(what, tree, built, patch, row)
            self.with_lines(what, tree, built, patch, row)
        except source.Missing as missing:
            row["why"] = str(missing)
        except (RuntimeError, OSError, subprocess.SubprocessError) as error:
            row["verdict"], row["why"] = "failed", str(error)[:300]
        return row

    def with_lines(self, what, tree, built, patch, row):
        """What was refused, with what a person has to write for it."""
        written = by_hand.Written(patch)
        if row["verdict"] not in REFUSED or not written.exists:
            return
        print(f"field: {what.name}: {row['patch']}: refused; with what was written for it", file=sys.stderr)
        row["refused"], row["kinds"] = row["why"], row.get("kinds", [])
        row.update(verdict="failed", why="", lines=written.lines(), words=written.words())
        diff = written.diff(tree, patch, what.scratch.parent / "by_hand")
        self.build_and_apply(what, tree, built, patch, row, diff, written.options())
        if row["verdict"] == "applied":
            row["verdict"] = BY_HAND
            row["why"] = f"{row['lines']} lines" if row["lines"] else ""
            row["why"] += " ".join(row["words"])
        elif row["verdict"] in (*REFUSED, "no code"):
            row["verdict"], row["why"] = "failed", f"with what was written for it: {row['why']}"

    def build_and_apply(self, what, tree, built, patch, row, diff=None, options=()):
        output = what.scratch.parent / "patches" / (row["patch"] + ".molt")
        output.parent.mkdir(exist_ok=True)
        targets = []
        for target in what.targets:
            targets += ["--target", str((built / target).resolve())]
        diff = diff or tree / "debian/patches" / patch
        done = molt(
            self.molt, "build", "--json", "--diff", str(diff), *targets, "--source", str(tree), "-o", str(output),
            "--description", f"Debian's {row['patch']}", *sum((["--cve", c] for c in sorted(set(re.findall(r"CVE-\d+-\d+", patch)))), []),
            *options, "--", *what.command(), cwd=tree, environment=self.environment, timeout=3600,
        )  # fmt: skip
        said = json.loads(done.stdout) if done.stdout.startswith("{") else {}
        row["notes"] = said.get("notes", [])
        row["build_s"] = round(said.get("new_s", 0) + said.get("old_s", 0), 2)
        row["compare_s"] = round(said.get("compare_s", 0), 3)
        row["compared"], row["proven"] = said.get("functions_compared", 0), said.get("functions_proven", 0)
        if done.returncode == 5:
            kinds = {refusal["kind"] for refusal in said.get("refusals", [])}
            row["why"] = "; ".join(refusal["text"] for refusal in said.get("refusals", [])) or done.stderr.strip()
            if kinds == {"not_compiled"}:
                # The package's build leaves it out: no program of Debian's has it.
                row["verdict"] = "no code"
                return
            row["verdict"] = "needs a callback" if kinds and kinds <= WANTS_CALLBACK else "refused"
            row["kinds"] = sorted(kinds)
            return
        if done.returncode != 0:
            row["why"] = done.stderr.strip().splitlines()[-1] if done.stderr.strip() else f"molt build: exit {done.returncode}"
            return
        row["names"] = [function["name"] for function in said["functions"]]
        row["functions"] = len(row["names"])
        if not row["functions"]:
            row["verdict"] = "no code"
            return
        row["size"] = output.stat().st_size
        what.start()
        try:
            self.apply(what, tree, output, said["functions"], row)
            if what.process.poll() is not None:
                row["verdict"], row["why"] = "wrong", f"the program ended with {what.process.returncode}"
        finally:
            what.stop()

    def ask(self, *arguments):
        return molt(self.molt, *arguments, environment=self.environment)

    def is_kept(self, pid, address, said, row):
        """Is memory of the patch there for good? What `revert` could not give back at once, and said why, `gc` frees later."""
        until = time.monotonic() + 30
        if is_executable(pid, address):
            row["notes"] = [*row.get("notes", []), f"given back by `molt gc`; `molt revert` said: {said.strip()}"]
        while is_executable(pid, address):
            if time.monotonic() > until:
                return True
            self.ask("gc", "-p", str(pid))
            time.sleep(0.5)
        return False

    def apply(self, what, tree, output, functions, row):
        pids = what.pids()
        everyone = sum((["-p", str(pid)] for pid in pids), [])
        name = None
        entries = []
        for pid in pids:
            for target in what.targets:
                path = what.built / target
                names = {f["name"] for f in functions if pathlib.Path(f["target"]).name.startswith(path.name.split(".so")[0])}
                base = base_of(pid, path)
                for address in entries_of(what.symbols(target), names).values():
                    if base:
                        entries.append((pid, base + address, memory_of(pid, base + address, 8)))
        if not entries:
            row["why"] = "none of the functions is where one could look whether it is replaced"
            return
        with packages.Load(what.ask) as load:
            began = time.monotonic()
            done = self.ask("apply", str(output), *everyone, "--json")
            row["apply_ms"] = round((time.monotonic() - began) * 1000, 1)
            if done.returncode != 0:
                row["verdict"] = "refused" if done.returncode == 5 else "failed"
                row["why"] = done.stderr.strip().splitlines()[0] if done.stderr.strip() else f"exit {done.returncode}"
                return
            for pid in pids:
                status = json.loads(self.ask("status", "-p", str(pid), "--json").stdout)
                patch = status["patches"][0]
                name = patch["name"]
                if not patch.get("enabled", True) or patch.get("transition", False):
                    row["why"] = f"its state is {patch}"
                    return
            code = {}
            for pid in pids:
                module = json.loads(self.ask("list", "-p", str(pid), "--json").stdout)["modules"][0]
                code[pid] = int(str(module["address"]), 0)
                if not is_executable(pid, code[pid]):
                    row["why"] = f"no code at {code[pid]:#x}, where the patch is said to be"
                    return
            unchanged = [address for pid, address, before in entries if memory_of(pid, address, 8) == before]
            if unchanged:
                row["verdict"], row["why"] = "wrong", f"{len(unchanged)} of {len(entries)} entries are as before"
                return
            failed = what.test(tree)
            done = self.ask("revert", name, *everyone)
            if done.returncode != 0:
                row["why"] = f"revert: {done.stderr.strip()}"
                return
            if failed:
                # Is it the patch, or do they fail here anyway?
                row["verdict"], row["why"] = "wrong", f"tests failed: {failed}"
                if without := what.test(tree):
                    row["verdict"], row["why"] = "failed", f"tests fail without the patch as well: {without}"
                return
            changed = [address for pid, address, before in entries if memory_of(pid, address, 8) != before]
            for pid in pids:
                status = json.loads(self.ask("status", "-p", str(pid), "--json").stdout)
                modules = json.loads(self.ask("list", "-p", str(pid), "--json").stdout)["modules"]
                kept = [hex(code[pid])] if self.is_kept(pid, code[pid], done.stderr, row) else []
                if status["patches"] or changed or modules or kept:
                    row["why"] = f"left behind: {status['patches'] or changed or modules or kept}"
                    return
        row["requests"] = load.done
        if load.failures:
            row["verdict"], row["why"] = "wrong", f"{len(load.failures)} requests failed: {load.failures[0]}"
        else:
            row["verdict"] = "applied"

    def report(self):
        """As text and JSON. Packages that are built otherwise than Debian does are counted apart."""
        summary = []
        wrong = [row for row in self.rows if row["verdict"] in BROKEN]
        for which, title in ((True, "as Debian builds them"), (False, "with what Debian leaves out")):
            rows = [row for row in self.rows if (packages.PACKAGES[row["package"]].source == "") == which]
            code = [row for row in rows if row["verdict"] != "no code"]
            applied = sum(row["verdict"] == "applied" for row in code)
            if code:
                helped = [row for row in code if row["verdict"] == BY_HAND]
                words = sum(not row["lines"] for row in helped)
                summary.append(
                    f"{title}: {len(rows)} patches, {len(code)} change the program's code, {applied + words} applied live with no "
                    f"line written by hand ({100 * (applied + words) / len(code):.1f} %; the goal is 95)"
                )
                if helped:
                    summary.append(
                        f"  {applied} of them as they are, {words} with a word on the command line (--accept, --leave-out, --beside); "
                        f"{len(helped) - words} more with lines of by_hand/"
                    )
        summary.append(f"{len(wrong)} wrong or failed")
        proven, compared = (sum(row.get(key, 0) for row in self.rows) for key in ("proven", "compared"))
        summary.append(f"{proven} of {compared} functions of all runs byte for byte those of the running file")
        print("\n" + "\n".join(summary))
        text = "\n".join([HEADING, *map(self.text_of, self.rows), "", *summary])
        (self.folder / "report.txt").write_text(text + "\n")
        (self.folder / "report.json").write_text(
            json.dumps({"schema": 1, "patches": self.rows, "summary": summary}, indent=1) + "\n"
        )
        return 1 if wrong else 0


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    root = pathlib.Path(__file__).resolve().parents[2]
    parser.add_argument("--molt", default=root / "build/bin/molt")
    parser.add_argument("--folder", default=root / "build/field")
    parser.add_argument("--only", default="", help="a pattern for names of patches")
    parser.add_argument("--again", action="store_true", help="also what was done before")
    parser.add_argument("--keep-refused", action="store_true", help="what another molt refused is not asked again")
    parser.add_argument("packages", nargs="*", default=list(packages.PACKAGES), metavar="PACKAGE")
    arguments = parser.parse_args()
    field = Field(arguments)
    print(HEADING)
    for name in arguments.packages:
        try:
            field.package(name)
        except source.Missing as missing:
            print(f"field: {name}: {missing}", file=sys.stderr)
            field.rows.append(dict(package=name, patch="-", functions=0, size=0, build_s=0, compare_s=0, apply_ms=0, verdict="failed", why=str(missing)))
    sys.exit(field.report())


if __name__ == "__main__":
    main()
