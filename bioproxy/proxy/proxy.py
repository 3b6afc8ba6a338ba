"""The life of a request, from the client's first byte to the answer's last.

`_gated` is the heart, and reads from top to bottom: find the template, wait at the gate, put the right state into the
slot, send, relay the answer, note what the slot holds now.  Each `await` is a point where the world may interrupt: the
client hangs up, llama-server breaks off, the service stops.

Klein maps paths to functions, and lets them be coroutines (``async def``): when a client hangs up, Klein *cancels* the
coroutine, which means that the `await` it is waiting in raises `CancelledError`.  Python then runs every ``finally``
and ``async with`` on the way out: a place in the queue is given up, the gate is freed, the connection to llama-server
is closed.  So there is no bookkeeping of clients that have gone.  (In Twisted, unlike asyncio, `CancelledError` is an
ordinary `Exception`: an ``except Exception`` around an `await` must let it pass.)

Requests that do not use the slot pass straight through.
"""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager

from klein import Klein
from twisted.internet.defer import CancelledError, Deferred, succeed
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger
from twisted.web.http_headers import Headers
from twisted.web.resource import IResource

from bioproxy.http.client_output import SLOT_BUFFER_BYTES, BufferBudget
from bioproxy.http.incoming_request import IncomingRequest
from bioproxy.http.resources import CatchAllResource
from bioproxy.http.targets import ADAPTERS, SLOT_ACTIONS, origin_form, path_of, uses_slot
from bioproxy.llama.upstream import Upstream
from bioproxy.prompts.filling import FilledRequest
from bioproxy.proxy.exchange import Exchange
from bioproxy.proxy.miss_reasons import MissReasons
from bioproxy.proxy.request_log import RequestLog
from bioproxy.proxy.request_reader import RequestReader
from bioproxy.runtime.errors import BadTarget, ProxyError
from bioproxy.settings.api_keys import ApiKeys
from bioproxy.slot.client_calls import saved_to
from bioproxy.slot.gate import Gate
from bioproxy.slot.preparer import Prepared
from bioproxy.slot.slot import Slot
from bioproxy.slot.turn import Turn
from bioproxy.slot.uses import TemplateUse
from bioproxy.warmup.shape_learning import ShapeLearning
from bioproxy.warmup.warmer import Warmer

CLIENT_GONE = 499
"""The status noted for a request whose client hung up.  Nobody receives it; nginx uses the same number."""


