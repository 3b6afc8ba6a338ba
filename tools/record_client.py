"""Records what a client sends: a program between the client and bioproxy, which writes the requests to a file.

    python -m tools.record_client opencode --client "OpenCode 1.18.33" --to http://127.0.0.1:8081 --port 8099

Point the client to port 8099, use it, and end this program with Ctrl-C.  Each request that asks the model for something
goes to ``tests/fixtures/clients/NAME.json`` (``NAME.json.gz`` where it is long), scrubbed by `tools.scrub_request`.
Read the file before it is committed.  Each line on the terminal is one request and what bioproxy's headers said of it.

The Twisted idea here: a Klein route is a coroutine, and what it awaits may take minutes while other requests are
served, without any thread.  treq hands the answer over piece by piece (``unbuffered``), and each piece is written to
the client at once, so that a stream remains one.

The program is not built for bad networks: it has no limits and passes no backpressure on.  It does not know what the
requests mean.
"""

from __future__ import annotations

import argparse
import gzip
import json
import sys
from collections.abc import Iterable
from datetime import date
from pathlib import Path
from typing import Any

from tools.scrub_request import Scrub, here

FOLDER = Path(__file__).resolve().parent.parent / "tests" / "fixtures" / "clients"
"""Where the tests look for recorded requests."""

PLAIN_SIZE = 60_000
"""Bytes above which a recording is compressed.

With half as many, files that can be read in a browser would be compressed; with twice as many, they make a change long
to read.
"""

OWN = ("host", "connection", "content-length", "transfer-encoding", "accept-encoding")
"""Headers that each of the two connections has for itself.

Without ``accept-encoding`` the answer comes uncompressed, as it does from llama-server in any case.
"""

SHOWN = ("Cache", "Prompt", "Miss", "Miss-Detail")
"""What is printed of bioproxy's headers; each name follows ``X-Bioproxy-``."""


class Recording:
    """The requests of one client; the file always has all of them that came so far."""

    def __init__(self, folder: Path, name: str, client: str, scrub: Scrub) -> None:
        """Record as `name`; `client` is the client's name and version."""
        self._folder = folder
        self._name = name
        self._client = client
        self._scrub = scrub
        self._requests: list[dict[str, Any]] = []

    def add(self, method: str, path: str, headers: Iterable[tuple[str, str]], body: bytes) -> None:
        """Add a request to the file, unless its body is no JSON: then it asks the model for nothing."""
        try:
            value = json.loads(body)
        except ValueError:
            return
        request = {"method": method, "path": path, "headers": self._scrub.headers(headers)}
        self._requests.append({**request, "body": self._scrub.body(value)})
        self._write()

    def _write(self) -> None:
        """Write the file anew; whether it is compressed depends on its size."""
        recording = {"client": self._client, "recorded": date.today().isoformat(), "requests": self._requests}
        text = json.dumps(recording, ensure_ascii=False, indent=1).encode() + b"\n"
        plain, packed = (self._folder / f"{self._name}{ending}" for ending in (".json", ".json.gz"))
        self._folder.mkdir(parents=True, exist_ok=True)
        # Without a time in it: the same requests give the same bytes.
        chosen, data = (packed, gzip.compress(text, mtime=0)) if len(text) > PLAIN_SIZE else (plain, text)
        chosen.write_bytes(data)
        (plain if chosen is packed else packed).unlink(missing_ok=True)


def read(file: Path) -> Any:
    """Return the recording in a file, compressed or not."""
    data = file.read_bytes()
    return json.loads(gzip.decompress(data) if file.suffix == ".gz" else data)


def serve(recording: Recording, to: str, port: int) -> None:
    """Pass requests on to `to` until the process is ended, and record those with a body."""
    # Imported here: importing the reactor chooses it, and who only reads recordings needs none.
    import treq
    from klein import Klein
    from twisted.internet import reactor
    from twisted.web.server import Request, Site

    app = Klein()

    @app.route("/", branch=True)
    async def relay(request: Request) -> None:
        """Pass a request on and its answer back.  Called by Klein for each request."""
        assert request.content is not None
        headers, body = request.requestHeaders.copy(), request.content.read()
        for name in OWN:
            headers.removeHeader(name)
        method, target = request.method.decode(), request.uri.decode()
        if body:
            pairs = [(name.decode(), value.decode()) for name, each in headers.getAllRawHeaders() for value in each]
            recording.add(method, target, pairs, body)
        # Each request has a connection of its own: llama-server closes connections after a stream.
        response = await treq.request(
            method, to + target, headers=headers, data=body, unbuffered=True, persistent=False, allow_redirects=False
        )
        request.setResponseCode(response.code)
        for name, values in response.headers.getAllRawHeaders():
            request.responseHeaders.setRawHeaders(name, values)
        said = (f"{each}={response.headers.getRawHeaders('X-Bioproxy-' + each, [''])[0]}" for each in SHOWN)
        print(method, target, response.code, f"{len(body)} bytes", *said, flush=True)
        # A client that hangs up must free the slot, but cancelling `collect` leaves the connection open: treq closes it
        # when the function that gets the pieces raises.  So the next piece ends it.
        gone: list[object] = []
        request.notifyFinish().addErrback(gone.append)

        def pass_on(piece: bytes) -> None:
            """Write a piece to the client.  Called by treq."""
            if gone:
                raise ConnectionError("the client has gone")
            request.write(piece)

        await treq.collect(response, pass_on)

    network: Any = reactor
    network.listenTCP(port, Site(app.resource()), interface="127.0.0.1")
    network.run()


def main() -> int:
    """Record, as the command line says."""
    parser = argparse.ArgumentParser(prog="python -m tools.record_client", description=__doc__.split("\n")[0])
    parser.add_argument("name", help="name of the file, without its ending")
    parser.add_argument("--client", required=True, help="the client's name and version")
    parser.add_argument("--to", default="http://127.0.0.1:8081", help="bioproxy's address (default: %(default)s)")
    parser.add_argument("--port", type=int, default=8099, help="where the client connects (default: %(default)s)")
    parser.add_argument("--folder", type=Path, default=FOLDER, help="where the file is written")
    parser.add_argument("--hide", action="append", default=[], metavar="NAME=OTHER", help="replace another name, too")
    options = parser.parse_args()
    names = here() | {name: other or "hidden" for name, _, other in (each.partition("=") for each in options.hide)}
    serve(Recording(options.folder, options.name, options.client, Scrub(names)), options.to, options.port)
    return 0


if __name__ == "__main__":
    sys.exit(main())
