"""What is removed from the shared shelf."""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from bioproxy.shared.entry import SharedEntry
from bioproxy.shared.removal import PROTECTED, UNUSED_TEMPLATE, Limits, to_remove
from tests.shared.support import OTHER, chat, entry

NOW = 1e9
NONE = Limits(0, 0)
PLENTY = Limits(1 << 40, 1 << 40)


class Rules(SynchronousTestCase):
    """The rules."""

    def removed(self, limits: Limits, *ages: tuple[SharedEntry, float], missing: int = 0) -> set[str]:
        """Return what goes of entries that were used so many seconds ago."""
        used_at = {each.stem: NOW - age for each, age in ages}
        return set(to_remove([each for each, _ in ages], used_at, NOW, limits, missing))

    def test_limits(self) -> None:
        """What was not used for the longest time goes first, until each class is within its limit."""
        chats = [chat(2, talk=str(number), size=10) for number in range(4)]
        learned = [entry(name=f"auto-00000000000{number}", size=10) for number in range(2)]
        ages = [*zip(chats, (400, 300, 200, 100), strict=True), *zip(learned, (200, 100), strict=True)]
        expected = {chats[0].stem, chats[1].stem, learned[0].stem}
        self.assertEqual(expected, self.removed(Limits(10, 25), *ages))
        self.assertEqual(set(), self.removed(PLENTY, *ages))

    def test_protected(self) -> None:
        """What was used a moment ago stays, also if that is in the future."""
        self.assertEqual(set(), self.removed(NONE, (chat(2), PROTECTED - 1), (chat(4), -3600)))
        old = chat(2)
        self.assertEqual({old.stem}, self.removed(NONE, (old, PROTECTED)))

    def test_templates(self) -> None:
        """A template's file stays for a month without use, whatever the limits are."""
        used, unused = entry(), entry(name="story")
        ages = ((used, UNUSED_TEMPLATE - 1), (unused, UNUSED_TEMPLATE))
        self.assertEqual({unused.stem}, self.removed(NONE, *ages, missing=1000))

    def test_twice(self) -> None:
        """Of two files of one prompt and model the older one goes; those of other models stay."""
        old, new, other = entry(1), entry(2), entry(1, model=OTHER)
        self.assertEqual({old.stem}, self.removed(PLENTY, (old, 100), (new, 200), (other, 300)))

    def test_full_disk(self) -> None:
        """Where room is missing, it is made although no limit is reached."""
        chats = [chat(2, talk=str(number), size=10) for number in range(3)]
        ages = list(zip(chats, (300, 200, 100), strict=True))
        self.assertEqual({chats[0].stem, chats[1].stem}, self.removed(PLENTY, *ages, missing=11))

    def test_gone(self) -> None:
        """An entry without a time is gone already."""
        self.assertEqual([], to_remove([chat(2)], {}, NOW, NONE))
