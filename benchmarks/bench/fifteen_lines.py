"""The yardstick: the least that anybody would write with Klein and treq for a proxy that streams.

``python -m benchmarks.bench.fifteen_lines PORT URL`` serves it.  bioproxy is built from the same libraries.  What this
proxy adds to a request is therefore what those libraries cost, and what bioproxy adds beyond is bioproxy's own.

The Twisted idea: Klein's route may be a coroutine.  Klein makes a Deferred of it, and Twisted goes on with other
requests while it waits.  `treq.collect` calls `request.write` for each piece of the answer as it arrives, so a stream
is passed on while it is still being written.

This proxy is neither good nor complete.  It knows no faults, no backpressure and no limits, leaves the server computing
for a client that has gone, and logs nothing.  And it keeps its connections to the server, which bioproxy may do only
where a request can be repeated: llama-server closes them when it likes.
"""

from __future__ import annotations

import sys

import treq
from klein import Klein
from twisted.web.server import Request, Site


def resource(url: str) -> Klein:
    """Return the proxy in front of the server at `url`."""
    app = Klein()

    # The fifteen lines.
    @app.route("/", branch=True)
    async def relay(request: Request) -> None:
        headers = request.requestHeaders.copy()
        for name in ("host", "connection", "content-length"):
            headers.removeHeader(name)
        assert request.content is not None
        body, target = request.content.read(), url + request.uri.decode()
        response = await treq.request(request.method.decode(), target, headers=headers, data=body, unbuffered=True)
        request.setResponseCode(response.code)
        for key, values in response.headers.getAllRawHeaders():
            request.responseHeaders.setRawHeaders(key, values)
        if isinstance(response.length, int):
            request.setHeader("content-length", str(response.length))
        await treq.collect(response, request.write)

    return app


def main(port: int, url: str) -> None:
    """Serve on loopback until the process is ended."""
    # Importing the reactor installs it, so that happens here and not where the module is imported.
    from twisted.internet import reactor

    listening: object = reactor
    listening.listenTCP(port, Site(resource(url).resource()), interface="127.0.0.1")  # type: ignore[attr-defined]
    listening.run()  # type: ignore[attr-defined]


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2])
