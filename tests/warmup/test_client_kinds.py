"""Two wrong guesses in a row end the head starts of a kind of client."""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from bioproxy.warmup.client_kinds import KINDS, ClientKinds, client_kind


class Kinds(SynchronousTestCase):
    """Counting guesses."""

    def test_two_in_a_row(self) -> None:
        """A right guess between two wrong ones begins anew; after two in a row it stops, and says so."""
        kinds = ClientKinds()
        for right, stopped in ((False, False), (True, False), (False, False), (False, True), (True, False)):
            kinds.guessed("a /p", right)
            self.assertEqual(stopped, kinds.stopped("a /p"))
        self.assertFalse(kinds.stopped("b /p"))

    def test_told(self) -> None:
        """Operators see which kinds have stopped, and why."""
        kinds = ClientKinds()
        self.assertEqual([], kinds.told())
        for _ in range(2):
            kinds.guessed("a /p", right=False)
        [told] = kinds.told()
        self.assertEqual("a /p", told["client"])
        self.assertIn("no more head starts for a /p: 2 times in a row", told["note"])

    def test_bounded(self) -> None:
        """The kinds that were met last are remembered."""
        kinds = ClientKinds()
        for number in range(KINDS + 10):
            kinds.found_parting("first")
            kinds.found_parting(str(number))
        self.assertTrue(kinds.parts("first") and kinds.parts(str(KINDS + 9)))
        self.assertFalse(kinds.parts("0"))

    def test_names(self) -> None:
        """A kind is the first word of the client's name, and the path; whatever a client sends can be shown."""
        for agent, kind in (
            (b"curl/8.1", "curl /p"),
            (b"Mozilla/5.0 (X11)", "Mozilla /p"),
            (b"", "unnamed client /p"),
            (b"  opencode 1", "opencode /p"),
            (b"x" * 99, "x" * 40 + " /p"),
            (b"a\x1bb\xff", "ab\ufffd /p"),
        ):
            self.assertEqual(kind, client_kind(agent, "/p"))
