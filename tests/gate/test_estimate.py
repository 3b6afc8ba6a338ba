"""Estimates: what a request will take, by what others took."""

from __future__ import annotations

import random

from twisted.trial.unittest import SynchronousTestCase

from bioproxy.gate.estimate import ENOUGH, KINDS, LATEST, OVERDUE, Expected, Experience, Kind, Served

CHAT: Kind = ("/v1/chat/completions", "code", "first")
LATER: Kind = ("/v1/chat/completions", "code", "later")
SPEED = 0.001
"""Seconds a prompt token."""


def served(size: int = 1000, computed: int = 200, answering: float = 3.0, prompt: int = 250) -> Served:
    """Return what a request took: reading at `SPEED`, and so long behind it."""
    reading = computed * SPEED
    return Served(size, 2 * size, prompt, reading + answering, reading)


class Learning(SynchronousTestCase):
    """What is expected of the next one."""

    def setUp(self) -> None:
        """Know nothing."""
        self.experience = Experience()

    def learn(self, kind: Kind, *latest: Served) -> None:
        """Learn from some."""
        for each in latest:
            self.experience.learn(kind, each)

    def expected(self, kind: Kind, size: int = 1000) -> tuple[float, float] | None:
        """Return the seconds, rounded."""
        expected = self.experience.expected(kind, size)
        return None if expected is None else (round(expected.reading, 6), round(expected.answering, 6))

    def test_nothing_known(self) -> None:
        """Nothing is made up before the first request has ended."""
        self.assertIsNone(self.expected(CHAT))
        self.assertIsNone(self.experience.prompt_tokens(CHAT, 100))

    def test_by_size(self) -> None:
        """Reading is in proportion to the body; answering does not depend on it."""
        self.learn(CHAT, served(), served(), served())
        self.assertEqual((0.2, 3.0), self.expected(CHAT))
        self.assertEqual((0.4, 3.0), self.expected(CHAT, 2000))
        self.assertEqual((0, 3.0), self.expected(CHAT, 0))

    def test_long_bodies_count_more(self) -> None:
        """A tiny body, whose tokens are mostly the chat template's, does not decide about a long one."""
        self.learn(CHAT, served(size=10, computed=20), *[served(size=10_000, computed=2000)] * 3)
        expected = self.experience.expected(CHAT, 10_000)
        assert expected is not None
        self.assertLess(abs(expected.reading - 2.0), 0.01)

    def test_kinds(self) -> None:
        """What is known of just such requests is used if it is enough, and else what is known of similar ones."""
        self.learn(CHAT, *[served(answering=10.0)] * ENOUGH)
        self.assertEqual((0.2, 10.0), self.expected(LATER))
        self.learn(LATER, *[served(answering=1.0)] * (ENOUGH - 1))
        self.assertNotEqual((0.2, 1.0), self.expected(LATER))
        self.learn(LATER, served(answering=1.0))
        self.assertEqual((0.2, 1.0), self.expected(LATER))
        self.assertEqual((0.2, 10.0), self.expected(CHAT))
        self.assertEqual((0.2, 5.5), self.expected(("/v1/chat/completions", "other", "first")))
        self.assertEqual((0.2, 5.5), self.expected(("/infill", "", "first")))

    def test_first(self) -> None:
        """A single request of any kind is better than nothing."""
        self.learn(CHAT, served())
        self.assertEqual((0.2, 3.0), self.expected(("/infill", "", "first")))

    def test_odd_answers(self) -> None:
        """A single answer that takes very long does not make all others look long."""
        self.learn(CHAT, *[served(answering=1.0)] * 4, served(answering=600.0))
        self.assertEqual((0.2, 1.0), self.expected(CHAT))

    def test_latest(self) -> None:
        """Only the latest count."""
        self.learn(CHAT, *[served(answering=50.0)] * 100, *[served(answering=1.0)] * LATEST)
        self.assertEqual((0.2, 1.0), self.expected(CHAT))

    def test_forgotten(self) -> None:
        """Many kinds do not use up the memory, and what all have in common stays."""
        self.learn(CHAT, *[served()] * ENOUGH)
        for number in range(3 * KINDS):
            self.learn(("/v1/chat/completions", f"auto-{number}", "first"), served(answering=9.0))
        self.assertEqual(KINDS, len(self.experience._latest))
        self.assertEqual((0.2, 9.0), self.expected(CHAT))

    def test_nothing_told(self) -> None:
        """Answers without a count of tokens teach a duration all the same."""
        self.learn(("/v1/embeddings",), *[Served(100, 100, 0, 2.0, 0.0)] * ENOUGH)
        self.assertEqual((0, 2.0), self.expected(("/v1/embeddings",)))
        self.assertIsNone(self.experience.prompt_tokens(("/v1/embeddings",), 100))

    def test_prompt_tokens(self) -> None:
        """The tokens of a prompt are in proportion to what is sent, the templates' texts included."""
        self.learn(CHAT, *[served(size=500, prompt=250)] * ENOUGH, Served(10, 10, 0, 1, 0))
        self.assertEqual(500, self.experience.prompt_tokens(CHAT, 2000))

    def test_never_negative(self) -> None:
        """Whatever is told, no estimate is below zero."""
        dice = random.Random(1)
        for _ in range(300):
            size, prompt, seconds = dice.randrange(5000), dice.randrange(3), dice.random()
            self.learn(CHAT, Served(size, size, prompt, seconds, dice.random()))
            expected = self.experience.expected(CHAT, dice.randrange(10_000))
            assert expected is not None
            spent = 3 * dice.random()
            for answering in (None, spent / 2):
                self.assertGreaterEqual(expected.rest(spent, answering), 0)


class Rest(SynchronousTestCase):
    """What is left of one that has begun."""

    def test_in_time(self) -> None:
        """What was expected, less what has passed; when the prompt was quicker than expected, that is known."""
        expected = Expected(4.0, 6.0)
        self.assertEqual(10.0, expected.rest(0.0, None))
        self.assertEqual(7.0, expected.rest(3.0, None))
        self.assertEqual(6.0, expected.rest(2.0, 0.0))
        self.assertEqual(1.0, expected.rest(9.0, 5.0))

    def test_overdue(self) -> None:
        """What takes longer than expected goes on for a part of that."""
        expected = Expected(4.0, 6.0)
        self.assertEqual(OVERDUE * 10.0, expected.rest(10.0, None))
        self.assertEqual(OVERDUE * 60.0, expected.rest(64.0, 60.0))
