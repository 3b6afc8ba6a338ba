"""A gate, and users and warm-ups who do what a test says."""

from __future__ import annotations

from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from bioproxy.gate.gate import Gate
from bioproxy.gate.turn import Turn
from bioproxy.runtime.errors import Unavailable
from bioproxy.runtime.metrics import Metrics


class Visitors:
    """Users and warm-ups that stay inside until the test lets them go."""

    def build(self, limit: int, timeout: float) -> None:
        """Make the gate, where so many may wait for so many seconds."""
        self.clock, self.metrics = Clock(), Metrics()
        self.gate = Gate(self.clock, self.metrics, limit, timeout)
        self.inside: list[str] = []
        self.entered: list[str] = []
        self.turns: dict[str, Turn] = {}
        self.stays: dict[str, Deferred[None]] = {}

    async def stay(self, name: str) -> None:
        """Be inside until `leave`."""
        inside = self.inside
        inside.append(name)
        self.entered.append(name)
        stay = self.stays[name] = Deferred()
        try:
            await stay
        finally:
            inside.remove(name)

    def leave(self, name: str, error: Exception | None = None) -> None:
        """Let one go, with an error perhaps."""
        if error is None:
            self.stays.pop(name).callback(None)
        else:
            self.stays.pop(name).errback(error)

    def empty(self) -> None:
        """Let everybody go."""
        while self.inside:
            self.leave(self.inside[0])

    def user(self, name: str, then: str = "") -> Deferred[float]:
        """Let a user come; fires with the seconds waited.  Something may be left to be done when he has gone."""
        turn = self.turns[name] = self.gate.user(name)

        async def visit() -> float:
            async with turn as waited:
                if then:
                    turn.hold_gate_for(lambda: self.stay(then))
                await self.stay(name)
            return waited

        return Deferred.fromCoroutine(visit())

    def warmup(self, name: str = "warmup") -> Deferred[bool]:
        """Let a warm-up come."""
        return Deferred.fromCoroutine(self.gate.warmup(lambda: self.stay(name)))

    def saving(self, then: str = "", name: str = "saving") -> Deferred[bool]:
        """Let a warm-up come that is not to be disturbed, but for what it does then, if anything."""

        async def work() -> None:
            with self.gate.without_preemption(last=not then):
                await self.stay(name)
            if then:
                await self.stay(then)

        return Deferred.fromCoroutine(self.gate.warmup(work))


class GateTest(Visitors, SynchronousTestCase):
    """A gate where two may wait, for ten seconds."""

    def setUp(self) -> None:
        """Make it."""
        self.build(limit=2, timeout=10)
        self.addCleanup(lambda: self.empty())

    def refusal(self, visit: Deferred[float]) -> Unavailable:
        """Return why a user was turned away."""
        error = self.failureResultOf(visit, Unavailable).value
        assert isinstance(error, Unavailable)
        return error

    def gauge(self, name: str, **labels: str) -> float | None:
        """Return a metric's value."""
        return self.metrics.registry.get_sample_value(f"bioproxy_{name}", labels)
