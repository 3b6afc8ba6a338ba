"""The beginnings that clients have sent lately."""

from __future__ import annotations

from dataclasses import replace

from twisted.trial.unittest import SynchronousTestCase

from bioproxy.learning.beginnings import SEEN, Beginnings
from bioproxy.prompts.prompt_shape import Shape
from tests.learning.test_prompt_learning import chat

PROCESS, ANOTHER = object(), object()


def shape(number: int) -> Shape:
    """Return one of many beginnings."""
    return chat(f"system {number}").beginning


class Remembering(SynchronousTestCase):
    """`Beginnings`."""

    def setUp(self) -> None:
        """Make it."""
        self.beginnings = Beginnings()

    def test_bounded(self) -> None:
        """At most `SEEN` are remembered; the one that was not answered for the longest time goes first."""
        for number in range(SEEN):
            self.beginnings.get_or_add(shape(number))
        self.beginnings.answered(chat("system 0"), PROCESS)
        for number in range(SEEN, SEEN + 2):
            self.beginnings.get_or_add(shape(number))
        known = [number for number in range(SEEN + 2) if self.beginnings.get(shape(number)) is not None]
        self.assertEqual([0, *range(3, SEEN + 2)], known)

    def test_news(self) -> None:
        """The first answer is news; so is a second conversation, a mark, or another process; nothing else is."""
        known = self.beginnings.get_or_add(shape(1))
        for question, process, marked, news in (
            ("why?", PROCESS, False, True),
            ("why?", PROCESS, False, False),
            ("why?", PROCESS, True, True),
            ("another", PROCESS, False, True),
            ("a third", PROCESS, False, False),
            ("a third", ANOTHER, False, True),
        ):
            request = replace(chat("system 1", question), marked=marked)
            self.assertIs(known, self.beginnings.answered(request, process))
            self.assertEqual([known] if news else [], self.beginnings.with_news(), (question, marked))
            known.know_tokens([1, 2, 3], process, exact=True)
            known.news = False
        self.assertTrue(known.at_once and known.repeated)

    def test_others(self) -> None:
        """Only answered beginnings count whose tokens the same process has told."""
        mine, other, unanswered, elsewhere, unknown = (self.beginnings.get_or_add(shape(number)) for number in range(5))
        for number in (0, 1, 3, 4):
            self.beginnings.answered(chat(f"system {number}"), PROCESS)
        for each, process in ((mine, PROCESS), (other, PROCESS), (unanswered, PROCESS), (elsewhere, ANOTHER)):
            each.know_tokens([1, 2], process, exact=True)
        self.assertEqual((None, None), (unanswered.seen(), unknown.seen()))
        self.assertEqual([other.seen()], self.beginnings.others(mine))

    def test_tokens_of_another_process(self) -> None:
        """Tokens are only those of the process that told them."""
        known = self.beginnings.get_or_add(shape(1))
        known.know_tokens([1, 2, 3], PROCESS, exact=False)
        self.assertEqual((known.tokens, None), (known.tokens_in(PROCESS), known.tokens_in(ANOTHER)))

    def test_difference(self) -> None:
        """The most similar beginning is the one that shares most tokens; without tokens it is the latest."""
        self.assertIsNone(self.beginnings.difference(shape(1)))
        for system in ("abc", "xyz"):
            self.beginnings.answered(chat(system), PROCESS)
        wanted = chat("abd").beginning
        self.assertIn("from character 1 on", self.beginnings.difference(wanted) or "")
        for system, tokens in (("abc", [1] * 128), ("xyz", [2] * 128), ("abd", [1] * 127 + [3])):
            self.beginnings.get_or_add(chat(system).beginning).know_tokens(tokens, PROCESS, exact=True)
        self.assertIn("from character 3 on", self.beginnings.difference(wanted) or "")