class Proxy:
    """The proxy port.  Every request is answered, ended uncleanly, or has lost its client."""

    app = Klein()
    log = Logger()

    def __init__(
        self,
        reader: RequestReader,
        gate: Gate,
        slot: Slot,
        shape_learning: ShapeLearning,
        warmer: Warmer,
        upstream: Upstream,
        request_log: RequestLog,
        miss_reasons: MissReasons,
        keys: ApiKeys,
        clock: IReactorTime,
        ping_interval: float,
    ) -> None:
        self._reader = reader
        self._gate = gate
        self._slot = slot
        self._shape_learning = shape_learning
        self._warmer = warmer
        self._upstream = upstream
        self._request_log = request_log
        self._keys = keys
        self._miss_reasons = miss_reasons
        self._clock = clock
        self.ping_interval = ping_interval
        self._buffers = BufferBudget()
        self._running: set[Exchange] = set()
        self._quiet: Deferred[None] = Deferred()

    def resource(self) -> IResource:
        """Return what a `Site` serves."""
        return CatchAllResource(self.app.resource())

    def judge(self, method: bytes, target: bytes, headers: Headers) -> ProxyError | None:
        """Return why a request is refused, if it is, before its body comes; if not, take its key out of its headers."""
        if method == b"CONNECT":
            return BadTarget("this is no way to anywhere else")  # whatever follows would be taken for another protocol
        try:
            refusal = self._keys.judge(method, path_of(origin_form(target)), headers)
        except BadTarget as error:
            return error
        if refusal is None:
            self._keys.exchange(headers)  # now: other keys may be in force when the request is sent on
        return refusal

    @app.route("/")
    async def serve(self, request: IncomingRequest) -> None:
        """Answer one request, whatever its path and method.  Klein calls this, and cancels it on a hang-up."""
        exchange = Exchange(request, self._clock, self._buffers, self.ping_interval)
        self._running.add(exchange)
        try:
            await self._answer(exchange)
            if exchange.output.begun:
                await exchange.output.done  # nobody waits for this client: the gate is open again
        except CancelledError:
            exchange.record.status = CLIENT_GONE
            raise
        finally:
            exchange.keepalive.end()
            self._request_log.close(
                exchange.record, uses_slot(request.method, exchange.record.path), exchange.timings.values
            )
            self._running.discard(exchange)
            if not self._running:
                self._quiet.callback(None)
                self._quiet = Deferred()

    def finished(self) -> Deferred[None]:
        """Fire when all requests that came so far, and meanwhile, are answered."""
        if not self._running:
            return succeed(None)
        finished: Deferred[None] = Deferred()
        self._quiet.chainDeferred(finished)
        return finished

    async def _answer(self, exchange: Exchange) -> None:
        """Serve a request, and tell the client what went wrong if something did.  Fails with `CancelledError` only."""
        request, record = exchange.request, exchange.record
        try:
            exchange.target = origin_form(request.uri)
            record.path = path_of(exchange.target)
            gated = uses_slot(request.method, record.path)
            if gated:
                exchange.output.buffer_limit = SLOT_BUFFER_BYTES
                exchange.tell("X-Bioproxy-Request-Id", record.id)
            if request.refusal is not None:
                raise request.refusal
            if record.path == ADAPTERS and request.method == b"POST":
                self._slot.model_changed()
            await (self._gated(exchange) if gated else self._ungated(exchange))
        except CancelledError:
            raise
        except ProxyError as error:
            exchange.fail(error)
        except Exception:
            # A bug of ours.  The client must learn of it all the same, and not from Klein, which would append its
            # page to an answer that has begun, and end it as if it were whole.
            self.log.failure("while serving {path}", path=record.path)
            exchange.fail(ProxyError("bioproxy made a mistake; its log has the details"))

    async def _ungated(self, exchange: Exchange) -> None:
        """Serve a request that does not use the slot; what counts the tokens of a request, say, counts them filled."""
        found = await self._reader.find(exchange.record.path, exchange.body)
        if found is not None:
            exchange.body = exchange.body.filled((await self._reader.fill(found)).pieces)
        await exchange.send(self._upstream)

    async def _gated(self, exchange: Exchange) -> None:
        """Serve a request that uses the slot."""
        record = exchange.record
        # 1. Find the templates that it names.
        found = await self._reader.find(record.path, exchange.body)
        if found is not None:
            record.template = found.templates[0].name
            exchange.tell("X-Bioproxy-Template", record.template)
        filled = None

        # 2. Wait for one's turn.
        turn = self._gate.user(record)
        arrived = exchange.body
        exchange.keepalive.begin(lambda: self._reader.asks_for_stream(record.path, arrived), lambda: turn.place)
        async with turn as waited:
            record.queue_ms = waited * 1000
            exchange.tell("X-Bioproxy-Queue-Ms", f"{record.queue_ms:.1f}")
            self._upstream.check()  # who comes after one that waited in vain need not find that out again

            # 3. Fill the templates, as they are now, and put the right state into the slot.
            if found is not None:
                filled = await self._reader.fill(found)
                exchange.body = arrived.filled(filled.pieces)
                self._warmer.schedule.asked(filled.template.name)
            async with self._use_of_slot(turn, exchange, filled) as use:
                if filled is not None and use is not None:
                    self._tell_prepared(exchange, filled, use.prepared)

                # 4. Send it and relay the answer.
                await exchange.send(self._upstream)

                # 5. Learn from the answer.  What the slot holds now is noted on leaving.
                if filled is not None and use is not None and filled.reusable and record.status == 200:
                    use.answered(self._learn(exchange, filled))

    def _use_of_slot(
        self, turn: Turn, exchange: Exchange, filled: FilledRequest | None
    ) -> AbstractAsyncContextManager[TemplateUse | None]:
        """Return the use of the slot that a request makes."""
        headers = exchange.request.requestHeaders
        # llama-server goes on with these even if nobody listens: they can be picked up at /v1/stream.
        continues = headers.hasHeader("x-conversation-id")
        if filled is not None:
            return self._slot.use_for_template(
                turn,
                filled.template.name,
                filled.key,
                filled.conversation,
                reuses=filled.reusable,
                llama_continues=continues,
            )
        is_slot_call = exchange.record.path.startswith(SLOT_ACTIONS)
        written = saved_to(exchange.target, headers, exchange.body) if is_slot_call else ""
        return self._slot.use_otherwise(turn, may_write=written, llama_continues=continues)

    def _tell_prepared(self, exchange: Exchange, filled: FilledRequest, prepared: Prepared) -> None:
        """Tell the client how the slot was prepared for its request."""
        record = exchange.record
        record.cache, record.restore_ms = prepared.cache, prepared.restore_ms
        exchange.tell("X-Bioproxy-Cache", prepared.cache)
        if prepared.miss is not None:
            record.miss = self._miss_reasons.reason(filled, prepared.miss)
            exchange.tell("X-Bioproxy-Miss", record.miss)
            record.miss_detail = self._miss_reasons.detail(filled, record.miss)
            if record.miss_detail is not None:
                exchange.tell("X-Bioproxy-Miss-Detail", record.miss_detail)
        if prepared.restore_ms is not None:
            exchange.tell("X-Bioproxy-Restore-Ms", f"{prepared.restore_ms:.1f}")

    def _learn(self, exchange: Exchange, filled: FilledRequest) -> int | None:
        """Draw conclusions from an answer; return how many tokens it says were reused, `None` if it does not say."""
        record, reused = exchange.record, exchange.timings.values.get("cache_n")
        if reused is not None and record.miss is None:
            record.miss_detail = self._miss_reasons.afterwards(filled, int(reused))
            record.miss = "ineffective" if record.miss_detail else None
        self._shape_learning.asked(filled.template.name, filled.shape if filled.first_question else None)
        return None if reused is None else int(reused)
