"""llama-server is not trusted to stay in bounds: what comes of answers that no llama-server gives.

Each of the proxy's own calls is answered in each wrong way, and the whole proxy is looked at: its clients, `/status`,
`/readyz`, its record on disk, and its log.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Coroutine, Iterator
from dataclasses import astuple
from typing import Any

from twisted.internet.defer import Deferred

from bioproxy.llama.answers import Evaluated, Props, SlotFile, Witness
from bioproxy.llama.api import LlamaApi
from bioproxy.llama.prefix_tokens import prefix_tokens
from bioproxy.prompts.prompt_shape import USER_MESSAGE_ONLY as SHAPE
from bioproxy.runtime.errors import UpstreamError, UpstreamTimeout
from tests.support.fakes import MISBEHAVIOURS
from tests.support.network import Call
from tests.support.world import CODE, WorldTest

Work = Callable[[LlamaApi], Coroutine[Any, Any, Any]]

TIMINGS = {"cache_n": 0, "prompt_n": 1, "prompt_ms": 1.5}

HONEST: dict[str, tuple[Work, str, Any]] = {
    "props": (
        lambda llama: llama.props(),
        "/props",
        {
            "default_generation_settings": {"n_ctx": 16384},
            "model_path": "/models/fake.gguf",
            "model_ftype": "F32",
            "build_info": "b1-fake",
            "chat_template": "x",
            "media_marker": "<__media_one__>",
            "is_sleeping": False,
            "total_slots": 1,
            "endpoint_slots": True,
        },
    ),
    "models": (lambda llama: llama.model_facts(), "/v1/models", {"data": [{"id": "x", "meta": {"n_params": 1}}]}),
    "adapters": (lambda llama: llama.model_facts(), "/lora-adapters", [{"id": 0, "scale": 1.0}]),
    "slots": (
        lambda llama: llama.witness(),
        "/slots",
        [{"id": 0, "is_processing": False, "id_task": 3, "n_prompt_tokens": 5}],
    ),
    "save": (lambda llama: llama.save("a"), "/slots/0?action=save", {"n_saved": 1, "n_written": 2}),
    "restore": (lambda llama: llama.restore("a"), "/slots/0?action=restore", {"n_restored": 1, "n_read": 2}),
    "template": (
        lambda llama: prefix_tokens(llama, "a", SHAPE, 9),
        "/apply-template",
        {"prompt": "<user>a"},
    ),
    "tokenize": (lambda llama: prefix_tokens(llama, "a", SHAPE, 9), "/tokenize", {"tokens": [1, 2]}),
    "count": (lambda llama: llama.count_tokens("a"), "/v1/messages/count_tokens", {"input_tokens": 3}),
    "evaluate": (lambda llama: llama.evaluate([1]), "/completion", {"timings": TIMINGS}),
    "odds": (
        lambda llama: llama.next_token_odds("a"),
        "/completion",
        {"completion_probabilities": [{"top_logprobs": [{"id": 7, "logprob": -0.5}, {"id": 8, "logprob": -1.5}]}]},
    ),
}
"""The proxy's own calls: what makes one, its path, and an answer as llama-server gives it."""

HUGE = "9" * 4000

ODD = (
    *("null", "true", "5", "-7", "0.5", "1e400", "-1e400", "NaN", "Infinity", HUGE, "18446744073709551616", "1e300"),
    *('"many"', '"7"', '"\\ud800"', '"a\\u001b[2J\\nb"', "[]", "[1]", "[null]", '["a"]', "[[]]", "{}", '{"id": 0}'),
    *("[" * 900 + "]" * 900, '{"a":' * 900 + "1" + "}" * 900),
)
"""JSON that may stand anywhere in an answer."""

BODIES = {
    b"[" * 100_000: "nested too deeply",
    b'{"a":' * 100_000: "nested too deeply",
    b"<html>": "something that is not JSON",
    b"": "something that is not JSON",
    b"\xff\xfe\xfa": "something that is not JSON",
    b"9" * 100_000: "something that is not JSON",
}
"""Whole answers that cannot be read, and what is said of them."""

SAID = {
    "endless": (UpstreamError, "is longer than"),
    "announced": (UpstreamError, "is longer than"),
    "slow": (UpstreamTimeout, "did not finish its answer"),
    "cut": (UpstreamError, "broke off in the middle"),
}
"""What is said of each misbehaviour."""


