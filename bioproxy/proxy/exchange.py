"""One request and its answer: what is known of it, and the ways to tell its client something.

An answer has three stages, and an error is told differently in each:

1. nothing was sent yet: a status and a body say what is wrong;
2. the head went out, and the body is a stream of events: a last event says it;
3. the head went out, and the body is anything else: the connection is ended uncleanly, so that nobody takes the part
   that was sent for the whole.

The head of a stream may go out before llama-server has said anything, so stage 2 can begin while the request still
waits in the queue.  Other proxies on the way close connections that are silent for long; a comment from time to time
prevents that, and the first comment cannot be sent without a head (`bioproxy.http.keepalive`).

On Twisted: a request object is also what its answer is written to.  `setHeader` only prepares the head, and the first
`write` sends it; `startedWriting` says whether that has happened.  So the stage is never stored here: it is read from
the request, and cannot be wrong.

This module does not know the queue or the slot, nor in which order the steps come (`bioproxy.proxy.proxy`).
"""

from __future__ import annotations

from twisted.internet.defer import CancelledError
from twisted.internet.interfaces import IReactorTime

from bioproxy.http.buffer_budget import BufferBudget
from bioproxy.http.client_output import ClientOutput
from bioproxy.http.error_formats import error_event
from bioproxy.http.headers import end_to_end
from bioproxy.http.incoming_request import IncomingRequest
from bioproxy.http.keepalive import Keepalive
from bioproxy.http.own_answers import send_error
from bioproxy.http.request_body import RequestBody
from bioproxy.llama.answer_end import AnswerEnd
from bioproxy.llama.timings import Timings
from bioproxy.llama.tool_calls import ToolCalls
from bioproxy.llama.upstream import Upstream
from bioproxy.prompts.answer_text import AnswerText
from bioproxy.proxy import relay
from bioproxy.proxy.request_log import Record
from bioproxy.runtime.errors import ProxyError


class Exchange:
    """A client's request on its way to llama-server, and the answer on its way back.

    Invariant: after the first byte of llama-server's answer, nothing but that answer is written, or an error that ends
    it.
    """

    def __init__(
        self, request: IncomingRequest, clock: IReactorTime, buffers: BufferBudget, ping_interval: float
    ) -> None:
        """Make an exchange for a request that has arrived with its whole body.

        `clock` measures its times, `buffers` is the memory that all answers share, and `ping_interval` is in seconds.
        """
        self.request = request
        """The request as Twisted parsed it; the answer is written to it as well."""
        self.record = Record(request.uri.decode("ascii", "replace"), clock.seconds())
        """What the log and `/status` will say of it.  Its path is the whole target until that is parsed."""
        self.output = ClientOutput(request, clock, buffers)
        """The way out for the body of the answer, which does not wait for a slow client."""
        self.timings = Timings()
        """What llama-server says in its answer: tokens reused and computed."""
        self.answer: AnswerText | None = None
        """The text of the answer, where it is collected for a head start."""
        self.tool_calls = ToolCalls()
        """Whether the answer ended with tool calls."""
        self.left_at_end = False
        """Whether the client has hung up after the end of the answer, before that of the stream."""
        self.keepalive = Keepalive(self.output, clock, ping_interval)
        """The comments to a client that waits for a stream."""
        self.target = b""
        """The path and query to send on; empty until the request's target was found to be valid."""
        self.is_sent = False
        """Whether llama-server has been sent the request, or is just being sent it."""
        self.body = RequestBody(request.content)
        """The body to send on, complete: in memory or, if it is large, in a temporary file.  Filling replaces it."""
        self._end = AnswerEnd()
        self._clock = clock

    def tell(self, name: str, value: str) -> None:
        """Tell the client something in a header; without effect if the head has gone out already."""
        self.request.setHeader(name, value)

    async def send(self, upstream: Upstream) -> None:
        """Send the request to llama-server and give the client what comes back.

        Fires when llama-server has sent its whole answer; the client may have yet to read some.  Fails with
        `ProxyError`; cancelling closes the connection to llama-server, which then stops computing.
        """
        # The headers as they came, in their order and with repetitions, but for those that are about one connection.
        # `Expect` asks us to say when the body may come (RFC 9110, section 10.1.1).  It is here already.
        headers = end_to_end(self.request.requestHeaders)
        headers.removeHeader(b"expect")
        # Waits for the head of the answer without a limit: llama-server sends it only when the prompt is processed,
        # which may take minutes.  Whether llama-server is still alive is watched elsewhere.
        self.is_sent = True
        response = await upstream.relay(self.request.method, self.target, headers, self.body)
        # The head of a stream comes at once, and its first event when the prompt is read: comments go on until then.
        # For any other answer they end here.  From here to the head of our own answer there is no `await` on the usual
        # path, so no comment can come in between.
        if relay.takes_comments(response):
            self.keepalive.head_has_come()
        else:
            self.keepalive.end()
        self.record.status = response.code
        # If a comment was sent, the client has a head with status 200, and only a stream of events fits behind it.
        if self.keepalive.sent:
            await relay.only_stream(response, upstream)
        else:
            relay.send_head(response, self.request)
        try:
            await relay.send_body(response, self.output, upstream, self._on_data)
        except CancelledError:
            # Some clients hang up as soon as they have the last event.  That is an answer like any other.
            if not self._end.passed:
                raise
            self.left_at_end = True
        # A stream may end without a single event.
        self.keepalive.end()

    def fail(self, error: ProxyError) -> None:
        """Tell the client of an error, in the way that is still possible.  Never fails."""
        # The comments end first: one of them behind the error would be garbage.
        self.keepalive.end()
        # Behind the answer's end only a mistake of ours can come, in what is learned from it.  Its client has it.
        if self.output.ended or self.left_at_end:
            return
        self.record.status = error.status
        if self.request.startedWriting:
            # Stages 2 and 3.  `output` knows which one it is by the content type that was sent.
            self.output.fail(error_event(self.record.path, error))
        else:
            # Stage 1.  llama-server's body may have been announced already; what was registered for it is taken back,
            # since Twisted allows one producer for each connection.
            self.output.withdraw()
            send_error(self.request, self.record.path, error)

    def _on_data(self, data: bytes) -> None:
        """Look at a piece of llama-server's body.  Called for each one, before it is written to the client."""
        # A comment between two pieces could stand in the middle of an event.
        self.keepalive.end()
        # The first piece stands for the first token.  The head does not: llama-server may send it much earlier.
        if self.record.ttft_ms is None:
            self.record.ttft_ms = (self._clock.seconds() - self.record.arrived) * 1000
        self.timings.feed(data)
        self._end.feed(data)
        if self.answer is not None:
            self.answer.feed(data)
        self.tool_calls.feed(data)
