"""Serves the live page's files: HTML, style sheets and scripts, as they are in the package.

There is no build step, and nothing is loaded from other servers: the browser gets exactly what is in `page_files`.  The
header `Content-Security-Policy` makes the browser enforce that.  Should somebody manage to get a script into a path or
an error text that the page shows, the browser would not run it.

All files are read when the first of them is asked for, and kept.  They are small, so reading all of them in the
reactor's thread takes a few milliseconds, once, and a file that an update replaces later cannot be mixed with older
ones.  An *ETag* identifies a file's content: a browser that has the file already asks whether it is still the same, and
gets an answer of a few bytes.

Does not know what the page shows; its own code is in `page_files`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from twisted.web.http import CACHED
from twisted.web.server import Request

FILES = Path(__file__).parent / "page_files"
"""The folder with the files, in the package."""

FIRST = "index.html"
"""The file that ``/`` shows."""

TYPES = {
    "html": b"text/html; charset=utf-8",
    "css": b"text/css; charset=utf-8",
    "js": b"text/javascript; charset=utf-8",
    "svg": b"image/svg+xml",
}
"""The files that are served, by what follows the dot in their names, with their `Content-Type`.

Other files in the folder, such as licenses, are not served.
"""

POLICY = (
    b"default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data:;"
    b" base-uri 'none'; frame-ancestors 'none'; form-action 'none'"
)
"""What the browser may load and do: only files of this server, no inline scripts, no frames, no forms.

`data:` images are pictures that stand in the page itself.
"""


@dataclass(frozen=True)
class File:
    """One file, ready to be sent."""

    content: bytes
    """The whole file."""

    content_type: bytes
    """The header `Content-Type`."""

    etag: bytes
    """The header `ETag`: a digest of the content, in quotes."""


class Page:
    """The files, by their path.  From the first request on they stay the same for as long as the process runs."""

    @cached_property
    def _files(self) -> dict[str, File]:
        # Read at the first request and kept.  Raises `OSError` if the package is incomplete.
        return dict(read(FILES))

    def serve(self, request: Request, path: str) -> bytes:
        """Answer `request` with a file; return the body.

        404 for an unknown path, 304 without a body for a browser that has the file.
        """
        # A dict of known paths: no path of a request is ever used to open a file.
        file = self._files.get(path)
        secure(request)
        if file is None:
            request.setResponseCode(404)
            request.setHeader(b"content-type", b"text/plain; charset=utf-8")
            return b"there is no such file\n"
        request.setHeader(b"content-type", file.content_type)
        # Not "do not keep it", but "ask before you use it again": after an update the page is up to date at once.
        request.setHeader(b"cache-control", b"no-cache")
        # `setETag` compares with what the browser has, and sets the status 304 if that is the same.
        return b"" if request.setETag(file.etag) is CACHED else file.content


def secure(request: Request) -> None:
    """Set the headers that keep a browser from doing anything but showing the answer.

    They forbid foreign content, guessing another type than the one declared, and telling other sites the address.
    """
    request.setHeader(b"content-security-policy", POLICY)
    request.setHeader(b"x-content-type-options", b"nosniff")
    request.setHeader(b"referrer-policy", b"no-referrer")


def read(folder: Path) -> Iterator[tuple[str, File]]:
    """Yield the files of known types in a folder and in those below, with their paths relative to it."""
    for path in folder.rglob("*"):
        kind = path.suffix.removeprefix(".")
        if kind in TYPES:
            content = path.read_bytes()
            # 128 bits are enough to tell contents apart, and shorter to send with each request.
            etag = f'"{hashlib.sha256(content).hexdigest()[:32]}"'.encode()
            yield path.relative_to(folder).as_posix(), File(content, TYPES[kind], etag)