def spoilt(answer: Any, put: Callable[[Any], Any] = lambda value: value) -> Iterator[str]:
    """Yield an answer as JSON, again and again, each time with something odd in one place, that of the whole too."""
    for odd in ODD:
        yield json.dumps(put("@@")).replace('"@@"', odd)
    items = answer.items() if isinstance(answer, dict) else enumerate(answer) if isinstance(answer, list) else ()
    for key, value in items:

        def put_here(inner: Any, key: Any = key) -> Any:
            copy = answer.copy()
            copy[key] = inner
            return put(copy)

        yield from spoilt(value, put_here)


def as_declared(value: Any) -> bool:
    """Tell whether a result has the types, and the bounds, that `bioproxy.llama.api` declares."""
    if isinstance(value, Props):
        texts = (value.model, value.build)
        lines = all(text is None or (isinstance(text, str) and text.isprintable()) for text in texts)
        numbers = all(type(number) is int and 0 < number < 2**63 for number in (value.context, value.slots))
        flags = all(type(flag) is bool for flag in (value.asleep, value.tells_slots))
        return lines and numbers and flags and proper(value.marker) and proper(value.about_model)
    if isinstance(value, Witness):
        return (value.task is None or counts(value.task, -1)) and counts(value.tokens) and type(value.busy) is bool
    if isinstance(value, Evaluated):
        return counts(value.reused) and counts(value.computed) and type(value.ms) is float and 0 <= value.ms < 1e309
    if isinstance(value, SlotFile):
        return all(map(counts, astuple(value)))
    if isinstance(value, list):
        pairs = [each if isinstance(each, tuple) else (each, 0.0) for each in value]
        return all(counts(token) and token < 2**31 and type(odd) is float and abs(odd) < 1e309 for token, odd in pairs)
    return proper(value) if isinstance(value, str) else counts(value)


def counts(value: Any, least: int = 0) -> bool:
    """Tell whether a value is a whole number that llama-server can count to."""
    return type(value) is int and least <= value < 2**63


def proper(value: Any) -> bool:
    """Tell whether a value is a text that has a place in UTF-8."""
    return type(value) is str and value.encode(errors="replace") == value.encode(errors="ignore")


class BoundsTest(WorldTest):
    """A world that is warm for ``@code``."""

    def setUp(self) -> None:
        """Build it."""
        super().setUp()
        self.built = self.warm_world({"code": CODE})
        self.server = self.built.llama_server

    def wait_for(self, result: Deferred[Any]) -> None:
        """Let time pass until there is a result; slow answers come a byte a second meanwhile."""
        ended: list[Any] = []

        def end(value: Any) -> Any:
            ended.append(value)
            return value

        result.addBoth(end)
        for _ in range(100):
            if ended:
                return
            self.pass_a_second()
        self.fail("no result in 100 seconds")

    def pass_a_second(self) -> None:
        """Let one more byte of each slow answer come."""
        self.server.trickle()
        self.built.advance(1)

    def answered(self, call: Call) -> Call:
        """Return a client's request when it is answered."""
        for _ in range(100):
            if call.whole:
                return call
            self.pass_a_second()
        self.fail("no answer in 100 seconds")


class OwnCalls(BoundsTest):
    """Each of the proxy's own calls has its value, or an error that says what was wrong: never anything else."""

    def begin(self, work: Work) -> Deferred[Any]:
        """Make one of the calls."""
        return self.built.start(lambda: work(self.built.llama))

    def test_honest(self) -> None:
        """The answers that are spoilt in the other tests are good ones."""
        for name, (work, path, answer) in HONEST.items():
            self.server.answers = {path: answer}
            self.assertTrue(as_declared(self.successResultOf(self.begin(work))), name)

    def test_spoilt(self) -> None:
        """With anything in any place of an answer a call has a value of the declared types, or an `UpstreamError`."""
        for name, (work, path, answer) in HONEST.items():
            values = errors = 0
            for content in spoilt(answer):
                self.server.answers = {path: content.encode()}
                ended: list[Any] = []
                self.begin(work).addCallbacks(ended.append, lambda failure, ended=ended: ended.append(failure.value))
                [value] = ended
                if isinstance(value, Exception):
                    self.assertIs(UpstreamError, type(value), f"{name} {content[:200]}")
                    self.assertLess(len(str(value)), 200)
                    errors += 1
                else:
                    self.assertTrue(as_declared(value), f"{name} {content[:200]} {value!r:.200}")
                    values += 1
            self.assertGreater(min(values, errors), 0, name)

    def test_unreadable(self) -> None:
        """What is no JSON, or too deep, fails with the call's name and what it is."""
        for name, (work, path, _) in (*HONEST.items(), ("health", (lambda llama: llama.health(), "/health", {}))):
            for content, words in BODIES.items():
                self.server.answers = {path: content}
                error = self.failureResultOf(self.begin(work), UpstreamError).value
                self.assertIn(words, str(error), (name, content[:10]))
                self.assertIn(path, str(error))

    def test_misbehaving(self) -> None:
        """What is too long, too slow, or breaks off fails in time, says so, and its connection is closed."""
        for name, (work, path, _) in (*HONEST.items(), ("health", (lambda llama: llama.health(), "/health", {}))):
            for how in MISBEHAVIOURS:
                self.server.misbehaves = {path: how}
                result = self.begin(work)
                if how == "slow":
                    self.assertNoResult(result)
                    self.wait_for(result)
                kind, words = SAID[how]
                error = self.failureResultOf(result, kind).value
                self.assertIn(words, str(error), (name, how))
                self.assertIn("" if how == "cut" else path, str(error))
                self.built.settle()
                self.assertEqual(0, self.server.paused, (name, how))


