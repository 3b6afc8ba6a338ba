"""Which beginnings of requests are learned: the rules, as tables."""

from __future__ import annotations

from collections.abc import Sequence

from twisted.trial.unittest import SynchronousTestCase

from bioproxy.learning.prompt_rules import GAIN, UNPROVEN, Seen, Tokens, longest_part, to_learn
from bioproxy.prompts.digests import prefix_digests
from bioproxy.prompts.learned_prompts import LearnedPrompt
from bioproxy.prompts.prompt_shape import PLAIN_PROMPT, Shape

MINIMUM = 1024


def shape(system: str, role: str = "system") -> Shape:
    """Return the beginning with this system message."""
    return Shape.of([{"role": role, "content": system}], {}, [], {})


def tokens(same: int, other: int = 0, kind: int = 1) -> Tokens:
    """Return tokens that begin with `same` ones that all have, and then have `other` ones of a kind."""
    found = [*range(same), *(100_000 * kind + number for number in range(other))]
    return Tokens(len(found), prefix_digests(found))


def seen(system: str, found: Tokens, at_once: bool = False, repeated: bool = False) -> Seen:
    """Return a beginning."""
    return Seen(shape(system), found, at_once, repeated)


class Rules(SynchronousTestCase):
    """`to_learn`."""

    def learned(
        self, what: Seen, others: Sequence[Seen] = (), known: Sequence[LearnedPrompt] = (), unproven: int = 0
    ) -> list[int | None]:
        """Return what is learned, as cuts."""
        return [each.cut for each in to_learn(what, others, known, MINIMUM, unproven)]

    def test_whole(self) -> None:
        """A beginning is learned when two conversations had it, or at once with tools while few wait for proof."""
        long = tokens(2000)
        for at_once, repeated, unproven, expected in (
            (False, False, 0, []),
            (False, True, 0, [None]),
            (True, False, 0, [None]),
            (True, False, UNPROVEN - 1, [None]),
            (True, False, UNPROVEN, []),
            (True, True, UNPROVEN, [None]),
        ):
            found = self.learned(seen("a", long, at_once, repeated), unproven=unproven)
            self.assertEqual(expected, found, (at_once, repeated, unproven))

    def test_too_short(self) -> None:
        """Nothing is learned that is shorter than the least."""
        self.assertEqual([], self.learned(seen("a", tokens(MINIMUM - 1), repeated=True)))
        self.assertEqual([None], self.learned(seen("a", tokens(MINIMUM), repeated=True)))

    def test_words_of_users(self) -> None:
        """Nothing is learned that has the words of users or the model in it, nor a plain prompt."""
        for each in (shape("a", "assistant"), PLAIN_PROMPT):
            self.assertEqual([], to_learn(Seen(each, tokens(2000), True, True), (), (), MINIMUM, 0))

    def test_shared_part(self) -> None:
        """What two beginnings share is learned at once, up to a multiple of 64 tokens, if it is enough."""
        other = seen("other", tokens(1500, 500, kind=2))
        self.assertEqual([1472], self.learned(seen("a", tokens(1500, 500)), [other]))
        self.assertEqual([], self.learned(seen("a", tokens(1000, 1000)), [other]))
        self.assertEqual([1024], self.learned(seen("a", tokens(1024, 976)), [other]))
        # The longest of several counts, and the same beginning is no other one.
        longer = seen("longer", tokens(1900, 100, kind=3))
        self.assertEqual([1856], self.learned(seen("a", tokens(2000)), [other, longer]))
        self.assertEqual([], self.learned(seen("a", tokens(2000)), [seen("a", tokens(2000))]))

    def test_two_shapes(self) -> None:
        """A beginning that two APIs write in two shapes came twice: it is learned whole, and no part of it."""
        self.assertEqual([None], self.learned(seen("a", tokens(2000)), [seen("b", tokens(2000))], unproven=UNPROVEN))

    def test_gain(self) -> None:
        """A longer part is learned only if that is worth it."""
        found = tokens(1500 + GAIN, 500)
        known = LearnedPrompt(shape("x"), 1472, found.marks[1472 // 64 - 1])
        little = seen("little", tokens(1472 + GAIN - 64, 500, kind=2))
        enough = seen("enough", tokens(1472 + GAIN, 500, kind=2))
        self.assertEqual([], self.learned(seen("a", found), [little], [known]))
        self.assertEqual([1472 + GAIN], self.learned(seen("a", found), [enough], [known]))

    def test_clock(self) -> None:
        """A client that tells the time has one shared part learned, however often it asks, and few wholes."""
        known: list[LearnedPrompt] = []
        before: list[Seen] = []
        for minute in range(200):
            now = seen(f"{minute}", tokens(1500, 10, kind=minute + 1), at_once=True)
            unproven = sum(each.cut is None for each in known)
            known += to_learn(now, before, known, MINIMUM, unproven)
            before.append(now)
        self.assertEqual([None] * UNPROVEN + [1472], sorted((each.cut for each in known), key=lambda cut: cut or 0))

    def test_longest_part(self) -> None:
        """Of the learned parts the longest one counts that a beginning has; a whole prompt is none."""
        found = tokens(1500, 500)
        parts = [LearnedPrompt(shape("x"), cut, found.marks[cut // 64 - 1]) for cut in (1024, 1472, 1088)]
        foreign = LearnedPrompt(shape("y"), 1856, "other")
        self.assertEqual(parts[1], longest_part(found, [*parts, foreign, LearnedPrompt(shape("z"))]))
        self.assertIsNone(longest_part(tokens(1000), parts))
        self.assertIsNone(longest_part(found, []))
