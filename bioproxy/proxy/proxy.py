"""The life of a request, from the client's first byte to the answer's last.

`Proxy._gated` is the heart, and reads from top to bottom: find the templates, wait at the gate, fill them, prepare the
slot, send the request, relay the answer, note what the slot holds now.  Each `await` in it is a point where other code
runs and where the request may end: its client hangs up, llama-server breaks off, the service stops.

Twisted's HTTP server calls a function for each request.  Here that is a coroutine (``async def``).  When a client hangs
up, its coroutine is *cancelled* (`bioproxy.http.resources`): the `await` in progress raises `CancelledError`.  Python
then runs every ``finally`` and ``async with`` on the way out, and these give up the place in the queue, open the gate
and close the connection to llama-server.  So there is no list of clients that have gone, and no code at each `await`
for a client that may be gone.  In Twisted, unlike asyncio, `CancelledError` is an ordinary `Exception`: an ``except
Exception`` around an `await` must let it pass.

A request is never sent to llama-server a second time, whatever goes wrong.  It is not idempotent: llama-server may have
generated half an answer, and repeating that takes the slot from others for minutes, for a client that may not want it
any more.  The client gets the error, and decides.

This module knows the order of steps only: not what the slot holds, not the APIs, not the bytes on the connection.
"""

from __future__ import annotations

from twisted.internet.defer import CancelledError
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger
from twisted.web.resource import IResource

from bioproxy.gate.gate import Gate
from bioproxy.http.buffer_budget import SLOT_BUFFER_BYTES, BufferBudget
from bioproxy.http.incoming_request import IncomingRequest
from bioproxy.http.resources import CatchAllResource
from bioproxy.http.targets import ADAPTERS, origin_form, path_of, uses_slot
from bioproxy.learning.prompt_learning import PromptLearning
from bioproxy.llama.upstream import Upstream
from bioproxy.prompts.filling import NamedTemplates
from bioproxy.proxy.asked import Asked, asked_by_chat, asked_by_template
from bioproxy.proxy.exchange import Exchange
from bioproxy.proxy.request_log import CLIENT_GONE, RequestLog
from bioproxy.proxy.request_reader import RequestReader
from bioproxy.proxy.running import RunningRequests
from bioproxy.proxy.slot_access import SlotAccess
from bioproxy.proxy.turns import turn_for
from bioproxy.proxy.waits import Waits
from bioproxy.runtime.errors import ProxyError
from bioproxy.slot.slot import Slot
from bioproxy.warmup.schedule import Schedule


