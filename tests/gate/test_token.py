"""The token of the gate, and who gets it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from twisted.internet.defer import Deferred
from twisted.trial.unittest import SynchronousTestCase

from bioproxy.gate.token import Token
from bioproxy.gate.turn import Turn


class NoGate:
    """In the place of the gate, which these turns never come to."""

    def __getattr__(self, name: str) -> Any:
        raise AssertionError(name)


class HandingOn(SynchronousTestCase):
    """`Token`."""

    def setUp(self) -> None:
        """Build one whose turns are chosen from the front of a list."""
        self.turns: list[Turn] = []
        self.got: list[Turn] = []
        self.chooses = True
        self.token = Token(lambda: self.turns.pop(0) if self.turns and self.chooses else None)

    def waiting(self, then: Callable[[], None] = lambda: None) -> Turn:
        """Return a turn that waits; once it has the token it does something, in the same call."""
        turn = Turn(NoGate(), None)
        turn.acquired = Deferred()

        def enter(_: object) -> None:
            self.got.append(turn)
            then()

        turn.acquired.addCallback(enter)
        return turn

    def test_free(self) -> None:
        """It is free until somebody takes it, and again when it is given back; taking it never waits."""
        self.assertTrue(self.token.is_free)
        self.successResultOf(self.token.take())
        self.assertFalse(self.token.is_free)
        self.token.give_back()
        self.assertTrue(self.token.is_free)

    def test_next(self) -> None:
        """Given back, it goes to the turn that is chosen, and to one only."""
        self.turns = [self.waiting(), self.waiting()]
        first = self.turns[0]
        self.token.take()
        self.token.hand_on()
        self.assertEqual([], self.got, "it is taken")
        self.token.give_back()
        self.assertEqual([first], self.got)
        self.assertFalse(self.token.is_free)

    def test_nobody_chosen(self) -> None:
        """Where nobody is chosen it stays free, although turns wait; later it may be handed on."""
        self.turns, self.chooses = [self.waiting()], False
        self.token.hand_on()
        self.assertEqual((True, []), (self.token.is_free, self.got))
        self.chooses = True
        self.token.hand_on()
        self.assertEqual((False, 1), (self.token.is_free, len(self.got)))

    def test_in_and_out(self) -> None:
        """However many turns are over as soon as they begin, each is handed the token by the same call."""
        self.turns = [self.waiting(self.token.give_back) for _ in range(2000)]
        expected = list(self.turns)
        self.token.hand_on()
        self.assertEqual(expected, self.got)
        self.assertTrue(self.token.is_free)

    def test_until_free(self) -> None:
        """One can wait for it to be free, and hang up; nothing is held then."""
        self.token.take()
        waiting, hurried = (Deferred.fromCoroutine(self.token.until_free()) for _ in range(2))
        hurried.addErrback(lambda _: None).cancel()
        self.assertNoResult(waiting)
        self.token.give_back()
        self.successResultOf(waiting)
        self.assertTrue(self.token.is_free)
