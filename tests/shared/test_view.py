"""Looks at the shared folder, and leases on the disk."""

from __future__ import annotations

import errno
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.logger import capturedLogs

from bioproxy.shared.claims import Claims
from bioproxy.shared.disk import SHORTEST_PAUSE, Unusable
from bioproxy.shared.layout import ENTRIES
from bioproxy.shared.leases import BEAT, DEAD_AFTER
from bioproxy.shared.view import FRESH, PATIENCE, USERS_PATIENCE, SharedView
from tests.shared.support import SharedFolderTest, Threads, no_space, view_of
from tests.support.world import logged


class ViewTest(SharedFolderTest):
    """One process's view of a folder that has one entry."""

    def setUp(self) -> None:
        """Make it."""
        super().setUp()
        self.clock, self.threads = Clock(), Threads()
        self.view = view_of(self.path, self.clock, self.threads)
        self.entry = self.publish()

    def begin(self, coroutine: Any) -> Deferred[Any]:
        """Begin something."""
        return Deferred.fromCoroutine(coroutine)

    def do(self, coroutine: Any) -> Any:
        """Do something."""
        return self.successResultOf(self.begin(coroutine))

    def fail_with(self, coroutine: Any) -> str:
        """Do something that cannot be done; return why."""
        return str(self.failureResultOf(self.begin(coroutine), Unusable).value)


class Looks(ViewTest):
    """What is seen, and when."""

    def test_check(self) -> None:
        """A folder can be used when it was checked; that is logged once, and done again after trouble only."""
        self.assertFalse(self.view.usable)
        with capturedLogs() as events:
            self.do(self.view.check())
            self.assertTrue(self.view.usable)
            self.threads.error = OSError(errno.EIO, "broken")
            self.do(self.view.check())
            self.assertEqual("broken", self.fail_with(self.view.look()))
            self.assertFalse(self.view.usable)
            self.threads.error = None
            self.clock.advance(SHORTEST_PAUSE * 1.2)
            self.do(self.view.check())
            self.assertTrue(self.view.usable)
        self.assertEqual(3, len(logged(events)), logged(events))
        self.assertIn("sharing slot files in", logged(events)[0])

    def test_look(self) -> None:
        """A look finds what is there, and what is gone."""
        self.do(self.view.look())
        self.assertEqual({self.entry.stem: self.entry}, self.view.mirror.entries)
        self.do(self.view.look())
        self.shelf.remove([self.entry.stem])
        self.do(self.view.look())
        self.assertEqual({}, self.view.mirror.entries)

    def test_trouble_with_one(self) -> None:
        """An entry that cannot be read now is looked at again; one that is damaged is not."""
        file = self.path / ENTRIES / f"{self.entry.stem}.json"
        content = file.read_bytes()
        file.unlink()
        file.mkdir()
        self.do(self.view.look())
        self.assertEqual({}, self.view.mirror.entries)
        file.rmdir()
        file.write_bytes(content)
        self.do(self.view.look())
        self.assertEqual({self.entry.stem: self.entry}, self.view.mirror.entries)

    def test_fresh(self) -> None:
        """For a user no second look is made at once, and none is waited for long."""
        self.do(self.view.look_for_user())
        self.threads.hangs = True
        self.do(self.view.look_for_user())
        self.clock.advance(FRESH + 0.1)
        look = self.begin(self.view.look_for_user())
        self.clock.advance(USERS_PATIENCE)
        self.failureResultOf(look, Unusable)
        self.assertFalse(self.view.disk.usable)

    def test_overtaken(self) -> None:
        """A look that another one has overtaken changes nothing."""
        self.threads.hangs = True
        first = self.begin(self.view.look())
        held, self.threads.held = self.threads.held, []
        self.clock.advance(1)
        self.threads.go_on()
        self.do(self.view.look())
        held[0][1].callback(({"key.1": b"a 0"}, set()))
        self.successResultOf(first)
        self.assertIn(self.entry.stem, self.view.mirror.entries)
        self.assertIsNone(self.view.leases.holder_of("key"))


class OnDisk(ViewTest):
    """Leases of two processes."""

    def setUp(self) -> None:
        """Make a second one, with a clock that differs by a minute."""
        super().setUp()
        self.claims = Claims(self.view)
        self.clocks = [self.clock, Clock()]
        self.clocks[1].advance(60)
        self.others: SharedView = view_of(self.path, self.clocks[1], Threads(), "other")
        self.others_claims = Claims(self.others)

    def advance(self, seconds: float) -> None:
        """Let time pass for both."""
        for clock in self.clocks:
            clock.advance(seconds)

    def test_one_holder(self) -> None:
        """One of two gets it; the other one when it is given up."""
        self.assertTrue(self.do(self.claims.take("key")))
        self.assertTrue(self.do(self.claims.take("key")))
        # Also without having looked: the file is there.
        self.assertFalse(self.do(self.others_claims.take("key")))
        self.do(self.others.look())
        self.assertFalse(self.do(self.others_claims.take("key")))
        self.do(self.claims.give_up("key"))
        self.do(self.claims.give_up("key"))
        self.do(self.others.look())
        self.assertTrue(self.do(self.others_claims.take("key")))
        self.do(self.others_claims.give_up_all())
        self.assertEqual({}, self.shelf.leases.read())

    def test_beats(self) -> None:
        """A holder that beats keeps it; one that does not loses it, and finds that out when it wants to beat."""
        self.do(self.claims.take("key"))
        for _ in range(20):
            self.advance(BEAT)
            self.do(self.claims.renew())
            self.do(self.others.look())
        self.assertFalse(self.do(self.others_claims.take("key")))
        self.advance(DEAD_AFTER)
        self.assertTrue(self.do(self.others_claims.take("key")))
        self.do(self.others_claims.give_up("key"))
        self.do(self.claims.renew())
        self.assertEqual({}, self.view.leases.mine)

    def test_trouble(self) -> None:
        """Giving up never fails; what stays on the disk dies by itself."""
        self.do(self.claims.take("key"))
        self.threads.error = no_space()
        self.assertEqual("No space left on device", self.fail_with(self.claims.take("other")))
        self.do(self.claims.give_up_all())
        self.assertEqual({"key.1"}, set(self.shelf.leases.read()))
        self.do(self.others.look())
        self.advance(DEAD_AFTER)
        self.assertTrue(self.do(self.others_claims.take("key")))
        self.assertGreater(PATIENCE, USERS_PATIENCE)