class Proxy:
    """Serves the clients' port.

    Invariant: every request gets an answer, is ended uncleanly so that its answer does not look complete, or has lost
    its client.  Each one is logged exactly once, whichever of these it is.

    What a gated request waits for, in this order, and what a hang-up does at that point::

        find      the worker process, for a large body    ends that process; the next request starts another one
        gate      the requests before this one            leaves the queue
        fill      a thread that reads template files      opens the gate; what the thread reads is dropped
        start     llama-server loading its model          leaves the gate to the next one, which waits as well
        prepare   some short calls of llama-server        closes the connection of the call in progress
        head      llama-server computing the prompt       closes the connection; llama-server stops at its next batch
        body      llama-server generating the answer      closes the connection; llama-server stops at its next token
        the rest  the client reading, outside the gate    drops what was kept for it

    From "gate" to "body" the time is what all others wait for, so nothing else is awaited there.
    """

    log = Logger()
    """Logs under the name of this module and class.  It takes the place of a global logger."""

    running: RunningRequests
    """The requests that are being served.  A stop waits for them."""

    ping_interval: float
    """Seconds between comments to a client that waits for a stream; 0 for none.  May be changed at any time."""

    def __init__(
        self,
        reader: RequestReader,
        gate: Gate,
        waits: Waits,
        slot: Slot,
        slot_access: SlotAccess,
        prompt_learning: PromptLearning,
        schedule: Schedule,
        upstream: Upstream,
        request_log: RequestLog,
        clock: IReactorTime,
        ping_interval: float,
    ) -> None:
        """Put the parts together; nothing happens before the first request.

        `reader` finds and fills templates, `gate` is the queue, `waits` knows what to tell those who wait in it, and
        `slot_access` prepares the `slot`.  `prompt_learning` knows with which learned prompt a chat begins.  `schedule`
        is told which prompts are asked for.  `upstream` sends requests on, and knows whether llama-server responds.
        `request_log` gets each request when it has ended.  `clock`, the reactor or a test's, measures all times.
        `ping_interval` is the first value of the attribute, in seconds.
        """
        self._reader = reader
        self._gate = gate
        self._waits = waits
        self._slot = slot
        self._slot_access = slot_access
        self._prompt_learning = prompt_learning
        self._schedule = schedule
        self._upstream = upstream
        self._request_log = request_log
        self._clock = clock
        self.ping_interval = ping_interval
        # One budget for all clients: the memory that slow readers take together is what has to be limited.
        self._buffers = BufferBudget()
        self.running = RunningRequests()

    def resource(self) -> IResource:
        """Return what a `Site` serves: Twisted's word for the object that answers requests.

        Every path leads to `serve`: which paths exist is for llama-server to say, and later builds have new ones.
        """
        return CatchAllResource(self.serve)

    async def serve(self, request: IncomingRequest) -> None:
        """Answer one request, whatever its path and method.

        Called by `CatchAllResource` when the request has arrived with its body, and cancelled on a hang-up.  Fires when
        the client has read its answer; fails with `CancelledError` only.
        """
        # The interval is read once for each request, so a reload applies to those that come later.
        exchange = Exchange(request, self._clock, self._buffers, self.ping_interval)
        # No `await` from here to the `try`: nothing can end this coroutine before the `finally` protects it.
        self.running.add(exchange)
        try:
            await self._answer(exchange)
            # Answered, but cancelled meanwhile, and so it has to end.
            if exchange.left_at_end:
                raise CancelledError
            # The answer is complete, but a slow client may have yet to read megabytes of it.  That is waited for
            # outside the gate, and a stop still sees this request as running.  If the client hangs up now, only what
            # was kept for it is dropped.
            if exchange.output.begun:
                await exchange.output.done
        except CancelledError:
            # The only place that notes a hang-up.  Raised again, as by every coroutine that was cancelled.
            if not exchange.left_at_end:
                exchange.record.status = CLIENT_GONE
            raise
        finally:
            # Synchronous on purpose: a coroutine that was cancelled may not await here, or `cancel` would return
            # before the cleanup is done.  First the timer, which would write to a connection that is gone.
            exchange.keepalive.end()
            self._waits.gone(exchange.record)
            self._request_log.close(
                exchange.record, uses_slot(request.method, exchange.record.path), exchange.timings.values
            )
            # Last, since the shutdown goes on inside this call, if it waits for the last request.
            self.running.remove(exchange)

    async def _answer(self, exchange: Exchange) -> None:
        """Serve a request, and tell the client what went wrong if something did.

        Fires when llama-server has ended its answer, or the client was told the error.  Fails with `CancelledError`
        only.
        """
        request, record = exchange.request, exchange.record
        try:
            # Before the refusal is looked at, because the path decides the format in which an error is told.
            exchange.target = origin_form(request.uri)
            record.path = path_of(exchange.target)
            gated = uses_slot(request.method, record.path)
            if gated:
                # While a client does not read its answer, the slot would stay busy: a gated answer is kept for it.
                exchange.output.buffer_limit = SLOT_BUFFER_BYTES
                exchange.tell("X-Bioproxy-Request-Id", record.id)
            # The head or the body was refused while it arrived.  Such a request comes here like all others, so that it,
            # too, has a record, a line in the log, and an answer in the format of its API.
            if request.refusal is not None:
                raise request.refusal
            # Another adapter makes another model of the same weights.  Noted before the call is sent: if its client
            # hangs up, nobody would learn whether it still took effect.
            if record.path == ADAPTERS and request.method == b"POST":
                self._slot.model_changed()
            # Errors of both are told below, in one place, because only the exchange knows how far its answer has come.
            await (self._gated(exchange) if gated else self._ungated(exchange))
        except CancelledError:
            # Must come first: it would match `Exception` below, and an error would be written to a client that is gone.
            raise
        except ProxyError as error:
            # All that is expected to go wrong: it has a status and a sentence for the client; no traceback is logged.
            exchange.fail(error)
        except Exception:
            # A bug in bioproxy.  The client must learn of it as well, and never take an answer for complete that
            # has begun and cannot be ended.
            self.log.failure("internal error while serving {path}", path=record.path)
            exchange.fail(ProxyError("internal error in bioproxy; its log has the details"))

    async def _ungated(self, exchange: Exchange) -> None:
        """Serve a request that does not use the slot.

        It is not queued, but templates are filled here, too: a request that counts tokens has to count those of the
        request that it stands for.  Fires and fails as `Exchange.send`; cancelling ends whichever step is in progress.
        """
        # A hang-up gives up the worker process, or a thread.
        self._upstream.refuse_while_starting()
        found = await self._reader.find(exchange.record.path, exchange.body)
        if isinstance(found, NamedTemplates):
            exchange.body = exchange.body.filled((await self._reader.fill(found)).pieces)
        await exchange.send(self._upstream)

    async def _gated(self, exchange: Exchange) -> None:
        """Serve a request that uses the slot.

        Fires when llama-server has sent its answer and the slot is free again, or will be as soon as what it holds is
        noted.  Fails with `ProxyError`.  Cancelling gives up the queue, the gate or the answer, whichever it has come
        to; docs/cancellation.md has a row for each `await`.
        """
        record = exchange.record
        # 1. Find the templates that it names.  Before the queue, because a request that is refused (no such file, too
        #    large) must learn that at once and not after minutes.  Nothing is held yet, so a hang-up costs nothing.
        #    Of a chat that names none, the beginning is looked at: it may be one that was learned.
        found = await self._reader.find(record.path, exchange.body)
        if isinstance(found, NamedTemplates):
            # Noted before it is tried: an operator looks for the name if the file cannot be read.
            record.template = found.templates[0].name
            exchange.tell("X-Bioproxy-Template", record.template)
            await self._reader.try_to_fill(found)
        elif found is not None:
            await self._prompt_learning.look(found)
        asked: Asked | None = None
        self._waits.arrived(record, found, exchange.body.size)

        # 2. Wait for its turn.  A client that asked for a stream gets comments meanwhile.  With the first one goes the
        #    head of the answer: `tell` then has no effect, and an error becomes an event (`Exchange.fail`).
        #    The place in the queue is taken by entering the block, which also interrupts a warm-up.  Leaving the block
        #    opens the gate, whatever the reason: the last line, an error, or a hang-up at any `await` inside.
        turn = turn_for(self._gate, self._slot, exchange, found)
        # Two functions: both answers are needed only when a comment is due.  `exchange.body` is replaced below.
        arrived = exchange.body
        # An error of the queue (full, waited too long, stopping) is raised on entering, before anything was prepared.
        exchange.keepalive.begin(
            record.path,
            lambda: self._reader.asks_for_stream(record.path, arrived),
            lambda: self._waits.words(exchange, turn),
        )
        async with turn as waited:
            record.queue_ms = waited * 1000
            self._waits.entered(record)
            exchange.tell("X-Bioproxy-Queue-Ms", f"{record.queue_ms:.1f}")
            # Fail fast while llama-server is unresponsive.  One that is just being started is waited for.
            await self._upstream.ready(self._gate.timeout - waited)

            # 3. Fill the templates and prepare the slot.  Filled only now: a file may have been edited while the
            #    request waited, and hundreds of waiting requests would otherwise each hold a filled body.
            if isinstance(found, NamedTemplates):
                # The files are looked at in a thread: this may take long on a slow disk, and fail.
                filled = await self._reader.fill(found)
                exchange.body = arrived.filled(filled.pieces)
                asked = asked_by_template(filled)
            elif found is not None:
                # Only now: the prompt may have been learned while the request waited.
                asked = asked_by_chat(found, self._prompt_learning.prompt_for(found))
            if asked is not None and asked.prompt:
                self._schedule.asked(asked.prompt)
            # Entering prepares the slot by calls of llama-server; a failure there only makes the request slower.  A
            # hang-up leaves the slot as known as it was, or unknown, never wrong.
            async with self._slot_access.use(turn, exchange, asked) as use:
                # Told before the request is sent: the head of the answer takes these along.
                if asked is not None and use is not None:
                    self._slot_access.tell(exchange, asked, use.prepared)

                # 4. Send it and relay the answer.  This is the long `await`, from seconds to minutes.  A hang-up closes
                #    the connection, and llama-server stops at its next batch or token.  If llama-server breaks off,
                #    the error leaves through both blocks, which open the gate and leave the slot unknown.
                await exchange.send(self._upstream)

                # 5. Learn from the answer.  There is no `await` from here to the end of the block, so a complete answer
                #    is also noted.  What the slot holds is asked on leaving, by the gate: no hang-up interrupts it.
                if asked is not None and use is not None and asked.reusable and record.status == 200:
                    turn.lingers = exchange.tool_calls.found
                    use.answered(self._slot_access.learn(exchange, asked), exchange.timings.prompt_tokens)
            self._waits.served(exchange)  # not reached after an error or a hang-up, which would teach nothing
