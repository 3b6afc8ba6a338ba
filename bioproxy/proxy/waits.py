"""What waiting clients wait for: how long until their turn, and how far their prompt is.

Puts together what several parts know: the gate knows who is inside and who is ahead of whom, `Experience` knows what
such requests take, and llama-server knows how much of a prompt it has read.  The results go to three readers: the
comments in a waiting client's stream (`Waits.words`), the record of the request (`Waits.arrived`), and the live page
(`Waits.progress_of`).

Estimates are made from what is inside and ahead at the moment, so nothing has to be updated when somebody hangs up.
`bioproxy.proxy.forecast` makes them for the whole queue at once: a thousand waiting clients ask as often as one.  It is
an estimate of *this* queue.  Who passes others (``patience``), and for how long the gate lingers, is not
foreseen: those requests are mostly not here yet, and while somebody is inside, nobody knows what the slot will hold.

On Twisted: asking llama-server is an `await`, and llama-server may hang.  A client that waits must get its comment in
any case, since that is what keeps its connection open.  So the question has a time limit of its own (`addTimeout`,
which cancels the `Deferred`, and so closes the connection of that question).

Nothing here decides anything: with wrong estimates every request is served as before.
"""

from __future__ import annotations

from dataclasses import dataclass

from twisted.internet.defer import Deferred, TimeoutError
from twisted.internet.interfaces import IReactorTime

from bioproxy.gate.estimate import Expected, Experience, Kind, Served
from bioproxy.gate.gate import Gate
from bioproxy.gate.turn import Turn
from bioproxy.http.targets import SLOT_ACTIONS
from bioproxy.http.waiting_words import reading, waiting
from bioproxy.learning.prompt_learning import PromptLearning
from bioproxy.llama.prompt_progress import PromptProgress, prompt_progress
from bioproxy.llama.speed import Speed
from bioproxy.llama.upstream import Upstream
from bioproxy.prompts.chat_request import ChatRequest
from bioproxy.prompts.filling import NamedTemplates
from bioproxy.proxy.exchange import Exchange
from bioproxy.proxy.forecast import SHARED, Forecast
from bioproxy.proxy.request_log import Record
from bioproxy.runtime.errors import LlamaCallFailed

LOOK_SECONDS = 1.0
"""Seconds that llama-server may take to say how far a prompt is; it takes milliseconds.

Halved, a busy machine tells less often; doubled, a comment may come two seconds late while llama-server hangs.
"""

LOOK_PAUSE = 2.0
"""Seconds between two such questions about one request, at least.

It matters only if ``ping_interval`` is shorter.  llama-server looks whether a client is gone only after a second
without other tasks, and this question is one: at half of it, a client's hang-up would just still be noticed; doubled,
the number is older.
"""

PREPARED = "being prepared"
"""The words for a request that is inside, as long as nothing more is known."""


@dataclass
class Visit:
    """A request on its way through the gate, for as long as it lasts."""

    kind: Kind
    """What it has in common with others."""
    size: int
    """Bytes of its body as it arrived."""
    entered: float | None = None
    """When it got the slot, in the clock's seconds; `None` while it waits."""
    looked: float | None = None
    """When llama-server was last asked about its prompt."""
    progress: PromptProgress | None = None
    """What llama-server said then."""
    expected: Expected | None = None
    """What it will probably take; `None` if nothing is known, or it was not estimated yet."""
    estimated: float | None = None
    """When that was estimated."""


