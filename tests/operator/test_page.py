"""The live page's files, as they are served.  What the page does with them is tested in a browser."""

from __future__ import annotations

import re

from bioproxy.operator.page import FILES, TYPES
from tests.support.world import WorldTest


class Serving(WorldTest):
    """The routes ``/`` and ``/page/...``."""

    def test_page(self) -> None:
        """The page is there, and everything that it and its scripts name; nothing is from elsewhere."""
        world = self.world()
        first = world.operate("GET", "/")
        self.assertEqual((200, "text/html; charset=utf-8"), (first.status, first.headers["content-type"]))
        found, left = {}, {"/": first.body.decode()}
        while left:
            path, text = left.popitem()
            found[path] = text
            names = re.findall(r'(?:href|src)="(page/[^"#]+)"', text) if path == "/" else []
            names += ["page/" + name for name in re.findall(r'from "./([^"]+)"', text)]
            for name in names:
                call = world.operate("GET", f"/{name}")
                self.assertEqual(200, call.status, name)
                left |= {f"/{name}": call.body.decode()} if f"/{name}" not in found else {}
        served = {path.removeprefix("/page/") for path in found if path != "/"}
        there = {path.relative_to(FILES).as_posix() for path in FILES.rglob("*.*") if path.suffix != ".md"}
        self.assertEqual(there - {"index.html"}, served, "nothing lies there that is not used")
        own = "".join(text for path, text in found.items() if "vendor" not in path)
        self.assertEqual({"http://www.w3.org/2000/svg"}, set(re.findall(r"https?://[^\"' ]+", own)))
        self.assertEqual([], re.findall(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(", own))

    def test_headers(self) -> None:
        """The browser is held to what is served here."""
        call = self.world().operate("GET", "/")
        policy = dict(part.strip().split(" ", 1) for part in call.headers["content-security-policy"].split(";"))
        self.assertEqual("'none'", policy["default-src"])
        self.assertEqual("'self'", policy["script-src"])
        self.assertNotIn("unsafe", call.headers["content-security-policy"])
        self.assertEqual(
            ("nosniff", "no-cache"), (call.headers["x-content-type-options"], call.headers["cache-control"])
        )

    def test_unchanged(self) -> None:
        """A browser that has a file is only told that it is still the same."""
        world = self.world()
        call = world.operate("GET", "/page/main.js")
        again = world.operate("GET", "/page/main.js", if_none_match=call.headers["etag"])
        self.assertEqual((304, b""), (again.status, again.body))
        other = world.operate("GET", "/page/main.js", if_none_match='"other"')
        self.assertEqual((200, call.body), (other.status, other.body))

    def test_nothing_else(self) -> None:
        """Nothing else is served, in the folder or outside of it."""
        world = self.world()
        for path in ("none.js", "", "../page.py", "%2e%2e/page.py", "vendor/uplot/LICENSE", "vendor", "etc/passwd"):
            self.assertEqual(404, world.operate("GET", f"/page/{path}").status, path)
        self.assertEqual([], self.flushLoggedErrors())

    def test_kinds(self) -> None:
        """Each kind of file is told as what it is."""
        world = self.world()
        for name in ("page.css", "main.js", "icon.svg"):
            kind = TYPES[name.rpartition(".")[2]].decode()
            self.assertEqual(kind, world.operate("GET", f"/page/{name}").headers["content-type"])
