"""Stands between a proxy and llama-server, and notes which slot files are written and read.

``python -m benchmarks.bench.recorder PORT URL`` passes everything through to URL.  ``GET /recorded`` answers with what
was noted: a list of ``[action, file name, bytes]``, where bytes are those that llama-server says it wrote or read.

The Twisted idea: a client that hangs up ends its request here, too.  `Request.notifyFinish` returns a Deferred that
fails then, and cancelling the coroutine's Deferred closes the connection to llama-server.  bioproxy hangs up to end a
warm-up when a user comes; passed on late, that would measure another bioproxy.

Connections to llama-server are fresh for each request, because it closes them after each stream.
"""

from __future__ import annotations

import json
import sys
from typing import Any

import treq
from klein import Klein
from twisted.internet.defer import CancelledError, Deferred
from twisted.web.server import Request, Site

FIELDS = {"save": "n_written", "restore": "n_read"}
"""Where an answer of ``/slots`` has the bytes."""


class Recorder:
    """Passes requests through to `url`, and notes those for slot files."""

    app = Klein()

    def __init__(self, url: str) -> None:
        """Pass requests on to this address."""
        self._url = url
        self._noted: list[tuple[str, str, int]] = []

    @app.route("/recorded")
    def recorded(self, request: Request) -> bytes:
        """Answer with what was noted."""
        return json.dumps(self._noted).encode()

    @app.route("/", branch=True)
    def relay(self, request: Request) -> Deferred[None]:
        """Pass a request through, and end it if its client hangs up."""
        passing = Deferred.fromCoroutine(self._pass(request))
        request.notifyFinish().addErrback(lambda _: passing.cancel())
        return passing.addErrback(lambda failure: failure.trap(CancelledError) and None)

    async def _pass(self, request: Request) -> None:
        """Pass a request on, and its answer back; note it if it saved or restored a file.

        Fires when the answer is complete.  Cancelling closes the connection to llama-server.
        """
        # Those of the connection, which is another one there.
        headers = request.requestHeaders.copy()
        for name in ("host", "connection", "content-length"):
            headers.removeHeader(name)
        assert request.content is not None
        body, target = request.content.read(), self._url + request.uri.decode()
        response = await treq.request(
            request.method.decode(), target, headers=headers, data=body or None, unbuffered=True, persistent=False
        )
        request.setResponseCode(response.code)
        for key, values in response.headers.getAllRawHeaders():
            request.responseHeaders.setRawHeaders(key, values)
        # A stream must go on piece by piece; the answer of a slot action is short, and is needed as a whole.
        has_file = b"/slots/" in request.uri and response.code == 200
        if not has_file:
            await treq.collect(response, request.write)
            return
        answer = await treq.content(response)
        for name, field in FIELDS.items():
            if f"action={name}" in request.uri.decode():
                said: dict[str, Any] = json.loads(answer)
                self._noted.append((name, json.loads(body)["filename"], said[field]))
        request.setHeader("content-length", str(len(answer)))
        request.write(answer)


def main(port: int, url: str) -> None:
    """Serve on loopback until the process is ended."""
    # Importing the reactor installs it, so that happens here and not where the module is imported.
    from twisted.internet import reactor

    listening: object = reactor
    listening.listenTCP(port, Site(Recorder(url).app.resource()), interface="127.0.0.1")  # type: ignore[attr-defined]
    listening.run()  # type: ignore[attr-defined]


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2])
