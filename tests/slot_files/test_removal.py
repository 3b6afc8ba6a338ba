"""Which slot files go when there are too many."""

from __future__ import annotations

from itertools import count

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from bioproxy.slot_files.removal import SECOND_CHANCE, Held, to_remove
from bioproxy.slot_files.snapshot import CHAT

NOW = 1_800_000_000.0
LONG_AGO, JUST_NOW = NOW - 2 * SECOND_CHANCE, NOW - 1


def held(name: str, size: int = 10, saved_at: float = LONG_AGO, used: bool = False, pinned: bool = False) -> Held:
    """Return a file."""
    return Held((name, CHAT), size, pinned, saved_at, used)


class Deciding(SynchronousTestCase):
    """`to_remove`."""

    def test_table(self) -> None:
        """Least recently used first, unprotected before protected, the one just saved last, pinned never."""
        old, older = held("old"), held("older")
        new, newer = held("new", saved_at=JUST_NOW - 1), held("newer", saved_at=JUST_NOW)
        used = held("used", saved_at=JUST_NOW, used=True)
        pinned = held("pinned", pinned=True)
        cases: list[tuple[list[Held], int, str, str]] = [
            ([], 10, "", ""),
            ([older, old], 0, "", ""),
            ([older, old], -5, "", ""),
            ([older, old], 1, "", "older"),
            ([older, old], 10, "", "older"),
            ([older, old], 11, "", "older old"),
            ([older, old], 100, "", "older old"),
            ([older, old], 10, "older", "old"),
            ([older, old], 20, "older", "old older"),
            ([pinned, older, old], 10, "", "older"),
            ([pinned, old], 100, "pinned", "old"),
            ([new, old], 10, "", "old"),
            ([new, used], 10, "", "used"),
            ([new, newer], 10, "", "new"),
            ([new, newer, old], 15, "", "old new"),
            ([new, newer], 15, "new", "newer new"),
            ([new, newer, old], 25, "newer", "old new newer"),
            ([held("future", saved_at=NOW + 2 * SECOND_CHANCE), old], 10, "", "future"),
            ([held("edge", saved_at=NOW - SECOND_CHANCE), old], 10, "", "edge"),
        ]
        for entries, excess, keep, expected in cases:
            found = to_remove(entries, excess, (keep, CHAT), NOW)
            self.assertEqual(expected.split(), [name for name, _ in found], (entries, excess, keep))

    def test_reads_no_more_than_needed(self) -> None:
        """However many files there are, no more are looked at than have to go."""
        read = count()
        entries = (held(str(number)) for number in read)
        self.assertEqual([("0", CHAT), ("1", CHAT)], to_remove(entries, 15, None, NOW))
        self.assertLess(next(read), 5)

    @given(
        st.lists(st.tuples(st.integers(0, 20), st.booleans(), st.sampled_from((LONG_AGO, JUST_NOW)), st.booleans())),
        st.integers(-5, 100),
        st.integers(0, 10),
    )
    def test_promises(self, fields: list[tuple[int, bool, float, bool]], excess: int, kept: int) -> None:
        """Enough goes if there is enough, nothing more than needed, and in the order that was promised."""
        entries = [
            Held((str(number), CHAT), size, pinned, saved_at, used)
            for number, (size, pinned, saved_at, used) in enumerate(fields)
        ]
        keep = (str(kept), CHAT)
        removed = to_remove(entries, excess, keep, NOW)
        # The whole order, by sorting.
        removable = [each for each in entries if not each.pinned]
        ranked = sorted(removable, key=lambda each: (each.id == keep, each.protected(NOW)))
        self.assertEqual([each.id for each in ranked[: len(removed)]], removed)
        freed = sum(each.size for each in ranked[: len(removed)])
        self.assertTrue(freed >= excess or len(removed) == len(removable))
        if removed:
            self.assertLess(freed - ranked[len(removed) - 1].size, excess)
