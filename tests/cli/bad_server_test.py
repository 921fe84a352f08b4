#!/usr/bin/env python3
"""Processes that die, close, hang or send garbage: one line, the right exit code, in time."""
import json
import unittest

from fake import MoltTest

REPLY = {"schema": 1, "value": "7"}


class BadServer(MoltTest):
    def get(self, behaviour, code, *arguments):
        process = self.fake({"molt.Get": behaviour})
        return self.complaint("get", "host/name", "-p", process.pid, *arguments, code=code)

    def test_garbage(self):
        for text in ("", "garbage", "[]", "{}", '"parameters"', '{"parameters": 1}',
                     '{"parameters": {"value": "\xff\xfe"}}', "{" * 1000, '{"error": 1}'):
            with self.subTest(text):
                self.assertIn("no reply", self.get({"raw": text + "\0"}, 1))

    def test_reply_without_its_fields(self):
        for reply in ({"schema": 1}, {"schema": 1, "modules": 5}, {"modules": [{}]},
                      {"modules": [{"name": 5}]}, {"modules": [None]}):
            with self.subTest(reply):
                process = self.fake({"molt.List": {"reply": reply}})
                self.assertIn("no reply", self.complaint("list", "-p", process.pid, code=1))

    def test_error_without_its_fields(self):
        self.get({"error": {}}, 1)
        self.get({"error": {"class": "later", "message": "m"}}, 1)
        self.get({"error": {"class": 5, "code": "x", "message": []}}, 1)

    def test_nested_too_deeply(self):
        value = "[" * 500_000 + "]" * 500_000
        self.get({"raw": '{"parameters": {"value": %s}}\0' % value}, 1)

    def test_reply_without_an_end(self):
        self.assertIn("without an end", self.get({"raw": "x" * (17 << 20), "close": True}, 1))

    def test_truncated(self):
        text = json.dumps({"parameters": REPLY})
        self.assertIn("closed the connection", self.get({"raw": text, "close": True}, 1))

    def test_closes_at_once(self):
        self.get({"raw": "", "close": True}, 1)

    def test_dies(self):
        self.assertIn("ended before it answered", self.get({"die": True}, 1))

    def test_slow_but_complete(self):
        process = self.fake({"molt.Get": {"trickle": REPLY}})
        self.assertEqual(self.output("get", "host/name", "-p", process.pid), "7\n")

    def test_hangs(self):
        # Without --timeout it would be 10.
        self.assertIn("no answer in 2 s", self.get({"hang": True}, 6, "--timeout", "0"))

    def test_answer_that_comes_late_is_not_the_next_ones(self):
        late = {"schema": 1, "name": "a", "result": "unmapped", "reason": "", "drain_us": 0}
        process = self.fake({"molt.Unload": [{"hang": True}, {"reply": {**late, "name": "b"}}]})
        answer = self.json("unload", "a", "b", "--timeout", "0", "-p", process.pid, code=7)
        self.assertEqual(answer["results"][0]["error"]["class"], "stalled")
        self.assertEqual(answer["results"][1]["result"], "unmapped")
        connections = [one["connection"] for one in process.requests() if one["method"] == "molt.Unload"]
        self.assertEqual(len(connections), 2)
        self.assertNotEqual(*connections)

    def test_every_class_has_its_exit_code(self):
        for name, code in {"failed": 1, "usage": 2, "missing": 3, "permission": 4, "refused": 5,
                           "stalled": 6}.items():
            with self.subTest(name):
                error = {"errno": "EIO", "code": 5, "class": name, "message": "why"}
                self.assertEqual(self.get({"error": error}, code), "why")

    def test_error_of_several_lines_is_one_line(self):
        self.get({"error": {"class": "failed", "message": "a\nb\x1b[31m"}}, 1)


if __name__ == "__main__":
    unittest.main()
