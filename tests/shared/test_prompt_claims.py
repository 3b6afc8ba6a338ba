"""Of two bioproxies one computes a prompt, and the other one gets its file, whatever happens meanwhile."""

from __future__ import annotations

import os
import shutil

from bioproxy.shared.leases import DEAD_AFTER
from tests.shared.sharing import SharingTest
from tests.support.world import KEY


class Leases(SharingTest):
    """One computes at a time."""

    def test_elsewhere(self) -> None:
        """While one computes, the other one waits, and says so; then it fetches."""
        self.round(self.a)
        self.round(self.b)
        self.do(self.a, self.a.warmer.round)
        self.assertEqual(["code"], self.told(self.a)["computing"])
        self.round(self.b)
        self.do(self.b, self.b.identity.find_out)
        self.do(self.b, self.b.warmer.round)
        self.assertEqual(0, self.computed(self.b))
        self.assertFalse(self.do(self.b, lambda: self.b.parts.shared.claim("code", KEY)))
        template = self.b.status.now()["templates"][0]
        self.assertEqual("another bioproxy warms it up, and shares the file", template["warmup"]["reason"])
        self.round(self.a)
        self.assertEqual([], self.told(self.a)["computing"])
        self.warm(self.b)
        self.assertEqual("warm", self.b.readiness.state("code")[0])
        self.assertEqual(0, self.computed(self.b))

    def test_dead(self) -> None:
        """One that died while it computed blocks the other one for less than a minute."""
        self.round(self.a)
        self.do(self.a, self.a.warmer.round)
        for _ in range(int(DEAD_AFTER / 2) + 2):
            self.advance(2)
            self.round(self.b)
        self.warm(self.b)
        self.assertGreater(self.computed(self.b), 0)
        self.assertEqual("warm", self.b.readiness.state("code")[0])

    def test_claimed_again(self) -> None:
        """A claim that is needed again before it was given up is kept."""
        shared = self.a.parts.shared
        self.round(self.a)
        self.do(self.a, self.a.identity.find_out)
        self.assertTrue(self.do(self.a, lambda: shared.claim("code", KEY)))
        shared.release("code")
        self.threads[0].hangs = True
        publishing = self.a.start(shared.publish)
        self.threads[0].go_on()
        self.successResultOf(publishing)
        self.assertEqual([], self.told(self.a)["computing"])
        shared.release("code")
        self.assertTrue(self.do(self.a, lambda: shared.claim("code", KEY)))
        shared.release("code")
        self.assertTrue(self.do(self.a, lambda: shared.claim("code", KEY)))
        self.do(self.a, shared.publish)
        self.assertEqual(["code"], self.told(self.a)["computing"])
        self.do(self.a, shared.finish)
        self.assertEqual([], os.listdir(self.path / "leases"))

    def test_claimed_while_published(self) -> None:
        """A claim that is needed again while the file of the last one is copied is kept."""
        shared = self.a.parts.shared
        self.round(self.a)
        self.do(self.a, self.a.warmer.round)
        self.threads[0].hangs = True
        publishing = self.a.start(shared.publish)
        claim = self.a.start(lambda: shared.claim("code", KEY))
        self.threads[0].go_on()
        self.successResultOf(publishing)
        self.assertTrue(self.successResultOf(claim))
        self.assertEqual(["code"], self.told(self.a)["computing"])

    def test_published_meanwhile(self) -> None:
        """What was published between the look and the claim is fetched after all."""
        self.warm(self.a)
        shared = self.b.parts.shared
        self.do(self.b, self.b.identity.find_out)
        away = self.folder / "away"
        (self.path / "entries").rename(away)
        (self.path / "entries").mkdir()
        self.threads[1].hangs = True
        claim = self.b.start(lambda: shared.claim("code", KEY))
        for _ in range(2):  # the check, and the look that finds nothing
            work, result = self.threads[1].held.pop(0)
            result.callback(work())
        shutil.rmtree(self.path / "entries")
        away.rename(self.path / "entries")
        self.threads[1].go_on()
        self.b.settle()
        self.assertFalse(self.successResultOf(claim))
        self.assertEqual("warm", self.b.readiness.state("code")[0])

    def test_unknown_model(self) -> None:
        """While it is not certain which model runs, nothing is claimed or fetched."""
        self.round(self.a)
        shared = self.a.parts.shared
        self.assertTrue(self.do(self.a, lambda: shared.claim("code", KEY)))
        self.assertFalse(shared.is_computed_elsewhere("code"))
        self.assertEqual(0, shared.prompt_tokens("code", KEY))
        self.assertEqual([], os.listdir(self.path / "leases"))
