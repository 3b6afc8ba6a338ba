"""Checks that a built site loads nothing from elsewhere: ``python -m tools.self_contained site``, in ``make docs``.

A reader without a network must see the whole site, and no other server may learn that somebody reads it.  So everything
that a browser loads by itself must be one of the site's own files: scripts, style sheets, pictures, fonts, frames, and
what style sheets name.  Links that a reader may follow are no concern of this check; mkdocs looks after those.

What scripts load while they run cannot be seen here: the test with a browser (`tests/integration/test_site.py`) looks
at that.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

LOADED = {"src", "srcset", "data", "poster"}
"""Attributes whose addresses a browser loads, whatever the element is."""

NOT_LOADED = {"canonical", "next", "prev", "alternate", "author", "license"}
"""Relations of a ``link`` element that only say something; all others make the browser load or connect."""

IN_STYLES = re.compile(r"""(?:url\(\s*|@import\s+)["']?([^"')\s;]+)""")
"""An address in a style sheet."""


class Loads(HTMLParser):
    """Collects the addresses that a page makes a browser load."""

    def __init__(self) -> None:
        """Make a parser that has seen nothing."""
        super().__init__()
        self.addresses: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Note the addresses of an element.  Called by `HTMLParser` for each."""
        # An attribute without a value, such as ``hidden``, has `None`.
        given = {name: value or "" for name, value in attrs}
        for name in LOADED & given.keys():
            # A `srcset` has several addresses, each followed by a size.  An address may have commas, as ``data:`` does.
            texts = re.split(r",\s+", given[name]) if name == "srcset" else [given[name]]
            self.addresses += [text.split()[0] for text in texts if text.strip()]
        # The `href` of an ``a`` element is a link to follow.  That of a ``link`` element is loaded when the page is, or
        # at least connected to, which tells the other server as much.
        if tag == "link" and not NOT_LOADED & set(given.get("rel", "").split()):
            self.addresses.append(given.get("href", ""))
        self.addresses += IN_STYLES.findall(given.get("style", ""))


def addresses(file: Path) -> list[str]:
    """Return the addresses that a page or a style sheet makes a browser load."""
    # Fonts and pictures load nothing.  A picture in SVG could, but not where it is used as an image.
    text = file.read_text(encoding="utf-8")
    if file.suffix == ".css":
        return IN_STYLES.findall(text)
    page = Loads()
    page.feed(text)
    # What stands between <style> and </style>.
    styles = re.findall(r"<style[^>]*>(.*?)</style>", text, re.DOTALL)
    return page.addresses + [address for style in styles for address in IN_STYLES.findall(style)]


def wrong(site: Path) -> Iterator[str]:
    """Yield a line for each address that is not a file of the site."""
    for file in sorted(path for path in site.rglob("*") if path.suffix in (".html", ".css")):
        for address in addresses(file):
            # An address has a scheme (``https:``), a host (``//h``), or is a path, seen from the page.
            parts = urlsplit(address)
            # `data:` has its content in the address.  An address with only a fragment is a part of the same page.
            if parts.scheme == "data" or (not parts.scheme and not parts.netloc and not parts.path):
                continue
            if parts.scheme or parts.netloc:
                yield f"{file.relative_to(site)}: loads {address}"
                continue
            # A path from the root leads elsewhere where the site is in a folder of a server, or is opened as a file.
            # Only the page for missing pages has no choice: a server sends it for a wrong path in any folder.
            # In an address a space is written ``%20``, and a query after the path only defeats a browser's cache.
            path = unquote(parts.path)
            if file == site / "404.html":
                path = path.removeprefix("/")
            if path.startswith("/") or not (file.parent / path).exists():
                yield f"{file.relative_to(site)}: {address} is no file of the site"


def main() -> None:
    """Check the folder that the command line names.  The exit code is 1 if something is wrong, or nothing is there."""
    site = Path(sys.argv[1])
    # An empty folder has no wrong address either, and is most likely a mistake.
    found = list(wrong(site)) if (site / "index.html").exists() else [f"{site}: has no index.html"]
    if found:
        raise SystemExit("\n".join(found))


if __name__ == "__main__":
    main()
