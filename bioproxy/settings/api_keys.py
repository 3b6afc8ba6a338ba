"""API keys: those that clients must send to bioproxy, and the one that bioproxy sends to llama-server.

If `api_key_file` is set, a client must send one of its keys, as OpenAI's clients do (`Authorization: Bearer KEY`) or as
Anthropic's do (`x-api-key: KEY`).  Such a key is for bioproxy alone: it is removed from the request, and llama-server
gets its own key instead, the one in `llama_api_key_file`.  So each user can have a key of their own, and none of them
knows llama-server's.  If `api_key_file` is not set, the headers of a client are passed on, and llama-server decides.

A llama.cpp that bioproxy starts itself asks for a key that only bioproxy knows, so that no other program, and no web
page in a browser, can use it past bioproxy.  That key goes with each request, whatever the client has sent.

Two kinds of requests need no key, because llama-server answers them without one: ``/health``, and `OPTIONS`, with which
a browser asks whether a page may send a request.  Browsers never add a key to that.

A comparison that stops at the first different character takes longer the more characters are right, and an attacker
could measure that.  So the fingerprints of all keys are compared, with `hmac.compare_digest`, which always takes
equally long.

Values and files, without Twisted's event loop.  Called for each request before its body is read
(`bioproxy.http.ports`), so a client without a key cannot make bioproxy store anything.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
import stat
from collections.abc import Callable
from pathlib import Path

from twisted.logger import Logger
from twisted.web.http_headers import Headers

from bioproxy.runtime.errors import ConfigError, NotAuthenticated, ProxyError
from bioproxy.runtime.regular_file import read_regular

OPEN_PATHS = frozenset({"/health"})
"""Paths that need no key, as on llama-server."""

SHOWN_IN = ("authorization", "x-api-key")
"""Headers that a key may be in.  Both are removed from a request before it is sent on."""


class ApiKeys:
    """The keys in two files, either of which may be `None`, for no such keys.

    The keys in use always come from one successful read of both files.  Before the first one no key is valid.
    """

    log = Logger()

    required: bool
    """Whether clients must send a key."""

    of_child: Callable[[], str | None]
    """Returns the key of a llama.cpp that bioproxy has started.  Assigned by assembly; else there is none."""

    def __init__(self, clients: Path | None, llama: Path | None) -> None:
        """Name the files: `api_key_file` and `llama_api_key_file`.  They are read later, by `read`."""
        self.required = clients is not None
        self.of_child = lambda: None
        self._clients_file = clients
        self._llama_file = llama
        # Digests of the clients' keys, and llama-server's key itself, which has to be sent.
        self._clients: tuple[bytes, ...] = ()
        self._llama: bytes | None = None
        # Stands for llama-server's key in a request that waits.  Random, because a client could send a known one.
        self._placeholder = b"Bearer " + secrets.token_hex(16).encode()

    def read(self) -> None:
        """Read the files.  Raises `ConfigError`, and then the keys in use stay the same."""
        self.use(self._clients_file, self._llama_file)

    def use(self, clients: Path | None, llama: Path | None) -> None:
        """Read these files, and use their keys from now on; called by a reload.

        Raises `ConfigError` if one of them cannot be read, and then nothing has changed.
        """
        # Everything that can fail comes before the first assignment.
        clients_keys = read_keys("api_key_file", clients)
        llama_keys = read_keys("llama_api_key_file", llama)
        self._clients_file, self._llama_file = clients, llama
        # Digests instead of keys: the keys themselves are not needed any more.
        self.required = clients is not None
        self._clients = tuple(map(fingerprint, clients_keys))
        # The file may have several keys, like llama-server's own `--api-key-file`, and the first is as good as any.
        self._llama = llama_keys[0] if llama_keys else None
        # Not an error: the file may be on a system without such permissions, or shared with llama-server's user.
        for file in (clients, llama):
            if file is not None and file.stat().st_mode & (stat.S_IRWXG | stat.S_IRWXO):
                self.log.warn("{file} can be read by other users than its owner; chmod 600 helps", file=file)

    def judge(self, method: bytes, path: str, headers: Headers) -> ProxyError | None:
        """Return the error that a request is to be refused with, or `None` if it is allowed."""
        # These requests have no body.  One that has is refused, so that nobody without a key can send data.
        is_open = (method == b"OPTIONS" or path in OPEN_PATHS) and not has_body(headers)
        # The cheap questions come first: comparing takes a digest for each key that is sent.
        if not self.required or is_open or self._shown(headers):
            return None
        return NotAuthenticated("a valid key is needed, as `Authorization: Bearer KEY` or `x-api-key: KEY`")

    def take(self, headers: Headers) -> None:
        """Remove the client's key from the `headers` of a request that has come, and note there whether it was valid.

        Changes nothing if clients need no key.
        """
        if self.required:
            shown = self._shown(headers)
            for name in SHOWN_IN:
                headers.removeHeader(name)
            # A request that needed no key gets none either: otherwise anybody could reach llama-server with our key.
            if shown:
                headers.addRawHeader(b"Authorization", self._placeholder)

    def give(self, headers: Headers) -> None:
        """Add llama-server's key to the `headers` of a request that is about to be sent, if that is to have it.

        Otherwise what the client has sent belongs to llama-server.
        """
        # A request may have waited for minutes since `take`, and llama-server may have another key by now.
        has_placeholder = headers.getRawHeaders(b"authorization") == [self._placeholder]
        if has_placeholder or (not self.required and self.of_child() is not None):
            for name in SHOWN_IN:
                headers.removeHeader(name)
            for own in self.own:
                headers.addRawHeader(*own)

    @property
    def own(self) -> list[tuple[bytes, bytes]]:
        """The headers to add to bioproxy's own calls of llama-server: one with its key, or none."""
        of_child = self.of_child()
        key = self._llama if of_child is None else of_child.encode()
        return [] if key is None else [(b"Authorization", b"Bearer " + key)]

    def _shown(self, headers: Headers) -> bool:
        """Tell whether a request has a valid key in one of the headers, each of which may occur several times."""
        # Twisted keeps a list of values for each header, in which names are compared without regard to case.
        candidates = list(headers.getRawHeaders(b"x-api-key", []))
        for value in headers.getRawHeaders(b"authorization", []):
            # Other schemes, such as ``Basic``, have no key in them.
            scheme, _, key = value.partition(b" ")
            if scheme.lower() == b"bearer":
                candidates.append(key.strip())
        # A list and not a generator: `any` would stop at the first match, and the time would tell which key it was.
        matches = [hmac.compare_digest(fingerprint(each), key) for each in candidates for key in self._clients]
        return any(matches)


