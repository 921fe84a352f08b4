"""tools/test_totals.py counts what ctest reports, and lets nothing that did not run pass."""
import unittest

from scratch import run


def report(*cases: str) -> dict:
    return {"a/tests.xml": f"<testsuite>{''.join(cases)}</testsuite>"}


PASSED = '<testcase name="p" status="run"/>'
FAILED = ('<testcase name="f" status="fail"><failure message=""/>'
          "<system-out>first\n" + "middle\n" * 7 + "\nlast\n</system-out></testcase>")
MISSING = '<testcase name="m" status="notrun"><skipped message="Unable to find executable"/></testcase>'
GTEST = ('<testcase name="g" status="notrun"><skipped message="SKIP_REGULAR_EXPRESSION_MATCHED"/>'
         "<system-out>[ RUN ] A.b\na.cpp:3: Skipped\nno perf\nevents\n[  SKIPPED ] A.b (0 ms)\n"
         "more</system-out></testcase>")
SCRIPT = ('<testcase name="s" status="notrun"><skipped message="SKIP_RETURN_CODE=77"/>'
          "<system-out>trying\nno network\n</system-out></testcase>")


class TestTotals(unittest.TestCase):
    def test_green(self):
        code, lines = run("test_totals.py", report(PASSED, PASSED, GTEST, SCRIPT))
        self.assertEqual(code, 0)
        self.assertEqual(lines, ["skipped: g: no perf events", "skipped: s: no network",
                                 "2 passed, 0 failed, 2 skipped"])

    def test_red(self):
        code, lines = run("test_totals.py", report(PASSED, FAILED, MISSING))
        self.assertEqual(code, 1)
        # What it said last stands beside its name: of a run elsewhere the end is often all that is kept.
        self.assertEqual(lines, ["FAILED:  f: failed", *["    middle"] * 7, "    last",
                                 "FAILED:  m: Unable to find executable", "1 passed, 2 failed, 0 skipped"])

    def test_nothing_ran(self):
        for files in (report(), {"a/tests.xml": ""}):
            code, lines = run("test_totals.py", files)
            self.assertEqual(code, 1)
            self.assertEqual(lines[-1], "0 passed, 0 failed, 0 skipped")


if __name__ == "__main__":
    unittest.main()
