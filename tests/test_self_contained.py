"""`tools/self_contained.py`: what a page makes a browser load, and whether that is a file of the site."""

from __future__ import annotations

import sys

from tests.support.folders import FolderTest
from tools import self_contained


class SelfContained(FolderTest):
    """`wrong` and `main`, on small sites."""

    def wrong(self, html: str, css: str = "", name: str = "index.html") -> list[str]:
        """Return what is wrong with a site of one page, one style sheet and a picture."""
        (self.folder / "a").mkdir(exist_ok=True)
        (self.folder / "a" / "b c.png").touch()
        (self.folder / "a" / "style.css").write_text(css)
        (self.folder / name).write_text(html)
        return list(self_contained.wrong(self.folder))

    def test_own_files(self) -> None:
        """The site's own files may be loaded, and pictures within an address; links may lead anywhere."""
        for html in (
            '<img src="a/b%20c.png?v=1"><img srcset="a/b%20c.png 1x, a/b%20c.png 2x">',
            '<link rel="stylesheet" href="a/style.css"><link rel="canonical" href="https://h/">',
            '<a href="https://h/">elsewhere</a><img src="data:image/png;base64,AA==">',
            '<svg><use href="#part"/></svg><p style="background: url(a/b%20c.png)"></p><style>p { color: red }</style>',
        ):
            self.assertEqual([], self.wrong(html, css="p { background: url('b%20c.png') }"), html)

    def test_elsewhere(self) -> None:
        """What is loaded from another server is named, in pages and in style sheets."""
        for html in (
            '<script src="https://h/x.js"></script>',
            '<script src="//h/x.js"></script>',
            '<link rel="preconnect" href="https://h">',
            '<link rel="stylesheet" href="https://h/x.css">',
            '<img srcset="a/b%20c.png 1x, https://h/x.png 2x">',
            '<iframe src="https://h/"></iframe><object data="a/b%20c.png"></object>',
            '<p style="background: url(https://h/x.png)"></p>',
            "<style>@import 'https://h/x.css';</style>",
        ):
            (line,) = self.wrong(html)
            self.assertRegex(line, r"^index\.html: loads (https:)?//h", html)
        self.assertEqual(
            ["a/style.css: loads https://h/f.woff"], self.wrong("", css="@font-face{src:url(https://h/f.woff)}")
        )

    def test_missing(self) -> None:
        """A file that is missing is named, and so is a path from the root but in the page for missing pages."""
        self.assertEqual(["index.html: b.png is no file of the site"], self.wrong('<img src="b.png">'))
        rooted = '<img src="/a/style.css">'
        self.assertEqual(["index.html: /a/style.css is no file of the site"], self.wrong(rooted))
        self.wrong("")
        self.assertEqual([], self.wrong(rooted, name="404.html"))
        self.assertEqual(["404.html: /b.png is no file of the site"], self.wrong('<img src="/b.png">', name="404.html"))

    def test_command(self) -> None:
        """The command ends well for a good site, and with one line for each mistake otherwise, or for an empty one."""
        self.patch(sys, "argv", ["", str(self.folder)])
        for html, text in (
            (None, f"{self.folder}: has no index.html"),
            ('<img src="x">', "x is no file of the site"),
        ):
            if html is not None:
                self.wrong(html)
            with self.assertRaises(SystemExit) as caught:
                self_contained.main()
            self.assertIn(text, str(caught.exception.code))
        self.wrong("<p>good</p>")
        self_contained.main()