def has_body(headers: Headers) -> bool:
    """Tell whether a request has a body, by its headers: a length other than zero, or chunks."""
    lengths = headers.getRawHeaders(b"content-length", [])
    return headers.hasHeader(b"transfer-encoding") or any(length.strip(b"0") for length in lengths)


def fingerprint(key: bytes) -> bytes:
    """Return the digest that a key is compared by.  All digests have the same length, so a key's length is hidden."""
    return hashlib.sha256(key).digest()


def read_keys(setting: str, file: Path | None) -> list[bytes]:
    """Return the keys in a file, one in each line; no keys without a file.

    `setting` is what errors name.  Raises `ConfigError` if the file cannot be read, has no key, or a key that cannot be
    sent in a header.
    """
    if file is None:
        return []
    # Empty lines and white space around a key are ignored, since editors add both.
    try:
        keys = [line.strip() for line in read_regular(file).splitlines() if line.strip()]
    except OSError as error:
        raise ConfigError(f"{setting}: {file}: {error.strerror}") from None
    # An empty file would lock out all clients, which is hardly meant, and a file that is just being written is empty.
    if not keys:
        raise ConfigError(f"{setting}: {file}: no key in it")
    # Anything else could not have been sent in a header in the first place; a line end in the middle would even forge
    # another header.
    if any(not 0x21 <= byte <= 0x7E for key in keys for byte in key):
        raise ConfigError(f"{setting}: {file}: a key may have visible ASCII characters only")
    return keys
