"""Two bioproxies in memory, each with a llama-server, and one folder; their clocks differ by a minute."""

from __future__ import annotations

import errno
import os
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import ANY

from twisted.internet.defer import Deferred
from twisted.logger import capturedLogs

from bioproxy.shared.disk import SHORTEST_PAUSE
from bioproxy.shared.publishing import MOST_WAITING
from bioproxy.shared.publishing import SHORTEST_PAUSE as WRITING_PAUSE
from bioproxy.slot_files.snapshot import CHAT, PART, PREFIX
from tests.shared.sharing import LONG, SharingTest
from tests.shared.support import no_space, snapshot
from tests.support.world import KEY, World, WorldTest, logged

SYSTEM = "You are helpful. " * 102
"""A system message that is long enough to be learned."""


class Sharing(SharingTest):
    """What one has, the other gets."""

    def test_prompt(self) -> None:
        """A prompt is computed by one and fetched by the other, whose log has no warm-up; its users find it warm."""
        self.warm(self.a)
        with capturedLogs() as events:
            self.warm(self.b)
        self.assertGreater(self.computed(self.a), 0)
        self.assertEqual(0, self.computed(self.b))
        self.assertIn("code: fetched from the shared shelf", logged(events))
        self.assertFalse([line for line in logged(events) if "its warm-up starts" in line])
        self.assertEqual(1, self.b.sample("shared_warmups_saved_total"))
        self.assertEqual(1, self.b.sample("shared_shelf_up"))
        self.assertEqual("warm", self.b.readiness.state("code")[0])
        self.assertEqual("restored", self.b.chat("@code why?").headers["x-bioproxy-cache"])
        told = self.told(self.b)
        files = {"template": {"files": 1, "bytes": ANY}}
        self.assertEqual(
            (True, None, files, []), tuple(told[key] for key in ("usable", "trouble", "files", "computing"))
        )
        self.assertGreater(told["tokens_fetched"], 0)
        # Nothing is due any more, and nothing is fetched or published twice.
        self.warm(self.b)
        self.assertEqual(1, self.b.sample("shared_files_total", action="fetched", result="ok"))
        self.assertEqual(0, self.b.sample("shared_files_total", action="published", result="ok"))

    def test_not_looked(self) -> None:
        """The first warm-up of all may come before the first look at the folder, and looks itself."""
        self.warm(self.a)
        self.do(self.b, self.b.warmer.round)
        self.assertEqual(0, self.computed(self.b))

    def test_user(self) -> None:
        """A user's request fetches what it needs, and does not wait for a warm-up."""
        self.warm(self.a)
        self.round(self.b)
        self.do(self.b, self.b.identity.find_out)
        self.assertEqual("restored", self.b.chat("@code why?").headers["x-bioproxy-cache"])

    def test_conversation(self) -> None:
        """A conversation goes on where it has moved to; back again, it has got longer."""
        self.warm(self.a)
        self.warm(self.b)
        answer = self.a.chat(LONG).json()["choices"][0]["message"]["content"]
        self.do(self.a, self.a.saver.save_if_due)
        self.round(self.a)
        self.b.clock.advance(10)
        moved = self.b.chat(LONG, answer, "more? " * 100)
        self.assertEqual("restored", moved.headers["x-bioproxy-cache"])
        self.assertGreater(moved.json()["timings"]["cache_n"], 400)
        self.assertEqual(1, self.told(self.b)["files"]["conversation"]["files"])
        # The slot has the whole conversation: nothing is fetched for the next question.
        fetched = self.b.sample("shared_files_total", action="fetched", result="ok")
        said = moved.json()["choices"][0]["message"]["content"]
        self.b.chat(LONG, answer, "more? " * 100, said, "and?")
        self.assertEqual(fetched, self.b.sample("shared_files_total", action="fetched", result="ok"))

    def test_not_restored(self) -> None:
        """Where restoring conversations, or anything, has proved to be useless, these are not fetched."""
        self.warm(self.a)
        self.warm(self.b)
        answer = self.a.chat(LONG).json()["choices"][0]["message"]["content"]
        self.do(self.a, self.a.saver.save_if_due)
        self.round(self.a)
        check = self.b.parts.reuse_check
        for useless in (check.conversation_restored, lambda useful: check.did_not_help(100, 0)):
            self.b.clock.advance(10)
            for _ in range(2):
                useless(False)
            fetched = self.b.sample("shared_files_total", action="fetched", result="ok")
            self.b.chat(LONG, answer, "more? " * 100)
            self.assertEqual(fetched, self.b.sample("shared_files_total", action="fetched", result="ok"))
            self.b.files.discard(("code", PREFIX))

    def test_other_model(self) -> None:
        """Another model finds nothing, and publishes its own beside it."""
        self.b.llama_server.odds = [(7, -3.5), (8, -4.5), (9, -5.5), (10, -6.5)]
        self.warm(self.a)
        self.warm(self.b)
        self.assertGreater(self.computed(self.b), 0)
        self.assertEqual(2, self.told(self.b)["files"]["template"]["files"])

    def test_learned(self) -> None:
        """What one has learned, the other knows at the first request with it."""
        system = "You are helpful. " * (self.a.settings.learn_minimum // 10)
        self.warm(self.b)
        for number in range(2):
            self.a.chat(f"question {number}", system=system)
        for _ in range(6):
            self.a.advance(2)
            self.warm(self.a)
        self.assertEqual(1, self.told(self.a)["files"]["prompt"]["files"])
        self.round(self.b)
        with capturedLogs() as events:
            answer = self.b.chat("another one", system=system)
        self.assertIn("the shared shelf has it", " ".join(logged(events)))
        self.assertEqual("restored", answer.headers["x-bioproxy-cache"])

    def learned(self, world: World) -> str:
        """Have a world learn a prompt, and publish it; return its id."""
        for number in range(2):
            world.chat(f"question {number}", system=SYSTEM)
        for _ in range(6):
            self.advance(2)
            self.warm(world)
        return next(iter(world.parts.learned))

    def forget(self, world: World, name: str) -> int:
        """Have the operator of a world forget something; return the status."""
        return world.operate("POST", f"/prompts/{name}/forget").status

    def on_shelf(self) -> set[str]:
        """Return the ids of what is on the shelf, by the names of its files."""
        folders = self.path / "entries", self.path / "files"
        return {each.name.partition(".")[0] for folder in folders for each in folder.iterdir()}

    def test_forgotten(self) -> None:
        """What an operator has forgotten leaves the shelf, and is not learned from there again; templates stay."""
        name = self.learned(self.a)
        self.a.chat(LONG, system=SYSTEM)
        self.do(self.a, self.a.saver.save_if_due)
        self.round(self.a)
        talks = self.on_shelf() - {name, "code"}
        self.assertTrue(talks)
        # A folder that cannot be used for a while is no obstacle.
        self.threads[0].error = OSError(errno.EIO, "broken")
        self.assertEqual({200}, {self.forget(self.a, each) for each in (name, *talks)})
        self.assertEqual(404, self.forget(self.a, name))
        self.round(self.a)
        self.assertEqual({name, *talks, "code"}, self.on_shelf())
        self.threads[0].error = None
        self.advance(120)
        self.round(self.a)
        self.assertEqual({"code"}, self.on_shelf())
        self.round(self.b)
        self.assertEqual("cold", self.b.chat("another", system=SYSTEM).headers["x-bioproxy-cache"])

    def test_forgotten_elsewhere(self) -> None:
        """An operator can have forgotten what another bioproxy has put there; a stop does not prevent it."""
        name = self.learned(self.a)
        self.round(self.b)
        self.assertEqual(200, self.forget(self.b, name))
        self.do(self.b, self.b.parts.shared.finish)
        self.assertNotIn(name, self.on_shelf())

    def test_forgotten_while_it_is_published(self) -> None:
        """What is forgotten while it is copied, or before that, does not stay on the shelf."""
        self.learned(self.a)
        self.round(self.a)
        before = self.on_shelf()
        for copied in (True, False):
            self.a.chat(f"{copied}" * 200, system=SYSTEM)
            self.do(self.a, self.a.saver.save_if_due)
            [talk] = {name for name, kind, _ in self.a.snapshots.items() if kind == CHAT} - before
            self.threads[0].hangs = copied
            publishing = self.a.start(self.a.parts.shared.publish) if copied else None
            self.assertEqual(200, self.forget(self.a, talk))
            self.threads[0].go_on()
            self.a.settle()
            if publishing is not None:
                self.successResultOf(publishing)
            self.round(self.a)
            self.assertEqual(before, self.on_shelf())

    def test_doubted(self) -> None:
        """A file whose tokens are doubted is computed anew, although the shelf has it; the others get the new one."""
        self.warm(self.a)
        self.warm(self.b)
        self.b.llama_server.reuses_files = False
        self.b.chat("@code why?")
        self.assertTrue(self.b.slot.facts.is_doubted("code"))
        self.b.llama_server.reuses_files = True
        self.b.llama_server.date = "Today. "
        self.warm(self.b)
        self.assertGreater(self.computed(self.b), 0)
        self.assertEqual("warm", self.b.readiness.state("code")[0])
        self.assertEqual(1, self.b.sample("shared_files_total", action="published", result="ok"))

    def test_operators_wish(self) -> None:
        """A prompt that an operator asks for is fetched if it is not here, and then the wish is fulfilled."""
        self.warm(self.a)
        self.b.schedule.wanted.add("code")
        self.warm(self.b)
        self.assertNotIn("code", self.b.schedule.wanted)
        self.assertEqual(0, self.computed(self.b))

    def test_unseen_folder(self) -> None:
        """A bioproxy that does not see its slot folder can neither publish nor fetch."""
        self.warm(self.a)
        world = self.one("c", slot_save_path=None)
        self.warm(world)
        self.assertGreater(self.computed(world), 0)
        self.assertEqual(0, world.sample("shared_files_total", action="published", result="ok"))
        self.assertEqual(0, world.sample("shared_files_total", action="fetched", result="ok"))

    def test_same_time(self) -> None:
        """A user does not wait for a warm-up that fetches the same file, and the second copy is dropped."""
        self.warm(self.a)
        self.round(self.b)
        self.do(self.b, self.b.identity.find_out)
        self.threads[1].hangs = True
        warming = self.b.start(self.b.warmer.round)
        work, result = self.threads[1].held.pop(0)  # the look, which leads to the copy
        result.callback(work())
        call = self.b.chat("@code why?")
        self.threads[1].go_on()
        self.b.settle()
        self.successResultOf(warming)
        self.assertEqual("restored", call.headers["x-bioproxy-cache"])
        self.assertEqual(["code.bin"], os.listdir(self.folder / "b" / "slots"))

    def test_unused_prompt(self) -> None:
        """Prompts are told as used that have a file and were used, and not beginnings of prompts."""
        self.warm(self.a)
        known = self.a.snapshots.get("code", PREFIX)
        assert known is not None
        self.a.snapshots.put("code", PART, replace(known, filename="code.part.bin"))
        self.a.chat("@code why?")
        self.assertEqual(["code"], [name for name, _, _ in self.a.parts.shared._local.prompt_uses()])


class Trouble(SharingTest):
    """The folder is not as it should be."""

    def serve(self, world: World) -> None:
        """Check that a world serves as usual."""
        self.assertEqual(200, world.chat("@code why?").status)

    def test_away_and_back(self) -> None:
        """Renamed away, everything goes on without it, with one line in the log; back, it is used again."""
        self.warm(self.a)
        self.round(self.b)
        self.path.rename(self.folder / "away")
        with capturedLogs() as events:
            self.warm(self.b)
            self.assertGreater(self.computed(self.b), 0)
            self.serve(self.b)
            for _ in range(3):
                self.advance(20)
                self.round(self.a)
                self.serve(self.a)
        lines = [line for line in logged(events) if "cannot be used" in line]
        self.assertEqual(2, len(lines), lines)  # one of each
        self.assertEqual((False, 0), (self.told(self.a)["usable"], self.a.sample("shared_shelf_up")))
        (self.folder / "away").rename(self.path)
        self.advance(120)
        self.round(self.a)
        self.assertTrue(self.told(self.a)["usable"])

    def test_hangs(self) -> None:
        """A disk that hangs costs one user a second, and nobody afterwards."""
        self.round(self.a)
        self.do(self.a, self.a.identity.find_out)
        self.threads[0].hangs = True
        self.a.clock.advance(1)
        call = self.a.chat("@code why?")
        self.assertEqual(b"", call.received)
        self.a.advance(1)
        self.assertEqual(200, call.status)
        self.serve(self.a)
        self.do(self.a, self.a.warmer.round)
        self.threads[0].go_on()
        self.advance(SHORTEST_PAUSE * 3)
        self.warm(self.a)
        self.assertTrue(self.told(self.a)["usable"])
        self.assertEqual(1, self.told(self.a)["files"]["template"]["files"])

    def test_full(self) -> None:
        """On a full disk what is there is still fetched; what is not taken is published when there is room."""
        self.warm(self.a)
        self.warm(self.b)
        self.b.chat(LONG)
        self.do(self.b, self.b.saver.save_if_due)
        self.threads[1].error = no_space()
        with capturedLogs() as events:
            for _ in range(3):
                self.do(self.b, self.b.parts.shared.publish)
                self.b.clock.advance(WRITING_PAUSE * 4)
        self.assertEqual(1, len([line for line in logged(events) if "cannot be put" in line]))
        told = self.told(self.b)
        self.assertEqual((True, "No space left on device", 1), (told["usable"], told["trouble"], told["to_publish"]))
        self.threads[1].error = None
        self.b.clock.advance(1000)
        self.round(self.b)
        told = self.told(self.b)
        self.assertEqual((None, 0, 1), (told["trouble"], told["to_publish"], told["files"]["conversation"]["files"]))

    def test_full_for_several(self) -> None:
        """When a disk has taken no file, no other one is tried before the pause is over."""
        self.warm(self.a)
        known = self.a.snapshots.get("code", PREFIX)
        assert known is not None
        for name in ("one", "two"):
            self.a.parts.shared.saved(name, PREFIX, known)
        self.threads[0].error = no_space()
        self.do(self.a, self.a.parts.shared.publish)
        self.assertEqual(1, self.a.sample("shared_files_total", action="published", result="failed"))
        self.assertEqual(2, self.told(self.a)["to_publish"])

    def test_publishing_fails(self) -> None:
        """A disk that fails while a file is published gets it later."""
        self.round(self.a)
        self.do(self.a, self.a.warmer.round)
        self.threads[0].error = OSError(errno.EIO, "broken")
        self.do(self.a, self.a.parts.shared.publish)
        self.assertEqual((False, 1), (self.told(self.a)["usable"], self.told(self.a)["to_publish"]))
        self.threads[0].error = None
        self.advance(SHORTEST_PAUSE * 3)
        self.round(self.a)
        self.assertEqual(0, self.told(self.a)["to_publish"])

    def test_saved_again(self) -> None:
        """What is saved once more while it is published is published once more; what is gone is not."""
        self.round(self.a)
        self.do(self.a, self.a.warmer.round)
        self.threads[0].hangs = True
        publishing = self.a.start(self.a.parts.shared.publish)
        known = self.a.snapshots.get("code", PREFIX)
        assert known is not None
        self.a.parts.shared.saved("code", PREFIX, replace(known, tokens=known.tokens + 1))
        self.threads[0].go_on()
        self.successResultOf(publishing)
        self.assertEqual(1, self.told(self.a)["to_publish"])
        (self.folder / "a" / "slots" / "code.bin").unlink()
        self.do(self.a, self.a.parts.shared.publish)
        self.assertEqual(0, self.told(self.a)["to_publish"])
        self.assertEqual(1, self.a.sample("shared_files_total", action="published", result="missing"))

    def test_many_waiting(self) -> None:
        """While the folder is gone, not everything that is saved is remembered; beginnings of prompts never are."""
        self.warm(self.a)
        saved, known = self.a.parts.shared.saved, self.a.snapshots.get("code", PREFIX)
        assert known is not None
        saved("code", PART, known)
        self.assertEqual(0, self.told(self.a)["to_publish"])
        for number in range(MOST_WAITING + 5):
            saved(f"auto-{number:012x}", CHAT, known)
        self.assertEqual(MOST_WAITING, self.told(self.a)["to_publish"])
        # Their files are not there (under these names), so nothing of a conversation is published.
        self.do(self.a, self.a.parts.shared.publish)
        self.assertEqual(0, self.told(self.a)["to_publish"])

    def test_damaged(self) -> None:
        """A file that is not as its entry says is not fetched; it is computed, and published anew."""
        self.warm(self.a)
        [file] = (self.path / "files").iterdir()
        file.unlink()
        file.write_bytes(b"qsgg")
        self.warm(self.b)
        self.assertGreater(self.computed(self.b), 0)
        self.assertEqual(1, self.b.sample("shared_files_total", action="fetched", result="missing"))
        self.assertEqual(1, self.b.sample("shared_files_total", action="published", result="ok"))

    def test_cannot_be_recorded(self) -> None:
        """What cannot be renamed here is computed, and no copy stays."""
        self.warm(self.a)
        really = os.replace

        def refuse(source: Any, target: Any) -> None:
            if "fetched" in str(source):
                raise OSError(errno.EIO, "broken")
            really(source, target)

        self.patch(os, "replace", refuse)
        self.warm(self.b)
        self.assertGreater(self.computed(self.b), 0)
        self.assertEqual(["code.bin"], os.listdir(self.folder / "b" / "slots"))
        self.assertGreater(self.b.sample("shared_files_total", action="fetched", result="failed"), 0)

    def test_cannot_be_fetched(self) -> None:
        """A user whose file cannot be recorded is served all the same."""
        self.warm(self.a)
        self.round(self.b)
        self.do(self.b, self.b.identity.find_out)
        self.threads[1].error = OSError(errno.EIO, "broken")
        self.assertEqual("cold", self.b.chat("@code why?").headers["x-bioproxy-cache"])
        self.assertFalse(self.told(self.b)["usable"])

    def test_no_room_here(self) -> None:
        """What has no room in the own slot folder is not fetched."""
        self.warm(self.a)
        self.b.free = 0
        self.round(self.b)
        self.do(self.b, self.b.identity.find_out)
        self.assertEqual("cold", self.b.chat("@code why?").headers["x-bioproxy-cache"])

    def test_client_gone(self) -> None:
        """A client that hangs up while its file is fetched leaves nothing in the slot folder."""
        self.warm(self.a)
        self.round(self.b)
        self.do(self.b, self.b.identity.find_out)
        self.threads[1].hangs = True
        call = self.b.chat("@code why?")
        self.assertEqual(1, len(self.threads[1].held))
        call.hang_up()
        self.b.settle()
        self.threads[1].go_on()
        self.assertEqual([], self.local_files("b"))
        self.serve(self.b)

    def local_files(self, name: str) -> list[str]:
        """Return the fetched files in a slot folder that have no name yet."""
        return [each for each in os.listdir(self.folder / name / "slots") if "fetched" in each]

    def test_slow_copy(self) -> None:
        """A user waits no longer for a file than computing it would take."""
        self.warm(self.a)
        self.round(self.b)
        self.do(self.b, self.b.identity.find_out)
        self.threads[1].hangs = True
        call = self.b.chat("@code why?")
        self.b.advance(10)
        self.assertEqual("cold", call.headers["x-bioproxy-cache"])
        self.threads[1].go_on()
        self.assertEqual([], self.local_files("b"))


class Alone(WorldTest):
    """Without a shared shelf."""

    def test_nothing(self) -> None:
        """Nothing is shared, and nobody has to ask."""
        world = self.warm_world()
        shared = world.parts.shared
        for work in (shared.round, shared.publish, shared.finish):
            self.successResultOf(world.start(work))
        self.assertIsNone(shared.tell())
        self.assertFalse(shared.usable)
        wanted: Any = None  # not looked at
        self.successResultOf(Deferred.fromCoroutine(shared.bring(wanted, wanted)))
        shared.release("code")
        shared.saved("code", PREFIX, snapshot())
        self.assertTrue(self.successResultOf(Deferred.fromCoroutine(shared.claim("code", KEY))))
        self.assertFalse((Path(self.folder) / "shelf").exists())
