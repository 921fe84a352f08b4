#!/usr/bin/env python3
"""The man page, `molt help` and docs/json.md tell of the same verbs and options."""
import re
import unittest
from pathlib import Path

from fake import MoltTest

TREE = Path(__file__).parents[2]
OPTION = re.compile(r"(?<![\w-])(--?[a-z][a-z-]*)")


def section(text, title):
    return re.search(rf"^# {title}\n(.*?)(?=^# |\Z)", text, re.S | re.M).group(1)


class Manual(MoltTest):
    def setUp(self):
        super().setUp()
        self.help = self.output("help", "--all")
        self.page = (TREE / "man" / "molt.1.scd").read_text(encoding="utf-8")

    def verbs_of_help(self):
        return re.findall(r"^usage: molt ([a-z]+(?: (?:list|order))?) ", self.help, re.M)

    def verbs_of_page(self):
        return re.findall(r"^\*([a-z ]+)\*", section(self.page, "VERBS"), re.M)

    def test_verbs(self):
        self.assertEqual(self.verbs_of_help(), self.verbs_of_page())

    def test_options_of_every_verb(self):
        told = self.help[self.help.index("Options of every verb"):]
        left = {name for line in told.splitlines() for name in OPTION.findall(line[:25])}
        defined = re.findall(r"^\*-.*", section(self.page, "OPTIONS"), re.M)
        self.assertEqual(left, {name for line in defined for name in OPTION.findall(line)})

    def test_options_of_each_verb(self):
        parts = re.split(r"^\*([a-z ]+)\*.*", section(self.page, "VERBS"), flags=re.M)[1:]
        for verb, text in zip(parts[::2], parts[1::2]):
            with self.subTest(verb):
                told = self.output("help", *verb.split())
                left = {name for line in told.splitlines() for name in OPTION.findall(line[:25])}
                defined = re.findall(r"^\t\*-.*", text, re.M)
                self.assertEqual(left, {name for line in defined for name in OPTION.findall(line)})

    def test_json_is_documented_for_every_verb(self):
        table = (TREE / "docs" / "json.md").read_text(encoding="utf-8")
        documented = set(re.findall(r"^\| `([a-z ]+?)[ `]*(?=[A-Z`-]).*\|", table, re.M))
        self.assertEqual({verb for verb in self.verbs_of_help()} - documented, set())

    def test_exit_codes(self):
        told = section(self.page, "EXIT STATUS")
        self.assertEqual(re.findall(r"\*(\d)\*", told), [str(code) for code in range(8)])


if __name__ == "__main__":
    unittest.main()
