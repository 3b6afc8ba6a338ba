"""Watching llama-server."""

from __future__ import annotations

from collections.abc import Callable

from twisted.logger import capturedLogs

from bioproxy.llama.process_watch import PATIENCE
from bioproxy.runtime.errors import UpstreamTimeout
from tests.support.network import Wire
from tests.support.world import KEY, WorldTest, logged


class WatchTest(WorldTest):
    """A watch, and a fake llama-server that it has found."""

    def setUp(self) -> None:
        """Build both."""
        super().setUp()
        self.built = self.warm_world()
        self.server, self.watch = self.built.llama_server, self.built.watch

    def look(self) -> list[str]:
        """Look once; return what was logged."""
        with capturedLogs() as events:
            self.successResultOf(self.built.start(self.watch.look))
        return [line for line in logged(events) if line.startswith("llama-server")]

    def test_up(self) -> None:
        """What llama-server says of itself is known after a look, and told in the log once."""
        self.built = self.world({}, state_dir=self.folder / "another")
        self.watch = self.built.watch
        self.assertFalse(self.watch.up)
        expected = "llama-server at http://llama is up: /models/fake.gguf, build b1-fake, 16384 tokens of context"
        self.assertEqual([expected], self.look())
        self.assertEqual([], self.look())
        self.assertEqual((True, None), (self.watch.up, self.watch.trouble))
        self.assertEqual((True, 1), (self.built.files.enabled, self.built.sample("upstream_up")))

    def test_without_files(self) -> None:
        """That llama-server keeps no slot files is known, and told with what to do about it."""
        self.built = self.world({}, state_dir=self.folder / "another")
        self.watch = self.built.watch
        self.built.llama_server.files = None
        self.assertIn("start it with --slot-save-path", self.look()[1])
        self.assertIs(False, self.built.files.enabled)

    def test_trouble(self) -> None:
        """Each trouble is known by what it is, logged when it comes and when it ends, but not at each look."""

        def loading() -> None:
            self.server.loading = True

        def down() -> None:
            self.server.loading, self.server.down = False, True

        def nonsense() -> None:
            self.server.down, self.server.answers = False, {"/props": [1]}

        for happens, words in (
            (loading, "503: Loading model"),
            (down, "refuses connections"),
            (nonsense, "not understood"),
        ):
            happens()
            self.assertEqual(1, len(self.look()))
            self.assertIn(words, self.watch.trouble or "")
            self.assertEqual((False, 0), (self.watch.up, self.built.sample("upstream_up")))
            self.assertEqual([], self.look())
        self.server.answers = {}
        self.assertIn("is up", self.look()[0])

    def test_odd_props(self) -> None:
        """Properties that are there but not what they should be are trouble with llama-server, not a bug of ours."""
        for odd in ({"n_ctx": "many"}, [1]):
            self.server.answers = {"/props": {"default_generation_settings": odd}}
            self.look()
            self.assertFalse(self.watch.up)

    def test_no_context(self) -> None:
        """A llama-server that does not tell its context is up all the same, and nothing is too long for it."""
        self.server.answers = {"/props": {"model_path": "x"}}
        self.look()
        self.assertTrue(self.watch.up)
        self.assertGreater(self.watch.context, 10**9)

    def test_no_answer(self) -> None:
        """A llama-server that says nothing is in trouble when a look has lasted for long enough."""
        self.server.pause_at = {"/health"}
        look = self.built.start(self.watch.look)
        self.built.advance(PATIENCE - 0.1)
        self.assertNoResult(look)
        self.built.advance(0.1)
        self.successResultOf(look)
        self.assertEqual((False, "llama-server does not answer"), (self.watch.up, self.watch.trouble))
        self.assertEqual(["/health"], self.server.gone)

    def test_other_process(self) -> None:
        """Another process of llama-server makes slot and model unknown; another look at the same one does not."""

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

    def test_sleep(self) -> None:
        """A llama-server that falls asleep loses its slot, but is the same process with the same model, awake again."""
        process, model = self.watch.process, self.built.identity.current
        self.server.asleep = True
        before = len(self.server.requests)
        self.look()
        self.assertEqual(["/health", "/props"], self.server.paths()[before:])  # whatever else is asked would wake it
        self.assertEqual((True, True), (self.watch.up, self.watch.asleep))
        self.assertFalse(self.built.content.has(KEY))
        self.successResultOf(self.built.start(lambda: self.built.slot.remember("code", KEY)))
        self.look()
        self.assertTrue(self.built.content.has(KEY))
        self.server.asleep = False
        self.look()
        self.assertFalse(self.watch.asleep)
        self.assertIs(process, self.watch.process)
        self.assertIsNotNone(model)
        self.assertIs(model, self.built.identity.current)

    def test_found_asleep(self) -> None:
        """Of one that is found asleep it is asked whether it keeps slot files when it is awake."""
        self.built = self.world({}, state_dir=self.folder / "another")
        self.watch, self.server = self.built.watch, self.built.llama_server
        self.server.asleep = True
        self.look()
        self.assertEqual((True, None), (self.watch.up, self.built.files.enabled))
        self.server.asleep = False
        self.look()
        self.assertIs(True, self.built.files.enabled)

    def test_slot_files_again(self) -> None:
        """Whether another process keeps slot files, and shows its slot, is found out anew."""
        self.server.files, self.built.content.visible = None, False
        self.look()
        self.assertEqual((True, False), (self.built.files.enabled, self.built.content.visible))
        self.server.restart()
        self.look()
        self.assertEqual((False, True), (self.built.files.enabled, self.built.content.visible))


