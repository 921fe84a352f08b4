"""What a person has to write for the patches that change what objects in memory look like.

by_hand/NAME.toml says what becomes of Debian's diff: files that it leaves alone (drop), and what stands
there instead (edit: a pattern of the new text, what is put in its place, and how often); types that
`--accept` lets through, files and types for `--leave-out`, types for `--beside`. by_hand/NAME.cpp is for `--callbacks`. Nothing of a package's is in them but
names.
"""

import pathlib
import re
import shutil
import subprocess
import tomllib

FOLDER = pathlib.Path(__file__).resolve().parent / "by_hand"


class Written:
    """The lines for one patch; `exists` is False for those that need none."""

    def __init__(self, patch):
        name = re.sub(r"\.patch$", "", pathlib.Path(patch).name)
        self.toml = FOLDER / f"{name}.toml"
        self.callbacks = FOLDER / f"{name}.cpp"
        self.exists = self.toml.exists()
        self.what = tomllib.loads(self.toml.read_text()) if self.exists else {}

    def lines(self):
        """How many lines of code that is."""
        texts = [edit["put"] for edit in self.what.get("edit", [])]
        if self.callbacks.exists():
            texts.append(self.callbacks.read_text())
        lines = [line.strip() for text in texts for line in text.splitlines()]
        return sum(bool(line) and not line.startswith("//") for line in lines)

    def words(self):
        """Of the command line."""
        return [f"--{option}={name}" for option in ("accept", "leave-out", "beside") for name in self.what.get(option.replace("-", "_"), [])]

    def options(self):
        return self.words() + (["--callbacks", str(self.callbacks)] if self.callbacks.exists() else [])

    def diff(self, tree, patch, scratch):
        """Debian's diff as a person would change it, in a file."""
        original = pathlib.Path(tree) / "debian/patches" / patch
        if not self.what.get("edit") and not self.what.get("drop"):
            return original
        shutil.rmtree(scratch, ignore_errors=True)
        files = set(re.findall(r"^\+\+\+ [^/\s]+/(\S+)", original.read_text(), re.MULTILINE))
        for side in ("a", "b"):
            for file in files:
                if (pathlib.Path(tree) / file).exists():
                    (scratch / side / file).parent.mkdir(parents=True, exist_ok=True)
                    shutil.copyfile(pathlib.Path(tree) / file, scratch / side / file)
        subprocess.run(["patch", "-p1", "-s", "-f", "-F0", "--no-backup-if-mismatch", "-d", str(scratch / "b"), "-i", str(original)], check=True)
        for file in self.what.get("drop", []):
            shutil.copyfile(scratch / "a" / file, scratch / "b" / file)
        for edit in self.what.get("edit", []):
            path = scratch / "b" / edit["file"]
            text, count = re.subn(edit["find"], edit["put"], path.read_text())
            if count != edit.get("times", 1):
                raise RuntimeError(f"{self.toml.name}: {edit['find']!r} is there {count} times")
            path.write_text(text)
        done = subprocess.run(["diff", "-ruN", "a", "b"], cwd=scratch, text=True, capture_output=True, check=False)
        result = scratch / "by_hand.patch"
        result.write_text(done.stdout)
        return result
