"""Watching llama-server: whether it is up, and whether it is still the same process."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields, replace
from typing import Any

from twisted.logger import capturedLogs

from bioproxy.llama.process_watch import PATIENCE, Listeners, ProcessWatch
from bioproxy.runtime.errors import UpstreamError, UpstreamTimeout
from tests.support.network import Wire
from tests.support.world import KEY, WorldTest, logged


class WatchTest(WorldTest):
    """A watch, and a fake llama-server that it has found."""

    def setUp(self) -> None:
        """Build both: a world that is warm for ``@code``."""
        super().setUp()
        self.built = self.warm_world()
        self.server, self.watch = self.built.llama_server, self.built.watch

    def look(self) -> list[str]:
        """Look once; return what was logged."""
        with capturedLogs() as events:
            self.successResultOf(self.built.start(self.watch.look))
        return [line for line in logged(events) if line.startswith("llama-server")]

    def test_up(self) -> None:
        """After a look what llama-server says about itself is known; the log has it once."""
        self.built = self.world({}, state_dir=self.folder / "another")
        self.watch = self.built.watch
        self.assertFalse(self.watch.up)
        expected = "llama-server at http://llama is up: /models/fake.gguf, build b1-fake, 16384 tokens of context"
        self.assertEqual([expected], self.look())
        self.assertEqual([], self.look())
        self.assertEqual((True, None), (self.watch.up, self.watch.trouble))
        self.assertEqual((True, 1), (self.built.files.enabled, self.built.sample("upstream_up")))

    def test_without_files(self) -> None:
        """A llama-server without slot files is noticed, and the log says what to do about it."""
        self.built = self.world({}, state_dir=self.folder / "another")
        self.watch = self.built.watch
        self.built.llama_server.files = None
        self.assertIn("start it with --slot-save-path", self.look()[1])
        self.assertIs(False, self.built.files.enabled)

    def test_trouble(self) -> None:
        """Each kind of trouble is named, and logged when it begins and when it ends, but not at each look."""

        def loading() -> None:
            self.server.loading = True

        def down() -> None:
            self.server.loading, self.server.down = False, True

        def nonsense() -> None:
            self.server.down, self.server.answers = False, {"/props": [1]}

        for happens, words, help in (
            (loading, "503: Loading model", "wait until it is ready"),
            (down, "refuses connections", "start llama-server there"),
            (nonsense, "not understood", "start llama-server there"),
        ):
            happens()
            self.assertEqual(1, len(self.look()))
            self.assertIn(words, self.watch.trouble or "")
            self.assertIn(help, self.watch.help or "")
            self.assertEqual((False, 0), (self.watch.up, self.built.sample("upstream_up")))
            self.assertEqual([], self.look())
        self.server.answers = {}
        self.assertIn("is up", self.look()[0])
        self.assertIsNone(self.watch.help)

    def test_odd_props(self) -> None:
        """Properties of wrong types are trouble with llama-server, not a failure of bioproxy."""
        for odd in ({"n_ctx": "many"}, [1]):
            self.server.answers = {"/props": {"default_generation_settings": odd}}
            self.look()
            self.assertFalse(self.watch.up)

    def test_no_context(self) -> None:
        """A llama-server that does not tell its context is up; no text counts as too long for it."""
        self.server.answers = {"/props": {"model_path": "x"}}
        self.look()
        self.assertTrue(self.watch.up)
        self.assertGreater(self.watch.process.props.context, 10**9)

    def test_no_answer(self) -> None:
        """A llama-server that does not answer is in trouble when a look has reached its time limit."""
        self.server.pause_at = {"/health"}
        look = self.built.start(self.watch.look)
        self.built.advance(PATIENCE - 0.1)
        self.assertNoResult(look)
        self.built.advance(0.1)
        self.successResultOf(look)
        self.assertEqual((False, "llama-server does not answer"), (self.watch.up, self.watch.trouble))
        self.assertEqual(["/health"], self.server.gone)

    def test_other_process(self) -> None:
        """When another process is found, slot and model are unknown; another look at it changes nothing."""

        def away() -> None:
            self.server.down = True
            self.look()
            self.server.down = False

        def other_model() -> None:
            self.server.model_path = "/models/other.gguf"

        events: list[tuple[Callable[[], object], bool, bool]] = [
            (lambda: None, True, True),
            (self.server.restart, False, False),
            (away, True, True),  # the marker says that it is the same one, and a process keeps its model
            (other_model, False, False),
        ]
        for happens, known, model_known in events:
            self.successResultOf(self.built.start(self.built.identity.find_out))
            self.successResultOf(self.built.start(lambda: self.built.llama.evaluate([1])))
            self.successResultOf(self.built.start(lambda: self.built.slot.remember("code", KEY)))
            happens()
            self.look()
            self.assertEqual(known, self.built.content.has(KEY))
            self.assertEqual(model_known, self.built.identity.current is not None)

    def test_met_by_a_request(self) -> None:
        """If a request met the new process before the watch did, what that request left in the slot stays known."""
        process = self.watch.process
        self.built.reuse_check.went_back(1000, 0)
        self.server.restart()
        model = self.successResultOf(self.built.start(self.built.identity.find_out))
        self.successResultOf(self.built.start(lambda: self.built.slot.remember("code", KEY)))
        self.assertEqual(process, self.watch.process)
        self.look()
        self.assertNotEqual(process, self.watch.process)
        self.assertEqual((True, model), (self.built.content.has(KEY), self.built.identity.current))
        self.assertTrue(self.built.reuse_check.goes_back, "that was learned from the old one")

    def test_order(self) -> None:
        """Listeners are called in a fixed order, each after the value was replaced."""
        heard: list[Any] = []

        def note(name: str) -> Callable[..., Any]:
            return lambda *told: heard.append((name, self.watch.process.serial, *told))

        built = self.built
        names = [field.name for field in fields(Listeners)]
        listeners = Listeners(*map(note, names))
        self.watch = ProcessWatch(
            built.llama, built.upstream, built.identity, listeners, built.metrics, built.clock, 30
        )
        self.server.asleep = True
        self.look()
        self.server.asleep = False
        self.look()
        self.server.restart()
        self.look()
        props = self.watch.process.props
        self.assertEqual(
            [
                *(("fell_asleep", 1), ("another_process", 1, True), ("slot_files", 1, True)),
                *(("advise", 1, replace(props, marker="<__media_one__>"), True), ("another_process", 2, False)),
                *(("slot_files", 2, True), ("advise", 2, props, True)),
            ],
            heard,
        )
        self.server.down = True
        self.look()
        self.assertEqual(("what_helps", 2), heard[-1][:2])
        self.assertIsInstance(heard[-1][2], UpstreamError)

    def test_away(self) -> None:
        """A llama-server that was out of reach counts as another process, and is asked again for its flags."""
        process = self.watch.process
        self.server.down = True
        self.look()
        self.assertIs(process, self.watch.process)
        self.server.down, self.server.files = False, None
        self.look()
        self.assertNotEqual(process, self.watch.process)
        self.assertEqual((process.props, False), (self.watch.process.props, self.watch.process.slot_files))

    def test_sleep(self) -> None:
        """A llama-server that falls asleep loses its slot; when it is awake again it is the same process and model."""
        process, model = self.watch.process, self.built.identity.current
        self.server.asleep = True
        before = len(self.server.requests)
        self.look()
        self.assertEqual(["/health", "/props"], self.server.paths()[before:])  # whatever else is asked would wake it
        self.assertEqual((True, True), (self.watch.up, self.watch.process.props.asleep))
        self.assertFalse(self.built.content.has(KEY))
        self.successResultOf(self.built.start(lambda: self.built.slot.remember("code", KEY)))
        self.look()
        self.assertTrue(self.built.content.has(KEY))
        self.server.asleep = False
        self.look()
        self.assertFalse(self.watch.process.props.asleep)
        self.assertEqual(process, self.watch.process)
        self.assertIsNotNone(model)
        self.assertIs(model, self.built.identity.current)

    def test_found_asleep(self) -> None:
        """A llama-server that is found asleep is asked for slot files only when it is awake."""
        self.built = self.world({}, state_dir=self.folder / "another")
        self.watch, self.server = self.built.watch, self.built.llama_server
        self.server.asleep = True
        self.look()
        self.assertEqual((True, None), (self.watch.up, self.built.files.enabled))
        self.server.asleep = False
        self.look()
        self.assertIs(True, self.built.files.enabled)

    def test_slot_files_again(self) -> None:
        """For another process it is found out again whether it keeps slot files and shows its slot."""
        self.server.files, self.built.content.visible = None, False
        self.look()
        self.assertEqual((True, False), (self.built.files.enabled, self.built.content.visible))
        self.server.restart()
        self.look()
        self.assertEqual((False, True), (self.built.files.enabled, self.built.content.visible))


class Unresponsive(WorldTest):
    """A llama-server that has accepted a request and no longer answers anything."""

    def setUp(self) -> None:
        """Have one request wait for its answer; `upstream_timeout` is 12 seconds."""
        super().setUp()
        self.built = self.warm_world(upstream_timeout=12)
        self.server = self.built.llama_server
        self.server.pause_at = {"/v1/chat/completions"}
        self.call = self.built.chat("hello")

    def looks(self, count: int) -> None:
        """Look `count` times, and let the time limit of each look pass."""
        for _ in range(count):
            look = self.built.start(self.built.watch.look)
            self.built.advance(PATIENCE)
            self.successResultOf(look)

    def test_unresponsive(self) -> None:
        """After `upstream_timeout` without any answer the request fails with 504, and its connection is closed."""
        self.server.pause_at.add("/health")
        self.looks(2)
        self.assertEqual(0, self.call.status)
        self.looks(1)
        self.assertEqual(504, self.call.status)
        self.assertEqual("timeout_error", self.call.json()["error"]["type"])
        self.assertIn("/v1/chat/completions", self.server.gone)
        self.assertIsNone(self.built.gate.busy)

    def test_gone(self) -> None:
        """The same happens if the host is gone: new connections fail, and the one in use stays silent."""
        self.server.down = True
        self.looks(3)
        self.assertEqual(0, self.call.status)
        self.looks(1)
        self.assertEqual(504, self.call.status)

    def test_long_prompt(self) -> None:
        """A long prompt is no reason to give up, because `/health` is answered."""
        self.looks(100)
        self.assertEqual(0, self.call.status)
        self.server.go_on()
        self.built.settle()
        self.assertEqual(200, self.call.status)

    def test_streaming(self) -> None:
        """Each piece of a stream is a sign of life."""
        self.server.pause_at = {"stream", "/health"}
        self.call.hang_up()
        call = self.built.chat("hello", stream=True)
        for _ in range(4):
            self.looks(2)
            self.assertFalse(call.whole)
            self.assertFalse(self.built.upstream.pending.last_heard + 12 <= self.built.clock.seconds())
            self.server.go_on()
            self.built.settle()
        self.assertTrue(call.whole)
        self.assertNotIn(b"error", call.body)

    def test_timeout_says_how_long(self) -> None:
        """The error says for how long llama-server has not answered."""
        world = self.world({}, Wire().agents(), state_dir=self.folder / "another")
        asking = world.start(lambda: world.upstream.ask("GET", "/x"))
        world.clock.advance(31)
        world.upstream.pending.give_up()
        self.assertIn("31 s", str(self.failureResultOf(asking, UpstreamTimeout).value))
