#!/usr/bin/env python3
"""Links of Markdown files to files and headings of this tree. Usage: check_links.py FILE...

Prints `file:line: why` for each broken one; exit code 1 if there is one. Links to the net are not
followed: they would fail for reasons that are not ours.
"""
import os
import re
import sys

# Only the end of a link: its text may hold an image, which is a link of its own.
LINK = re.compile(r"\]\(\s*<?([^)\s>]+)>?(?:\s+\"[^\"]*\")?\s*\)")
DEFINITION = re.compile(r"^ {0,3}\[[^\]]+\]:\s*<?(\S+?)>?(?:\s|$)")
ELSEWHERE = re.compile(r"^[a-z][a-z0-9+.-]*:", re.I)


def visible_lines(path: str):
    """The lines outside fenced code, with inline code removed."""
    fence = None
    with open(path, encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            mark = re.match(r"\s*(```+|~~~+)", line)
            if mark and fence is None:
                fence = mark.group(1)
            elif mark and mark.group(1).startswith(fence):
                fence = None
            elif fence is None:
                yield number, line


def anchors(path: str) -> set:
    """The anchors that a forge makes of headings: lower case, no punctuation, numbered if repeated."""
    made, seen = set(), {}
    for _, line in visible_lines(path):
        made.update(re.findall(r"<a\s+(?:id|name)=\"([^\"]+)\"", line))
        heading = re.match(r"#{1,6}\s+(.*?)\s*#*\s*$", line)
        if not heading:
            continue
        text = re.sub(r"!?\[([^\]]*)\]\([^)]*\)", r"\1", heading.group(1))
        slug = re.sub(r"[^\w\- ]", "", text.lower()).replace(" ", "-")
        count = seen.get(slug, 0)
        seen[slug] = count + 1
        made.add(f"{slug}-{count}" if count else slug)
    return made


def broken(path: str):
    for number, line in visible_lines(path):
        line = re.sub(r"`[^`]*`", "", line)
        for target in LINK.findall(line) + DEFINITION.findall(line):
            if ELSEWHERE.match(target):
                continue
            file, _, anchor = target.partition("#")
            there = os.path.normpath(os.path.join(os.path.dirname(path), file)) if file else path
            if not os.path.exists(there):
                yield number, f"there is no {there}"
            elif anchor and there.endswith(".md") and anchor not in anchors(there):
                yield number, f"{there} has no heading #{anchor}"


def main() -> int:
    found = 0
    for path in sys.argv[1:]:
        for number, why in broken(path):
            print(f"{path}:{number}: {why}")
            found += 1
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
