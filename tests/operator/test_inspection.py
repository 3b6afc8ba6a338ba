"""Asking llama-server what there is to advise, and saying it in the log."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import twisted.internet
from twisted.internet.defer import TimeoutError
from twisted.logger import LogLevel, capturedLogs

from bioproxy.operator.advice import Advice
from bioproxy.operator.inspection import FIRST, TRIAL, Advisor, survey
from bioproxy.operator.survey_run import now
from bioproxy.runtime.clock import UsableTime
from bioproxy.settings.configuration import Settings
from tests.support.fakes import Refusal
from tests.support.network import Reactor
from tests.support.world import World, WorldTest, logged


class SurveyTest(WorldTest):
    """A fake llama-server, whose slot folder is a real one."""

    def setUp(self) -> None:
        """Make both."""
        super().setUp()
        self.slots = self.folder / "slots"
        self.slots.mkdir(0o700)
        self.use()

    def use(self, **settings: Any) -> World:
        """Use a world with these settings."""
        self.built = self.world({}, slot_save_path=self.slots, **settings)
        self.server = self.built.llama_server
        return self.built

    def begin(self, texts: list[tuple[str, str]] | None = None) -> Any:
        """Begin a survey."""
        self.said: list[str | Advice] = []
        world = self.built
        advisor = Advisor("http://llama", self.slots)
        return world.start(
            lambda: survey(world.llama, advisor, world.slot_folder, texts or [], self.said.append, world.clock)
        )

    def survey(self, texts: list[tuple[str, str]] | None = None) -> tuple[list[str], list[Advice]]:
        """Make one; return the lines and the advice."""
        self.successResultOf(self.begin(texts))
        return [x for x in self.said if isinstance(x, str)], [x for x in self.said if isinstance(x, Advice)]


class Surveying(SurveyTest):
    """`survey`."""

    def test_well(self) -> None:
        """Where all is well it says what it found, leaves no file, and does nothing to the slot."""
        lines, found = self.survey([("code", "Know this. "), ("story", "Tell. ")])
        self.assertEqual(
            [
                "ok: it is up: /models/fake.gguf, build b1-fake, 16384 tokens of context",
                "ok: it writes slot files where slot_save_path says",
                "ok: template code takes 18 of 16384 tokens",
                "ok: template story takes 13 of 16384 tokens",
            ],
            lines,
        )
        self.assertEqual([], found)
        self.assertEqual([], list(self.slots.iterdir()))
        self.assertEqual(([], None), (self.server.tokens, self.server.task))

    def test_trouble(self) -> None:
        """A llama-server that cannot be asked is one advice, and no failure."""

        def down() -> None:
            self.server.down = True

        def loading() -> None:
            self.server.down, self.server.loading = False, True

        def locked() -> None:
            self.server.loading = False
            self.server.answers = {"/props": Refusal(401, "Invalid API Key")}

        def other_program() -> None:
            self.server.answers = {"/health": b"<html>"}

        def another() -> None:
            self.server.answers = {"/props": {}}

        for happens, words in (
            (down, "refuses connections"),
            (loading, "503: Loading model"),
            (locked, "401: Invalid API Key"),
            (other_program, "not JSON"),
            (another, "no llama-server"),
        ):
            happens()
            found = self.survey()[1]
            self.assertEqual(1, len(found), words)
            self.assertIn(words, found[0].what)

    def test_dumb(self) -> None:
        """One that accepts connections and says nothing is not waited for for long."""
        self.server.pause_at = {"/health"}
        asking = self.begin()
        self.built.advance(FIRST - 0.1)
        self.assertNoResult(asking)
        self.built.advance(0.1)
        self.failureResultOf(asking, TimeoutError)

    def test_asleep(self) -> None:
        """One that sleeps is not woken."""
        self.server.asleep = True
        lines, found = self.survey([("code", "Know this. ")])
        self.assertIn("note: it is asleep", lines[-1])
        self.assertEqual([], found)
        self.assertEqual(["/health", "/props"], self.server.paths())

    def test_no_files(self) -> None:
        """Where there are no slot files none is written."""
        self.server.files = None
        found = self.survey()[1]
        self.assertIn("--slot-save-path", found[0].fix)
        self.assertEqual(1, len(found))
        self.assertNotIn("/slots/0?action=save", self.server.paths())

    def test_not_ours_to_see(self) -> None:
        """Where our side does not see the folder, no file is written that could not be removed."""
        self.built = self.world({}, state_dir=self.folder / "another")
        self.server = self.built.llama_server
        self.assertEqual([], self.survey()[1])
        self.assertNotIn("/slots/0?action=save", self.server.paths())

    def test_slot_in_use(self) -> None:
        """What a slot holds would be written too, so it must be empty; and it must be known to be."""

        def busy() -> None:
            self.server.busy = True

        def holds() -> None:
            self.server.busy, self.server.tokens, self.server.task = False, [1, 2], 1

        def hidden() -> None:
            self.server.tokens, self.server.slots_shown = [], False

        for happens in (busy, holds, hidden):
            happens()
            self.assertIn("note: whether slot files can be written was not tried", self.survey()[0][-1])
            self.assertNotIn("/slots/0?action=save", self.server.paths())

    def test_not_writable(self) -> None:
        """A folder that llama-server cannot write to is told with its own words."""
        self.server.answers = {"/slots/0?action=save": Refusal(500, "Unable to save slot")}
        [found] = self.survey()[1]
        self.assertIn("500: Unable to save slot", found.what)

    def test_another_folder(self) -> None:
        """A file that does not arrive went to another folder."""
        self.server.folder = self.folder
        [found] = self.survey()[1]
        self.assertIn(f"not into {self.slots}", found.what)
        self.assertTrue((self.folder / TRIAL).exists())

    def test_cannot_remove(self) -> None:
        """A file that we may not remove is told, too."""
        self.patch(os, "unlink", self.refuse)
        [found] = self.survey()[1]
        self.assertIn("may not remove", found.what)

    def refuse(self, _path: Path) -> None:
        """Fail as a system does."""
        raise PermissionError(13, "Permission denied")

    def test_templates(self) -> None:
        """A template that does not fit is told with both numbers; one that cannot be counted, why; the others go on."""
        self.server.context = 40
        lines, found = self.survey([("long", "x" * 100), ("short", "y")])
        self.assertIn("tokens do not fit the context of 40", found[0].what)
        self.assertEqual("ok: template short takes 8 of 40 tokens", lines[-1])
        self.server.answers = {"/apply-template": Refusal(404, "File Not Found")}
        found = self.survey([("a", "x"), ("b", "y")])[1]
        self.assertEqual(2, len(found))
        self.assertIn("template b: its tokens cannot be counted: 404", found[1].what)


class Brief(Reactor):
    """A reactor that runs for as long as llama-server may take."""

    def run(self) -> None:
        """Run."""
        super().run()
        self.advance(FIRST)


class Now(WorldTest):
    """`now`, with a reactor that runs for a moment."""

    def test_time(self) -> None:
        """On the reactor that it takes by itself patience is measured by a clock that nobody can set."""
        reactor = Reactor()
        self.patch(twisted.internet, "reactor", reactor)
        self.assertRaises(KeyboardInterrupt, now, Settings(), [], self.fail)
        self.assertIsInstance(getattr(reactor.seconds, "__self__", None), UsableTime)

    def test_interrupted(self) -> None:
        """A reactor that ends before the survey was ended by somebody."""
        reactor = Reactor()
        self.assertRaises(KeyboardInterrupt, now, Settings(), [], self.fail, reactor)
        self.assertEqual([("127.0.0.1", 8080)], [client[:2] for client in reactor.tcpClients])

    def test_dumb(self) -> None:
        """A llama-server that says nothing in time is told so."""
        said: list[Any] = []
        now(Settings(), [], said.append, Brief())
        self.assertIn("does not answer", said[0].what)


class Telling(WorldTest):
    """`Advisor`, and how the watch uses it."""

    def looks(self, world: World) -> list[tuple[LogLevel, str]]:
        """Look twice; return what was advised in the log."""
        with capturedLogs() as events:
            for _ in range(2):
                self.successResultOf(world.start(world.watch.look))
        told = [event for event in events if "fix" in event]
        return [(event["log_level"], line) for event, line in zip(told, logged(told), strict=True)]

    def test_log(self) -> None:
        """The log says it once, for the same to say of another process not again, and then what has changed."""
        world = self.world({})
        server = world.llama_server
        server.files = None
        [(level, line)] = self.looks(world)
        self.assertEqual(LogLevel.warn, level)
        self.assertIn("http://llama: it keeps no slot files", line)
        self.assertIn("what helps: start it with --slot-save-path", line)
        server.restart("<__media_two__>")
        self.assertEqual([], self.looks(world))
        server.restart("<__media__>")
        self.assertEqual([LogLevel.warn, LogLevel.info], [level for level, _ in self.looks(world)])
        server.files = {}
        server.restart("<__media_three__>")
        self.assertEqual([], self.looks(world))
        server.files = None
        server.restart("<__media_four__>")
        self.assertEqual(1, len(self.looks(world)))

    def test_trouble(self) -> None:
        """So it is with a llama-server that is not there."""
        world = self.world({})
        world.llama_server.down = True
        [(level, line)] = self.looks(world)
        self.assertEqual(LogLevel.warn, level)
        self.assertIn("what helps: start llama-server there, or correct llama_url", line)

    def test_asleep(self) -> None:
        """One that was found asleep is judged when it is awake."""
        world = self.world({})
        world.llama_server.files, world.llama_server.asleep = None, True
        self.assertEqual([], self.looks(world))
        world.llama_server.asleep = False
        self.assertEqual(1, len(self.looks(world)))

    def test_command_line(self) -> None:
        """Of one on this machine the command line is looked at; of another one it is not."""
        process = self.folder / "7"
        process.mkdir()
        (process / "cmdline").write_bytes(b"llama-server\0-b\0" + b"4096\0")
        world = self.world({})
        props = self.successResultOf(world.start(world.llama.props))
        for url, count in (("http://127.0.0.1:8080", 1), ("http://gpu:8080", 0), ("http://localhost", 0)):
            found = Advisor(url, self.folder, self.folder).look(props, True)
            self.assertEqual(count, len(found), url)