HEALTH, PROPS, RESTORE = "/health", "/props", "/slots/0?action=restore"

WATCHED = {HEALTH, PROPS, RESTORE}
"""Calls without which llama-server does not count as up.  (Restoring a file that cannot be: are there any at all?)"""

LONG = "/v1/messages/count_tokens"
"""A call that is made for texts only that hardly fit the context."""

WRONG: dict[str, tuple[Any, ...]] = {
    HEALTH: (),
    PROPS: (
        *([], "text", {"default_generation_settings": []}, {"default_generation_settings": {"n_ctx": -1}}),
        *({"total_slots": "many"}, {"model_path": {}}, {"model_path": "\ud800"}, {"is_sleeping": "no"}),
        b'{"default_generation_settings": {"n_ctx": 1e400}}',
    ),
    "/v1/models": ({}, [], {"data": {}}, {"data": []}, {"data": [{"meta": [1]}]}, {"data": [None]}),
    "/lora-adapters": ({}, None, "text", 5),
    "/slots": (
        *({}, [], [1], [{"id": 0}], [{"id": 0, "is_processing": 0}], [{"id": 0.0, "is_processing": False}]),
        [{"id": 0, "is_processing": False, "id_task": "seven"}],
        b'[{"id": 0, "is_processing": false, "n_prompt_tokens": 1e400}]',
    ),
    "/slots/0?action=save": ([], {"n_saved": 1}, {"n_saved": "1", "n_written": 1}, b'{"n_saved": 1e400}'),
    RESTORE: (),  # the question whether there are files at all looks at the status only
    "/apply-template": ([], {}, {"prompt": ["a"]}, {"prompt": "\ud800"}, {"prompt": None}),
    "/tokenize": ({"tokens": {}}, {"tokens": ["1"]}, {"tokens": [-1]}, {"tokens": [2**40]}, b'{"tokens": [1e400]}'),
    LONG: ({"input_tokens": "3"}, {"input_tokens": -3}, b'{"input_tokens": 1e400}', []),
    "/completion": (
        *([], {}, {"timings": [], "completion_probabilities": {}}, {"completion_probabilities": [], "timings": {}}),
        b'{"timings": {"cache_n": 1e400}, "completion_probabilities": [{"top_logprobs": [{"id": 1e400}]}]}',
    ),
}
"""For each of the proxy's own calls, by path: answers of the wrong shape."""

WARMING = {
    **dict.fromkeys(("/slots/0?action=save", "/apply-template", "/tokenize", "/completion"), "code"),
    LONG: "long",
}
"""Calls without which a template cannot be warmed up, which is then said of it."""


