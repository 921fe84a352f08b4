#!/usr/bin/env python3
"""House rules that no other tool knows. Usage: house_rules.py FILE... (paths from the tree's root).

Prints `file:line: rule: why` for each violation; exit code 1 if there is one. A line is excused by
`tidy: RULE-ok REASON` in a comment on it or on the line before, with a reason.
"""
import re
import sys

CODE = (".cpp", ".hpp", ".h", ".c")
LONGEST_LINES = 900

# The words are put together here so that this file does not violate the rules it states.
KILL_BY_NAME = re.compile(r"\b(?:p" + r"kill|kill" + r"all)\b")
LEFT_UNDONE = re.compile(r"\b(?:TO" + r"DO|FIX" + r"ME|X" + r"XX)\b")
SLEEP = re.compile(r"(?<![\w.-])(?:sleep|usleep|nanosleep|clock_nanosleep)\s*\("
                   r"|sleep_(?:for|until)\s*\(")
SCRIPT_SLEEP = re.compile(r"(?:^|[;&|({]|\bdo\b|\bthen\b)\s*sleep\s+[\d.$\"]|\btime\.sleep\b")
ATOMIC = re.compile(r"(?:\.|->)(load|store|exchange|fetch_\w+|compare_exchange_\w+|test_and_set)\s*\(")
SILENT_SKIP = re.compile(r"GTEST_SKIP\(\)\s*;")
UP_INCLUDE = re.compile(r'#\s*include\s*"\.\./')


def blank_comments(text: str) -> str:
    """Comments and string contents become spaces; every line keeps its number."""
    def blank(match):
        piece = match.group(0)
        if piece.startswith(("/", "R")):
            return re.sub(r"[^\n]", " ", piece)
        return piece[0] + re.sub(r"[^\n]", " ", piece[1:-1]) + piece[-1]
    return re.sub(r'R"([^(\s]*)\(.*?\)\1"|//[^\n]*|/\*.*?\*/|"(?:\\.|[^"\\\n])*"|\'(?:\\.|[^\'\\\n])\'', blank, text,
                  flags=re.S)


def arguments(text: str, start: int) -> list:
    """The arguments of the call whose opening parenthesis stands before `start`."""
    depth, given = 1, [""]
    for char in text[start:]:
        depth += {"(": 1, "[": 1, "{": 1, ")": -1, "]": -1, "}": -1}.get(char, 0)
        if depth == 0:
            break
        if char == "," and depth == 1:
            given.append("")
        else:
            given[-1] += char
    return given if len(given) > 1 or given[0].strip() else []


def implicit_orders(text: str):
    """Atomic operations without a memory order. `load(x)` of something else is not one."""
    for call in ATOMIC.finditer(text):
        name, given = call.group(1), arguments(text, call.end())
        if any("order" in argument for argument in given):
            continue
        # Other types have a load(path), store(key, value) or exchange() too.
        if len(given) != {"load": 0, "store": 1, "exchange": 1}.get(name, len(given)):
            continue
        yield text.count("\n", 0, call.start()) + 1, name


def violations(path: str, text: str):
    lines = text.split("\n")
    is_code = path.endswith(CODE)
    code = blank_comments(text) if is_code else ""
    in_runtime = path.startswith(("src/", "include/"))
    in_tests = path.startswith("tests/")

    for number, line in enumerate(lines, 1):
        if KILL_BY_NAME.search(line):
            yield number, "kill", "end only what you started, by its id, never by a name"
        if LEFT_UNDONE.search(line):
            yield number, "undone", "finish it, or open an issue"
        if SILENT_SKIP.search(line):
            yield number, "skip", "a skip says why: GTEST_SKIP() << reason"

    if in_tests:
        sleep = SLEEP if is_code else SCRIPT_SLEEP
        for number, line in enumerate((code if is_code else text).split("\n"), 1):
            if sleep.search(line):
                yield number, "sleep", "wait for the event, not for a time"

    if is_code and in_runtime:
        for number, call in implicit_orders(code):
            yield number, "order", f"{call}() without a memory order"
        for number, line in enumerate(lines, 1):
            if UP_INCLUDE.search(line):
                yield number, "include", 'name the layer: #include "layer/file.hpp"'
        if len(lines) - 1 > LONGEST_LINES:
            yield 1, "length", f"{len(lines) - 1} lines; past {LONGEST_LINES} a file is two ideas"


def excused(lines, number: int, rule: str) -> bool:
    marker = re.compile(rf"tidy: {rule}-ok \S+")
    return any(marker.search(lines[at]) for at in (number - 1, number - 2) if 0 <= at < len(lines))


def main() -> int:
    found = 0
    for path in sys.argv[1:]:
        try:
            with open(path, encoding="utf-8") as file:
                text = file.read()
        except UnicodeDecodeError:
            continue  # not text
        lines = text.split("\n")
        for number, rule, why in violations(path, text):
            if not excused(lines, number, rule):
                print(f"{path}:{number}: {rule}: {why}")
                found += 1
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
