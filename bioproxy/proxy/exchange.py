"""One request and its answer: what is known of it, and the ways to tell its client something.

An answer has three stages, and an error is told differently in each:

1. nothing was sent yet: a status and a body say what is wrong;
2. the head went out, and the body is a stream of events: a last event says it;
3. the head went out, and the body is anything else: the connection is ended uncleanly, so that nobody takes the part
   that was sent for the whole.

The head of a stream may go out before llama-server has said anything, to a client that waits for long: see
`bioproxy.http.keepalive`.
"""

from __future__ import annotations

from twisted.internet.interfaces import IReactorTime

from bioproxy.http.client_output import BufferBudget, ClientOutput
from bioproxy.http.error_formats import error_event
from bioproxy.http.headers import end_to_end
from bioproxy.http.incoming_request import IncomingRequest
from bioproxy.http.keepalive import Keepalive
from bioproxy.http.own_answers import send_error
from bioproxy.http.request_body import RequestBody
from bioproxy.llama.timings import Timings
from bioproxy.llama.upstream import Upstream
from bioproxy.proxy import relay
from bioproxy.proxy.request_log import Record
from bioproxy.runtime.errors import ProxyError


class Exchange:
    """A client's request, on its way.

    `target` and `body` are what is sent on, `record` what is told of it later, `timings` what llama-server says of it.
    """

    def __init__(
        self, request: IncomingRequest, clock: IReactorTime, buffers: BufferBudget, ping_interval: float
    ) -> None:
        self.request = request
        self.record = Record(request.uri.decode("ascii", "replace"), clock.seconds())
        self.output = ClientOutput(request, clock, buffers)
        self.timings = Timings()
        self.keepalive = Keepalive(self.output, clock, ping_interval)
        self.target = b""
        # Whole by now, in memory or, if it is large, in a temporary file.
        self.body = RequestBody(request.content)
        self._clock = clock

    def tell(self, name: str, value: str) -> None:
        """Tell the client something in a header, if the head has not gone out yet."""
        self.request.setHeader(name, value)

    async def send(self, upstream: Upstream) -> None:
        """Send the request to llama-server and give the client what comes back.

        Fires when llama-server is through; the client may have yet to read some.  Fails with `ProxyError`; cancelling
        closes the connection to llama-server.
        """
        pairs = [(name, value) for name, values in self.request.requestHeaders.getAllRawHeaders() for value in values]
        # `Expect` asks us to say when the body may come (RFC 9110, section 10.1.1).  It is here already.
        crossing = [(name, value) for name, value in end_to_end(pairs) if name.lower() != b"expect"]
        response = await upstream.relay(self.request.method, self.target, crossing, self.body)
        self.keepalive.end()
        self.record.status = response.code
        if self.keepalive.sent:
            await relay.only_stream(response, upstream)
        else:
            relay.send_head(response, self.request)
        await relay.send_body(response, self.output, upstream, self._on_data)

    def fail(self, error: ProxyError) -> None:
        """Tell the client of an error, in the way that is still possible."""
        self.keepalive.end()
        self.record.status = error.status
        if self.request.startedWriting:
            self.output.fail(error_event(self.record.path, error))
        else:
            self.output.withdraw()
            send_error(self.request, self.record.path, error)

    def _on_data(self, data: bytes) -> None:
        if self.record.ttft_ms is None:
            self.record.ttft_ms = (self._clock.seconds() - self.record.arrived) * 1000
        self.timings.feed(data)