class Dumb(WorldTest):
    """A llama-server that accepted a request and says nothing any more."""

    def setUp(self) -> None:
        """Have one request wait for its answer, with 12 seconds of patience."""
        super().setUp()
        self.built = self.warm_world(upstream_timeout=12)
        self.server = self.built.llama_server
        self.server.pause_at = {"/v1/chat/completions"}
        self.call = self.built.chat("hello")

    def looks(self, count: int) -> None:
        """Look so many times, each for as long as patience lasts."""
        for _ in range(count):
            look = self.built.start(self.built.watch.look)
            self.built.advance(PATIENCE)
            self.successResultOf(look)

    def test_dumb(self) -> None:
        """When nothing answers for the timeout, whoever waits is told, and llama-server that nobody waits."""
        self.server.pause_at.add("/health")
        self.looks(2)
        self.assertEqual(0, self.call.status)
        self.looks(1)
        self.assertEqual(504, self.call.status)
        self.assertEqual("timeout_error", self.call.json()["error"]["type"])
        self.assertIn("/v1/chat/completions", self.server.gone)
        self.assertIsNone(self.built.gate.busy)

    def test_gone(self) -> None:
        """So too when llama-server's host is gone: new connections fail, the one in use is merely silent."""
        self.server.down = True
        self.looks(3)
        self.assertEqual(0, self.call.status)
        self.looks(1)
        self.assertEqual(504, self.call.status)

    def test_long_prompt(self) -> None:
        """A long prompt is no reason to give up: the other questions are answered."""
        self.looks(100)
        self.assertEqual(0, self.call.status)
        self.server.go_on()
        self.built.settle()
        self.assertEqual(200, self.call.status)

    def test_streaming(self) -> None:
        """What comes of a stream is a sign of life, too."""
        self.server.pause_at = {"stream", "/health"}
        self.call.hang_up()
        call = self.built.chat("hello", stream=True)
        for _ in range(4):
            self.looks(2)
            self.assertFalse(call.whole)
            self.assertFalse(self.built.upstream.last_heard + 12 <= self.built.clock.seconds())
            self.server.go_on()
            self.built.settle()
        self.assertTrue(call.whole)
        self.assertNotIn(b"error", call.body)

    def test_timeout_says_how_long(self) -> None:
        """The error tells for how long llama-server has said nothing."""
        world = self.world({}, Wire().agents(), state_dir=self.folder / "another")
        asking = world.start(lambda: world.upstream.ask("GET", "/x"))
        world.clock.advance(31)
        world.upstream.give_up()
        self.assertIn("31 s", str(self.failureResultOf(asking, UpstreamTimeout).value))
