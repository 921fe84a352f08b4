"""tools/check_links.py finds broken links and anchors, and knows how headings become anchors."""
import unittest

from scratch import run

PAGE = """# One: the `first`

## Two

## Two

<a id="named"></a>
"""

GOOD = """See [a](b/page.md), [b](b/page.md#one-the-first), [c](b/page.md#two-1), [d](#here),
[e](b/page.md#named "title"), [f](https://example.org/no/such), ![g](b/page.md).

[ref]: b/page.md#two

`[inline](no/such.md)` is code, as is

```
[fenced](no/such.md)
```

# Here
"""

BROKEN = [
    "[a](b/none.md)",
    "[a](b/page.md#three)",
    "[a](b/page.md#two-2)",
    "[a](#nowhere)",
    "![a](none.png)",
    "[a]: none.md",
    "[![badge](none.svg)](b/page.md)",
]


class CheckLinks(unittest.TestCase):
    def test_good(self):
        self.assertEqual(run("check_links.py", {"a.md": GOOD, "b/page.md": PAGE}), (0, []))

    def test_broken(self):
        for text in BROKEN:
            with self.subTest(text=text):
                code, lines = run("check_links.py", {"a.md": f"x\n{text}\n", "b/page.md": PAGE})
                self.assertEqual(code, 1)
                self.assertEqual(len(lines), 1, lines)
                self.assertTrue(lines[0].startswith("a.md:2: "), lines)


if __name__ == "__main__":
    unittest.main()