class Waits:
    """Knows all requests that wait or are inside.

    Invariant: each request that has `arrived` is known until it is told to be `gone`, and no other is.
    """

    def __init__(
        self,
        gate: Gate,
        prompt_learning: PromptLearning,
        speed: Speed,
        upstream: Upstream,
        clock: IReactorTime,
        experience: Experience,
    ) -> None:
        """Know no request yet.

        `gate` knows the queue, `prompt_learning` with which learned prompt a chat begins, `speed` what a prompt token
        takes (for answers that do not tell), and `upstream` is asked how far a prompt is.  `experience` learns from
        each answer, and makes the estimates.
        """
        self._gate = gate
        self._prompt_learning = prompt_learning
        self._speed = speed
        self._upstream = upstream
        self._clock = clock
        self._experience = experience
        self._forecast = Forecast(gate, self._rest, clock)
        # By the request's id.
        self._visits: dict[str, Visit] = {}

    # What the proxy reports, in this order.

    def arrived(self, record: Record, found: NamedTemplates | ChatRequest | None, size: int) -> None:
        """Note a request that is about to join the queue, and in its record, how long it will wait.

        `found` is what its body was found to be, and `size` is how many bytes that has.
        """
        # Before it joins, so those that are there now are those ahead of it, but for those that let everybody pass.
        seconds = self._forecast.for_next()
        record.estimate_ms = None if seconds is None else seconds * 1000
        # A learned prompt stands in the place of a template: requests on it have as much in common.
        prompt = record.template
        if isinstance(found, ChatRequest) and (learned := self._prompt_learning.prompt_for(found)) is not None:
            prompt = learned.id
        self._visits[record.id] = Visit(request_kind(record.path, prompt, found), size)

    def entered(self, record: Record) -> None:
        """Note that it has the slot now."""
        # Measured here and not at the gate: what the gate does behind a turn belongs to no request.
        self._visits[record.id].entered = self._clock.seconds()

    def served(self, exchange: Exchange) -> None:
        """Learn from a request that was answered; called while it still has the slot."""
        visit, timings = self._visits[exchange.record.id], exchange.timings.values
        # An error takes a moment, and would teach that requests do.
        if visit.entered is None or exchange.record.status != 200:
            return
        computed = int(timings.get("prompt_n", 0))
        # Anthropic's API does not tell what the prompt took: then by the latest measurement.
        took = timings.get("prompt_ms", computed * self._speed.seconds_per_token * 1000) / 1000
        # Both are 0 where the answer does not tell, as that of embeddings.
        prompt = computed + int(timings.get("cache_n", 0))
        seconds = self._clock.seconds() - visit.entered
        self._experience.learn(visit.kind, Served(visit.size, exchange.body.size, prompt, seconds, took))

    def gone(self, record: Record) -> None:
        """Forget a request, however it has ended; also one that never joined the queue."""
        # Called at the end of each request's coroutine, also if that was cancelled because the client hung up.
        self._visits.pop(record.id, None)

    # What others ask.

    def seconds_until(self, turn: Turn) -> float | None:
        """Return about how many seconds a request has to wait from now on; `None` if nothing is known.

        Only for a request that waits.
        """
        return self._forecast.seconds_until(turn)

    async def words(self, exchange: Exchange, turn: Turn) -> str:
        """Return what the client of a request should be told now.

        Fires within `LOOK_SECONDS`, and does not fail for llama-server's reasons.  Cancelling ends the question.
        """
        # While llama-server starts, all wait for the same, whatever their place.
        if (reason := self._upstream.not_running()) is not None:
            return reason
        # In the queue nothing has to be asked: the answer is known here.
        if place := self._gate.queue.place(turn):
            return waiting(place, self._gate.waiting, self.seconds_until(turn))
        # From here on the request is inside.  It may have ended meanwhile, as the comment's turn of the reactor is
        # another.
        visit = self._visits.get(exchange.record.id)
        # Before it is sent, the slot may be busy with something else, such as reading a file.
        if visit is None or not exchange.is_sent:
            return PREPARED
        if visit.looked is None or self._clock.seconds() - visit.looked >= LOOK_PAUSE:
            # Noted before the answer is here, so a llama-server that hangs is not asked more often.
            visit.looked = self._clock.seconds()
            visit.progress = await self._look()
        if visit.progress is None or not visit.progress.done:
            return PREPARED
        # The number may be as old as `LOOK_PAUSE`; it only grows, so it is never too large.  The total is estimated by
        # the body that is sent: with its templates filled in it has all of the prompt's text.
        return reading(visit.progress.done, self._experience.prompt_tokens(visit.kind, exchange.body.size))

    def progress_of(self, record: Record | None) -> dict[str, int] | None:
        """Return how far the prompt of a request was when its client was last told, for the live page."""
        visit = self._visits.get(record.id) if record is not None else None
        if visit is None or visit.progress is None:
            return None
        return {"reused": visit.progress.reused, "computed": visit.progress.computed}

    def _rest(self, record: Record | None) -> float | None:
        """Return about how many seconds of the slot a request still needs."""
        # The turn of a request belongs to its record, by whose id the visit is found.
        visit = self._visits.get(record.id) if record is not None else None
        if visit is None:
            return None
        now = self._clock.seconds()
        # What was learned since the request arrived makes the estimate better, but not from moment to moment.  So it is
        # kept for a while.  Otherwise a queue that moves quickly would be estimated as a whole for each that leaves it.
        if visit.estimated is None or now - visit.estimated >= SHARED:
            visit.expected, visit.estimated = self._experience.expected(visit.kind, visit.size), now
        expected = visit.expected
        if expected is None or visit.entered is None:
            return None if expected is None else expected.reading + expected.answering
        # Both are by the same clock; the first piece of the answer marks the end of the prompt.
        begun = None if record is None or record.ttft_ms is None else now - record.arrived - record.ttft_ms / 1000
        return expected.rest(now - visit.entered, begun)

    async def _look(self) -> PromptProgress | None:
        """Ask llama-server how far the prompt is; fires with `None` if there is no answer, or none that tells."""
        asking = Deferred.fromCoroutine(prompt_progress(self._upstream)).addTimeout(LOOK_SECONDS, self._clock)
        # A cancellation from outside, when the answer begins, is a `CancelledError` and passes.
        try:
            return await asking
        except (TimeoutError, LlamaCallFailed):
            return None


def request_kind(path: str, prompt: str, found: NamedTemplates | ChatRequest | None) -> Kind:
    """Return what a request has in common with others: path, `prompt` (its id, or empty), and the turn.

    `found` is what its body was found to be.
    """
    # There is a number for the slot in these paths, and whatever else a client writes there.
    if path.startswith(SLOT_ACTIONS):
        return (SLOT_ACTIONS,)
    # A first question has all of the user's text to compute; a later turn mostly finds the conversation in the slot.
    is_later = found is not None and len(found.message_digests) > found.instructions + 1
    return (path, prompt, "later" if is_later else "first")
