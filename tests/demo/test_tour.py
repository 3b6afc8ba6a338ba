"""What the demonstration shows and prints."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from twisted.internet.defer import CancelledError, Deferred
from twisted.trial.unittest import SynchronousTestCase

from bioproxy.demo import tour, words
from bioproxy.demo.demo_model import DemoModel
from bioproxy.demo.question import Answer, QuestionFailed
from bioproxy.demo.service import TEMPLATES
from bioproxy.settings.configuration import Settings

COLD = Answer("The old crane.", first_word=12.14, total=12.44, reused=0, computed=1577, cache="cold")
WARM = Answer("The old crane.", first_word=0.2, total=0.36, reused=1536, computed=41, cache="restored")


class Showing(SynchronousTestCase):
    """`tour.show`."""

    def setUp(self) -> None:
        """Begin; the first question is asked."""
        self.asked: list[Mapping[str, Any]] = []
        self.said: list[str] = []
        self.answers: list[Deferred[Answer]] = []

        def ask(request: Mapping[str, Any]) -> Deferred[Answer]:
            self.asked.append(request)
            self.answers.append(Deferred())
            return self.answers[-1]

        model = DemoModel(Path("/models/Some-1M.gguf"), is_random=False)
        self.tour = Deferred.fromCoroutine(tour.show(ask, self.said.append, model))

    def test_cold_and_warm(self) -> None:
        """The same question is asked twice with the same limits; only the first computes everything."""
        self.assertIn(words.QUESTION, self.said[0])
        self.assertIn("Some-1M", self.said[0])
        self.answers[0].callback(COLD)
        self.answers[1].callback(WARM)
        self.successResultOf(self.tour)
        cold, warm = self.asked
        self.assertEqual({**warm, "cache_prompt": False}, cold)
        self.assertEqual((0, tour.ANSWER_TOKENS), (warm["temperature"], warm["max_tokens"]))
        text = self.said[1] + "\n"
        for line in (
            "The answer:  The old crane.",
            "It would have taken 12.4 s, and took 0.4 s.",
            "  cold        12.1 s         12.4 s   1,577 computed",
            "  warm         0.2 s          0.4 s   1,536 restored, 41 computed",
        ):
            self.assertIn(f"\n{line}\n", text)

    def test_failed(self) -> None:
        """A question that fails is said in one line; nothing is compared then."""
        self.answers[0].callback(COLD)
        self.answers[1].errback(QuestionFailed("503: the queue is full"))
        self.successResultOf(self.tour)
        self.assertEqual(["The question was not answered: 503: the queue is full"], self.said[1:])

    def test_cancelled(self) -> None:
        """Cancelling ends the question that is in progress, and nothing more is said."""
        self.tour.cancel()
        self.failureResultOf(self.tour, CancelledError)
        self.assertEqual((1, 1), (len(self.asked), len(self.said)))


class Words(SynchronousTestCase):
    """`bioproxy.demo.words`."""

    def test_two_answers(self) -> None:
        """Answers that differ are both shown: whoever compares must see that."""
        text = words.compared(COLD, replace(WARM, text="A new crane."))
        self.assertIn("The old crane.", text)
        self.assertIn("warm:  A new crane.", text)

    def test_addresses(self) -> None:
        """The commands go to the ports that are configured; an IPv6 address gets its brackets."""
        text = words.banner(Settings(host="::1", port=1, admin_host="127.0.0.2", admin_port=2), Path("/texts"))
        self.assertEqual(3, text.count("http://[::1]:1/v1/chat/completions"))
        self.assertIn("http://127.0.0.2:2/status", text)
        self.assertIn("/texts\n", text)

    def test_facts(self) -> None:
        """The documents have the facts that are asked for."""
        handbook, island = ((TEMPLATES / name).read_text() for name in ("handbook.txt", "island.txt"))
        self.assertIn("The meeting place after an alarm is the old crane", handbook)
        self.assertIn("The deposit for a key is 50 euros", handbook)
        self.assertIn("The best place to swim is the bay below the church", island)
