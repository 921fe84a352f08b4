#!/usr/bin/env python3
"""Reads ctest's JUnit file; prints why tests were skipped, which failed, and the totals.

The last line is always `N passed, N failed, N skipped`. Exit code 1 if anything failed, or if
nothing ran at all.
"""
import re
import sys
import xml.etree.ElementTree as ET

# What ctest notes of a test that skipped itself. Any other "not run" (no such program, a fixture
# that failed) is a failure: a test that could not start has shown nothing.
SKIPPED_ITSELF = ("SKIP_RETURN_CODE", "SKIP_REGULAR_EXPRESSION")


def reason(output: str) -> str:
    """GoogleTest's message behind `Skipped`, else the last line that the test printed."""
    gtest = re.search(r": Skipped\n(.*?)\n*\[  SKIPPED \]", output, re.S)
    text = gtest.group(1) if gtest else (output.strip().splitlines() or [""])[-1]
    return " ".join(text.split()) or "no reason given"


LAST_LINES = 8


def last_words(output: str) -> list[str]:
    """The end of what a failed test printed: often all that is kept of a run elsewhere."""
    return [line[:300] for line in output.splitlines() if line.strip()][-LAST_LINES:]


def main() -> int:
    passed, failed, skipped = 0, [], []
    try:
        cases = list(ET.parse(sys.argv[1]).getroot().iter("testcase"))
    except (OSError, ET.ParseError) as error:
        print(f"no test results: {error}")
        cases = []
    for case in cases:
        name, status = case.get("name"), case.get("status")
        note = case.find("skipped")
        message = note.get("message", "") if note is not None else ""
        if status == "run":
            passed += 1
        elif status == "disabled":
            skipped.append((name, "disabled in the source"))
        elif message.startswith(SKIPPED_ITSELF):
            skipped.append((name, reason(case.findtext("system-out") or "")))
        else:
            failed.append((name, message or "failed", last_words(case.findtext("system-out") or "")))

    for name, why in skipped:
        print(f"skipped: {name}: {why}")
    for name, why, words in failed:
        print(f"FAILED:  {name}: {why}")
        for line in words:
            print(f"    {line}")
    print(f"{passed} passed, {len(failed)} failed, {len(skipped)} skipped")
    return 1 if failed or not cases else 0


if __name__ == "__main__":
    sys.exit(main())
