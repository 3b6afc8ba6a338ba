"""The live page's files: HTML, style and scripts, served as they are in the package.

There is no build step and nothing from elsewhere: what the browser gets is what stands in `page_files`.  Its
Content-Security-Policy holds the browser to that.  Even if somebody got a script into a path or an error that the page
shows, it would not run.

The files are read once.  An *ETag* names their content: a browser that has them asks whether they are still the same,
and is told so in a few bytes.
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

FIRST = "index.html"

TYPES = {
    "html": b"text/html; charset=utf-8",
    "css": b"text/css; charset=utf-8",
    "js": b"text/javascript; charset=utf-8",
    "svg": b"image/svg+xml",
}
"""The kinds of files that are served; whatever else lies there is not."""

POLICY = (
    b"default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data:;"
    b" base-uri 'none'; frame-ancestors 'none'; form-action 'none'"
)


@dataclass(frozen=True)
class File:
    """One file, ready to be sent."""

    content: bytes
    content_type: bytes
    etag: bytes


class Page:
    """The files, by their path."""

    @cached_property
    def _files(self) -> dict[str, File]:
        return dict(read(FILES))

    def serve(self, request: Request, path: str) -> bytes:
        """Answer with a file, or 404."""
        file = self._files.get(path)
        protect(request)
        if file is None:
            request.setResponseCode(404)
            request.setHeader(b"content-type", b"text/plain; charset=utf-8")
            return b"there is no such file\n"
        request.setHeader(b"content-type", file.content_type)
        request.setHeader(b"cache-control", b"no-cache")
        return b"" if request.setETag(file.etag) is CACHED else file.content


def protect(request: Request) -> None:
    """Have the browser do nothing with an answer but what it is meant for."""
    request.setHeader(b"content-security-policy", POLICY)
    request.setHeader(b"x-content-type-options", b"nosniff")
    request.setHeader(b"referrer-policy", b"no-referrer")


def read(folder: Path) -> Iterator[tuple[str, File]]:
    """Yield the paths and files in a folder and in those below."""
    for path in folder.rglob("*"):
        kind = path.suffix.removeprefix(".")
        if kind in TYPES:
            content = path.read_bytes()
            etag = f'"{hashlib.sha256(content).hexdigest()[:32]}"'.encode()
            yield path.relative_to(folder).as_posix(), File(content, TYPES[kind], etag)