class WholeProxy(BoundsTest):
    """Whatever llama-server answers, clients get their answers, the operator is told, and the log has no traceback.

    When it is as it should be again, so is everything.
    """

    def setUp(self) -> None:
        """Have another template that hardly fits the context."""
        super().setUp()
        self.built = self.warm_world({"code": CODE, "long": "x<{message}>"}, state_dir=self.folder / "another")
        self.server = self.built.llama_server
        self.server.context = 512

    def misbehave(self, path: str, how: str, what: Any) -> None:
        """Have one call answered in one wrong way."""
        if how == "answer":
            self.server.answers[path] = what
        else:
            self.server.misbehaves[path] = what

    def behave(self) -> None:
        """Have all calls answered as they should."""
        self.server.answers, self.server.misbehaves = {}, {}

    def ask_around(self) -> None:
        """Do all that makes the proxy ask for itself: another process, questions, and a text that changed."""
        self.server.restart(f"<__media_{len(self.server.requests)}__>")
        self.answered(self.built.operate("GET", "/readyz"))
        self.question()
        self.filling()
        self.question("again")

    def filling(self) -> None:
        """Change the templates, and let them be warmed up."""
        edition = len(self.server.requests)
        self.template("code", f"Edition {edition}. {CODE}")
        self.template("long", f"Edition {edition}. {'x' * 17 * self.server.context}<{{message}}>")
        self.wait_for(self.built.start(self.built.poller.poll))
        self.wait_for(self.built.start(self.built.warmer.round))

    def question(self, text: str = "why?") -> None:
        """Ask as a client, who always gets llama-server's answer."""
        call = self.answered(self.built.chat(f"@code {text}"))
        self.assertEqual((200, "fine"), (call.status, call.json()["choices"][0]["message"]["content"]))

    def told(self) -> dict[str, Any]:
        """Return what `/status` says of llama-server; all that an operator can see must be sound JSON and text."""

        def unsound(constant: str) -> None:
            self.fail(f"{constant} in JSON")

        status = json.loads(self.built.operate("GET", "/status").body, parse_constant=unsound)
        for file in (self.built.settings.state_dir).glob("*.json"):
            json.loads(file.read_text(encoding="utf-8"), parse_constant=unsound)
        self.assertNotIn(b" inf", self.built.operate("GET", "/metrics").body.lower())
        found: dict[str, Any] = status["llama"]
        return found

    def check(self, path: str, how: str, what: Any, words: str) -> None:
        """Check one case: the call, how it misbehaves and with what, and what is to be said of that."""
        case = (path, how, what[:20] if isinstance(what, bytes) else what)
        self.misbehave(path, how, what)
        before = len(self.server.requests)
        self.ask_around()
        self.assertIn(path, self.server.paths()[before:], case)
        ready, llama = self.answered(self.built.operate("GET", "/readyz")), self.told()
        if path in WATCHED:
            self.assertEqual((503, False), (ready.status, llama["up"]), case)
            self.assertIn(words, llama["trouble"], case)
            self.assertEqual(f"{llama['trouble']}\n", ready.body.decode(), case)
        else:
            self.assertEqual((200, True, None), (ready.status, llama["up"], llama["trouble"]), case)
        if path in WARMING:
            self.assertIn(words, self.built.warmer.state(WARMING[path])[1] or "", case)
        self.behave()
        self.built.advance(60)
        self.ask_around()
        self.assertEqual((True, "warm"), (self.told()["up"], self.built.warmer.state("code")[0]), case)
        self.assertEqual([], self.flushLoggedErrors(), case)

    def test_misbehaving(self) -> None:
        """Answers that are too long, too slow, or break off."""
        for path in WRONG:
            for how, (_, words) in SAID.items():
                self.check(path, how, how, words)

    def test_unreadable(self) -> None:
        """Answers that are no JSON, or too deep."""
        for path in WRONG:
            for content, words in list(BODIES.items())[1:3]:
                self.check(path, "answer", content, words)

    def test_wrong_shape(self) -> None:
        """Answers with other types than llama-server's, and numbers without end."""
        for path, answers in WRONG.items():
            for answer in answers:
                self.check(path, "answer", answer, "not understood")


class Promised(BoundsTest):
    """A client that was told to expect a stream, and a llama-server that sends something else."""

    def test_no_stream(self) -> None:
        """Its stream ends with an error event in time, however the other answer comes, and the gate is free again."""
        chat = "/v1/chat/completions"
        for how, (_, words) in SAID.items():
            self.server.pause_at = {chat}
            call = self.built.chat("why?", stream=True)
            self.built.advance(self.built.settings.ping_interval)
            self.assertFalse(call.whole)
            self.server.misbehaves = {chat: how}
            self.server.go_on()
            self.built.settle()
            event = self.answered(call).body.decode()
            self.assertIn(words, event)
            self.assertIn("timeout_error" if how == "slow" else "upstream_error", event)
            self.assertEqual((None, 0), (self.built.gate.busy, self.server.paused), how)
            self.server.pause_at, self.server.misbehaves = set(), {}
        self.assertEqual([], self.flushLoggedErrors())
