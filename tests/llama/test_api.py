"""The calls of llama-server's endpoints."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any

from bioproxy.llama.answers import FIXED_MARKER, Evaluated, SlotFile, Witness
from bioproxy.runtime.errors import LlamaError, UpstreamError
from tests.support.fakes import tokens
from tests.support.world import WorldTest


class LlamaTest(WorldTest):
    """A `LlamaApi` and the fake llama-server that it calls."""

    def setUp(self) -> None:
        """Build both: a world without templates."""
        super().setUp()
        self.built = self.world({})
        self.server, self.llama = self.built.llama_server, self.built.llama

    def result(self, work: Callable[[], Coroutine[Any, Any, Any]]) -> Any:
        """Run a coroutine to its end; return its result."""
        return self.successResultOf(self.built.start(work))


class Answers(LlamaTest):
    """Answers as llama-server gives them."""

    def test_witness(self) -> None:
        """A witness has last task, tokens and whether the slot is busy; a fresh server has no task; 501: `None`."""
        self.assertEqual(Witness(None, 0, False), self.result(self.llama.witness))
        self.result(lambda: self.llama.evaluate([1, 2, 3]))
        self.assertEqual(Witness(1, 3, False), self.result(self.llama.witness))
        self.server.busy = True
        self.assertEqual(Witness(1, 3, True), self.result(self.llama.witness))
        self.server.slots_shown = False
        self.assertIsNone(self.result(self.llama.witness))

    def test_witness_of_slot_0(self) -> None:
        """The witness is that of slot 0, wherever it stands in the list."""
        slots = [{"id": number, "id_task": number + 10, "is_processing": False} for number in (1, 0)]
        self.server.answers["/slots"] = slots
        self.assertEqual(Witness(10, 0, False), self.result(self.llama.witness))

    def test_files(self) -> None:
        """Save and restore return tokens and bytes; a file that cannot be restored is refused."""
        self.result(lambda: self.llama.evaluate([1, 2, 3]))
        self.assertEqual(SlotFile(3, 30), self.result(lambda: self.llama.save("a.bin")))
        self.assertEqual(SlotFile(3, 30), self.result(lambda: self.llama.restore("a.bin")))
        self.failureResultOf(self.built.start(lambda: self.llama.restore("b.bin")), LlamaError)

    def test_files_enabled(self) -> None:
        """Whether slot files are on is found out without touching a file or the slot."""
        self.result(lambda: self.llama.evaluate([1, 2, 3]))
        self.assertTrue(self.result(self.llama.slot_files_enabled))
        self.assertEqual([1, 2, 3], self.server.tokens)
        self.server.files = None
        self.assertFalse(self.result(self.llama.slot_files_enabled))
        self.server.answers["/slots/0?action=restore"] = {}  # one that takes any name
        self.assertTrue(self.result(self.llama.slot_files_enabled))

    def test_evaluate(self) -> None:
        """Evaluating leaves exactly these tokens in slot 0 and tells what was reused."""
        self.assertEqual(Evaluated(0, 3, 1.5), self.result(lambda: self.llama.evaluate([1, 2, 3])))
        self.assertEqual(Evaluated(3, 2, 1.0), self.result(lambda: self.llama.evaluate([1, 2, 3, 4, 5])))
        self.assertEqual([1, 2, 3, 4, 5], self.server.tokens)
        body = self.server.requests[-1][1]
        self.assertEqual((0, 0, 0), (body["id_slot"], body["n_predict"], body["n_cache_reuse"]))
        self.assertNotIn("stream", body)

    def test_odds(self) -> None:
        """The likeliest next tokens come as ids with log-probabilities, computed from nothing."""
        self.assertEqual(self.server.odds, self.result(lambda: self.llama.next_token_odds("abc")))
        self.assertFalse(self.server.requests[-1][1]["cache_prompt"])

    def test_props(self) -> None:
        """Model, build, context and marker are read from the properties; missing ones have harmless values."""
        props = self.result(self.llama.props)
        found = (props.model, props.build, props.context, props.marker)
        self.assertEqual(("/models/fake.gguf", "b1-fake", 16384, "<__media_one__>"), found)
        self.server.answers["/props"] = {}
        props = self.result(self.llama.props)
        self.assertEqual((None, None, FIXED_MARKER), (props.model, props.build, props.marker))
        self.assertGreater(props.context, 10**9)
        self.assertFalse(props.asleep)

    def test_asleep(self) -> None:
        """A sleeping llama-server says so, and everything else about it is unchanged."""
        awake = self.result(self.llama.props)
        self.server.asleep = True
        asleep = self.result(self.llama.props)
        self.assertEqual(([False, True], awake), ([awake.asleep, asleep.asleep], asleep))

    def test_facts(self) -> None:
        """The facts are the model's numbers and adapters, independent of order; each difference gives other facts."""
        same = [{"n_params": 1, "n_vocab": 256}, {"n_vocab": 256, "n_params": 1}]
        other = [{"n_params": 2, "n_vocab": 256}, {"n_params": 1}, None]
        facts = []
        for meta in (*same, *other):
            self.server.answers["/v1/models"] = {"data": [{"id": "x", "meta": meta}]}
            facts.append(self.result(self.llama.model_facts))
        self.assertEqual(facts[0], facts[1])
        self.server.answers["/lora-adapters"] = [{"id": 0}]
        facts.append(self.result(self.llama.model_facts))
        self.assertEqual(len(facts) - 1, len(set(facts)))

    def test_count(self) -> None:
        """Tokens are counted without listing them; a build that cannot count gives `None`."""
        count = len(tokens("<user>abc</><assistant>"))
        self.assertEqual(count, self.result(lambda: self.llama.count_tokens("abc")))
        self.server.counts = False
        self.assertIsNone(self.result(lambda: self.llama.count_tokens("abc")))


class Nonsense(LlamaTest):
    """Answers that no llama-server gives."""

    def test_not_understood(self) -> None:
        """An answer of another shape is an `UpstreamError`, for each call."""
        calls: list[tuple[Callable[[], Coroutine[Any, Any, Any]], str]] = [
            (self.llama.props, "/props"),
            (self.llama.model_facts, "/v1/models"),
            (self.llama.witness, "/slots"),
            (lambda: self.llama.save("a"), "/slots/0?action=save"),
            (lambda: self.llama.restore("a"), "/slots/0?action=restore"),
            (lambda: self.llama.apply_template({}), "/apply-template"),
            (lambda: self.llama.tokenize("a"), "/tokenize"),
            (lambda: self.llama.count_tokens("a"), "/v1/messages/count_tokens"),
            (lambda: self.llama.evaluate([1]), "/completion"),
            (lambda: self.llama.next_token_odds("a"), "/completion"),
        ]
        shapes: tuple[Any, ...] = (
            [1],
            "text",
            5,
            None,
            {"data": []},
            {"tokens": ["a"]},
            [{"id": 1}],
            {"input_tokens": {}},
        )
        for work, path in calls:
            for shape in shapes:
                if path == "/props" and isinstance(shape, dict):
                    continue  # may be any object
                self.server.answers = {path: shape}
                result = self.built.start(work)
                self.assertIn("not understood", str(self.failureResultOf(result, UpstreamError).value), (path, shape))

    def test_refused(self) -> None:
        """While the model is being loaded every call fails with what llama-server says."""
        self.server.loading = True
        for work in (self.llama.health, self.llama.props, lambda: self.llama.evaluate([1])):
            error = self.failureResultOf(self.built.start(work), LlamaError).value
            self.assertEqual((503, "503: Loading model"), (error.status, str(error)))
