"""Keys: which ones open the clients' port, and which one opens llama-server.

Where `api_key_file` is set, a client must show one of its keys, as OpenAI's clients do (`Authorization: Bearer KEY`)
or as Anthropic's do (`x-api-key: KEY`).  Such a key is for bioproxy alone: it is taken out of the request, and
llama-server gets its own key instead, that of `llama_api_key_file`.  So each user can have a key of their own, and none
of them knows that of llama-server.  Where `api_key_file` is not set, what a client shows is llama-server's business.

The questions that need no key are those that llama-server answers without one: whether it is up, and a browser's
question whether a page may ask (`OPTIONS`), to which no browser adds a key.

A comparison that stops at the first different character tells an attacker, by the time it takes, how many were right.
So fingerprints are compared, all of them, with `hmac.compare_digest`, which always takes equally long.
"""

from __future__ import annotations

import hashlib
import hmac
import stat
from pathlib import Path

from twisted.logger import Logger
from twisted.web.http_headers import Headers

from bioproxy.http.headers import Pair
from bioproxy.runtime.errors import ConfigError, NotAuthenticated, ProxyError

OPEN_PATHS = frozenset({"/health"})
"""Paths that need no key."""

SHOWN_IN = ("authorization", "x-api-key")
"""Headers that keys are shown in."""


class ApiKeys:
    """The keys in two files, either of which may be `None`: no such keys.  To be read before they are used."""

    log = Logger()

    def __init__(self, clients: Path | None, llama: Path | None) -> None:
        self.required = clients is not None
        self._clients_file = clients
        self._llama_file = llama
        self._clients: tuple[bytes, ...] = ()
        self._llama: bytes | None = None

    def read(self) -> None:
        """Read the files, both or none.  Raises `ConfigError`."""
        self.use(self._clients_file, self._llama_file)

    def use(self, clients: Path | None, llama: Path | None) -> None:
        """Use other files from now on, if both can be read.  Raises `ConfigError`."""
        clients_keys = read_keys("api_key_file", clients)
        llama_keys = read_keys("llama_api_key_file", llama)
        self._clients_file, self._llama_file = clients, llama
        self.required = clients is not None
        self._clients = tuple(map(fingerprint, clients_keys))
        self._llama = llama_keys[0] if llama_keys else None
        for file in (clients, llama):
            if file is not None and file.stat().st_mode & (stat.S_IRWXG | stat.S_IRWXO):
                self.log.warn("{file} can be read by others than its owner; chmod 600 helps", file=file)

    def judge(self, method: bytes, path: str, headers: Headers) -> ProxyError | None:
        """Return why a request may not pass, if it may not."""
        # Nobody needs a body to ask these; without a key nobody may send one.
        is_open = (method == b"OPTIONS" or path in OPEN_PATHS) and not has_body(headers)
        if not self.required or is_open or self._shown(headers):
            return None
        return NotAuthenticated("a valid key is needed, as `Authorization: Bearer KEY` or `x-api-key: KEY`")

    def exchange(self, headers: Headers) -> None:
        """Take a client's key out of a request's headers, and put llama-server's in."""
        if not self.required:
            return
        shown = self._shown(headers)
        for name in SHOWN_IN:
            headers.removeHeader(name)
        if shown:  # who was let in without a key gets nothing from us either
            for own in self.own:
                headers.addRawHeader(*own)

    @property
    def own(self) -> list[Pair]:
        """The header for the proxy's own calls to llama-server, if it needs one."""
        return [] if self._llama is None else [(b"Authorization", b"Bearer " + self._llama)]

    def _shown(self, headers: Headers) -> bool:
        """Tell whether a valid key is shown."""
        candidates = list(headers.getRawHeaders(b"x-api-key", []))
        for value in headers.getRawHeaders(b"authorization", []):
            scheme, _, key = value.partition(b" ")
            if scheme.lower() == b"bearer":
                candidates.append(key.strip())
        matches = [hmac.compare_digest(fingerprint(each), key) for each in candidates for key in self._clients]
        return any(matches)


def has_body(headers: Headers) -> bool:
    """Tell whether a request has a body."""
    lengths = headers.getRawHeaders(b"content-length", [])
    return headers.hasHeader(b"transfer-encoding") or any(length.strip(b"0") for length in lengths)


def fingerprint(key: bytes) -> bytes:
    """Return what a key is compared by: of one length for all keys."""
    return hashlib.sha256(key).digest()


def read_keys(setting: str, file: Path | None) -> list[bytes]:
    """Read a file of keys, one a line.  Raises `ConfigError` if there is none in it."""
    if file is None:
        return []
    try:
        keys = [line.strip() for line in file.read_bytes().splitlines() if line.strip()]
    except OSError as error:
        raise ConfigError(f"{setting}: {file}: {error.strerror}") from None
    if not keys:
        raise ConfigError(f"{setting}: {file}: no key in it")
    if any(not 0x21 <= byte <= 0x7E for key in keys for byte in key):
        raise ConfigError(f"{setting}: {file}: a key may have visible ASCII characters only")
    return keys
