"""The life of a request, from the client's first byte to the answer's last.

`_gated` is the heart, and reads from top to bottom: fill the template, wait at the gate, put the right state into the
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

import json
from collections.abc import Iterable

from klein import Klein
from twisted.internet.defer import CancelledError
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger
from twisted.web.resource import IResource
from twisted.web.server import Request

from bioproxy import relay, rewrite
from bioproxy.errors import BodyTooLarge, ProxyError
from bioproxy.gate import Gate
from bioproxy.habits import Habits
from bioproxy.headers import Pair, end_to_end
from bioproxy.holding import Believed
from bioproxy.journal import Journal, Record
from bioproxy.outlet import Outlet
from bioproxy.poller import Poller
from bioproxy.ports import AnyPath
from bioproxy.rewrite import Filled
from bioproxy.slot import Prepared, Slot
from bioproxy.targets import ADAPTERS, is_save, origin_form, path_of, uses_slot
from bioproxy.upstream import Upstream
from bioproxy.warmer import Warmer

CLIENT_GONE = 499
"""The status noted for a request whose client hung up.  Nobody receives it; nginx uses the same number."""


class Proxy:
    """The proxy port.  Every request is answered, ended uncleanly, or has lost its client."""

    app = Klein()
    log = Logger()

    def __init__(
        self,
        poller: Poller,
        gate: Gate,
        slot: Slot,
        habits: Habits,
        warmer: Warmer,
        upstream: Upstream,
        journal: Journal,
        clock: IReactorTime,
        max_body: int,
    ) -> None:
        self._poller = poller
        self._gate = gate
        self._slot = slot
        self._habits = habits
        self._warmer = warmer
        self._upstream = upstream
        self._journal = journal
        self._clock = clock
        self._max_body = max_body

    def resource(self) -> IResource:
        """Return what a `Site` serves."""
        return AnyPath(self.app.resource())

    @app.route("/")
    async def serve(self, request: Request) -> None:
        """Answer one request, whatever its path and method.  Klein calls this, and cancels it on a hang-up."""
        record = Record(request.uri.decode("ascii", "replace"), self._clock.seconds())
        outlet, timings = Outlet(request, self._clock), relay.Timings()
        try:
            await self._answer(request, outlet, record, timings)
            if outlet.begun:
                await outlet.over  # nobody waits for this client: the gate is open again
        except CancelledError:
            record.status = CLIENT_GONE
            raise
        finally:
            self._journal.close(record, uses_slot(request.method, record.path), timings.values)

    async def _answer(self, request: Request, outlet: Outlet, record: Record, timings: relay.Timings) -> None:
        """Serve a request, and tell the client what went wrong if something did.  Fails with `CancelledError` only."""
        try:
            target = origin_form(request.uri)
            record.path = path_of(target)
            if uses_slot(request.method, record.path):
                request.setHeader("X-Bioproxy-Request-Id", record.id)
                await self._gated(request, outlet, target, self._body(request), record, timings)
            else:
                if record.path == ADAPTERS and request.method == b"POST":
                    self._slot.model_changed()
                await self._send(request, outlet, target, self._body(request), record, timings)
        except CancelledError:
            raise
        except ProxyError as error:
            record.status = error.status
            self._tell(request, outlet, error)
        except Exception:
            # A bug of ours.  The client must learn of it all the same, and not from Klein, which would append its
            # page to an answer that has begun, and end it as if it were whole.
            self.log.failure("while serving {path}", path=record.path)
            record.status = 500
            self._tell(request, outlet, ProxyError("bioproxy made a mistake; its log has the details"))

    async def _gated(
        self, request: Request, outlet: Outlet, target: bytes, body: bytes, record: Record, timings: relay.Timings
    ) -> None:
        """Serve a request that uses the slot."""
        # 1. Fill the template.  The files are looked at now, so the text is never older than they are.
        filled = await self._fill(record.path, body)
        if filled is not None:
            body = filled.body
            record.template = filled.template.name
            request.setHeader("X-Bioproxy-Template", record.template)
        prepared = None

        # 2. Wait for one's turn.
        async with self._gate.user() as waited:
            record.queue_ms = waited * 1000
            request.setHeader("X-Bioproxy-Queue-Ms", f"{record.queue_ms:.1f}")

            # 3. Put the right state into the slot.
            if filled is not None:
                prepared = await self._prepare(request, filled, record)
            else:
                await self._slot.keeper.keep()  # what the slot holds will be lost
                if is_save(record.path, target):
                    self._slot.files.changed(filename(body))

            # 4. Send it and relay the answer.  From here on the slot changes; until all went well nobody knows how.
            reusable = filled is not None and filled.reuse
            self._slot.holding.taken_by_user(Believed(filled.key, filled.turns) if filled and reusable else None)
            await self._send(request, outlet, target, body, record, timings)

            # 5. Note what the slot holds now, before anybody else gets in.  The client has its answer already.
            if filled is not None and prepared is not None and reusable and record.status == 200:
                await self._learn(filled, prepared, timings.values.get("cache_n"))

    async def _fill(self, path: str, body: bytes) -> Filled | None:
        """Fill the templates that a chat request names; `None` where it names none.  Raises `ProxyError`."""
        if path not in rewrite.CHAT_PATHS:
            return None
        found = rewrite.find(body, self._poller.templates.values())
        if found is None:
            return None
        texts = {template.name: await self._poller.look(template) for template in found.templates}
        return found.fill(texts, self._max_body)

    async def _prepare(self, request: Request, filled: Filled, record: Record) -> Prepared:
        """Bring the template into the slot and tell the client how."""
        self._warmer.asked(filled.template.name)
        if filled.reuse:
            prepared = await self._slot.prepare(filled.template.name, filled.key, filled.turns)
        else:
            await self._slot.keeper.keep()
            prepared = Prepared("cold", "ineffective")
        record.cache, record.miss, record.restore_ms = prepared.cache, prepared.miss, prepared.restore_ms
        request.setHeader("X-Bioproxy-Cache", prepared.cache)
        if prepared.miss is not None:
            request.setHeader("X-Bioproxy-Miss", prepared.miss)
        if prepared.restore_ms is not None:
            request.setHeader("X-Bioproxy-Restore-Ms", f"{prepared.restore_ms:.1f}")
        return prepared

    async def _learn(self, filled: Filled, prepared: Prepared, reused: float | None) -> None:
        """Draw conclusions from an answer: what does the slot hold now, did restoring help, how do clients ask?"""
        name = filled.template.name
        self._habits.asked(name, filled.key.shape, filled.first_shape)
        if reused is not None:
            self._slot.judge(name, prepared, int(reused))
        await self._slot.note(name, filled.key, filled.turns)

    async def _send(
        self, request: Request, outlet: Outlet, target: bytes, body: bytes, record: Record, timings: relay.Timings
    ) -> None:
        """Send the request to llama-server and give the client what comes back."""

        def on_data(data: bytes) -> None:
            if record.ttft_ms is None:
                record.ttft_ms = (self._clock.seconds() - record.arrived) * 1000
            timings.feed(data)

        response = await self._upstream.relay(request.method, target, end_to_end(raw_headers(request)), body)
        record.status = response.code
        relay.send_head(response, request)
        await relay.send_body(response, outlet, self._upstream, on_data)

    def _body(self, request: Request) -> bytes:
        """Return the request's body.  Raises `BodyTooLarge`."""
        # Twisted calls us when the body is here as a whole: in memory, or in a temporary file if it is large.
        assert request.content is not None
        body: bytes = request.content.read(self._max_body + 1)
        if len(body) > self._max_body:
            raise BodyTooLarge(f"the request's body is larger than {self._max_body} bytes")
        return body

    def _tell(self, request: Request, outlet: Outlet, error: ProxyError) -> None:
        """Give the client an error, in the way that is still possible."""
        if request.startedWriting:
            outlet.fail(error)
        else:
            outlet.withdraw()
            relay.refuse(request, error)


def raw_headers(request: Request) -> Iterable[Pair]:
    """Return the client's headers as pairs."""
    return [(name, value) for name, values in request.requestHeaders.getAllRawHeaders() for value in values]


def filename(body: bytes) -> str:
    """Return the file that a `POST /slots/...` names, empty where it names none."""
    try:
        return str(json.loads(body)["filename"])
    except (ValueError, KeyError, TypeError, RecursionError):
        return ""
