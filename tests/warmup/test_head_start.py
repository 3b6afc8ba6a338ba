"""After an answer the slot is prepared for the next turn, unless somebody comes or it is right already."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import pairwise
from typing import Any, cast

from twisted.logger import ILogObserver, globalLogPublisher

from bioproxy.prompts.request_search import read_request
from bioproxy.proxy.turns import goes_on_with
from bioproxy.slot.head_start_use import TRIAL
from bioproxy.slot_files.record import CHAT
from bioproxy.warmup import last_talk
from bioproxy.warmup.head_start import WORTH
from tests.support.network import Call
from tests.support.world import KEY, PREFIX, WarmTest, World, logged

THOUGHT = f"<think>{'t' * 300}</think>"
WORDS = "w" * 300
QUESTION = "@code why?"

ASKED = [*PREFIX, *map(ord, "why?</><assistant>")]
"""The tokens of the first question."""

NEXT = [*ASKED, *map(ord, f"{WORDS}</><user>")]
"""What the next prompt begins with, when the reasoning is dropped."""


class HeadStartTest(WarmTest):
    """A world whose chat template drops reasoning, and whose model thinks."""

    def setUp(self) -> None:
        """Build it."""
        super().setUp()
        self.use_thinking()

    def use_thinking(self, **settings: Any) -> World:
        """Build one with a warm template."""
        self.states = getattr(self, "states", 0) + 1
        self.use(**{"warmup_chunk": 64, "state_dir": self.folder / f"state{self.states}", **settings})
        self.server.drops_reasoning, self.server.says = True, THOUGHT + WORDS
        self.rounds(2)
        return self.built

    def goes_back(self) -> None:
        """Have it be known that the model goes back, so that it need not be tried out."""
        self.built.reuse_check.went_back(100, 100)

    def count(self, result: str) -> float:
        """Return how many head starts have ended so."""
        return self.built.sample("head_starts_total", template="code", result=result)

    def counts(self) -> dict[str, float]:
        """Return all outcomes there were."""
        found = {result: self.count(result) for result in ("done", "preempted", "useless", "failed")}
        return {result: count for result, count in found.items() if count}

    def first(self, **more: Any) -> Call:
        """Ask for the first time."""
        return self.built.chat(QUESTION, **more)

    def second(self, said: str = THOUGHT + WORDS, **more: Any) -> tuple[str, int]:
        """Ask again, in the same conversation."""
        return self.ask(QUESTION, said, "and?", **more)


class Done(HeadStartTest):
    """Head starts that get done."""

    def test_done(self) -> None:
        """The next turn has all tokens before its message, and is hot; a round evaluates it, in pieces, once."""
        self.first()
        self.goes_back()
        before = len(self.server.requests)
        self.rounds()
        self.assertEqual(NEXT, self.server.tokens)
        pieces = self.pieces(before)
        self.assertTrue(len(pieces) > 2 and all(b - a <= 127 for a, b in pairwise(pieces)), pieces)
        self.assertGreaterEqual(pieces[0], len(ASKED), "nothing of the prompt is cut off")
        self.assertEqual([], self.rounds(5))
        self.assertEqual(("hot", len(NEXT)), self.second())
        self.assertEqual({"done": 1}, self.counts())

    def test_without(self) -> None:
        """Without it the answer is computed again; a reload switches it off and on."""
        world = self.use_thinking(head_start=False)
        self.first()
        self.rounds(3)
        self.assertEqual(("hot", len(ASKED)), self.second())
        self.assertEqual({}, self.counts())
        world.new_settings = replace(world.settings, head_start=True)
        self.assertEqual(200, world.operate("POST", "/reload").status)
        self.first()
        self.rounds()
        self.assertEqual({"done": 1}, self.counts())

    def test_streamed(self) -> None:
        """Streams count as well."""
        self.first(stream=True)
        self.rounds()
        self.assertEqual(NEXT, self.server.tokens)

    def test_cannot_go_back(self) -> None:
        """Where the model cannot go back, the prompt's file is what it begins with, and the next turn is hot."""
        self.server.goes_back = False
        self.built.reuse_check.went_back(100, 0)
        self.first()
        before = len(self.server.requests)
        self.rounds()
        self.assertEqual((["code.bin"], NEXT), (self.slot_calls("restore", before), self.server.tokens))
        self.assertEqual(("hot", len(NEXT)), self.second())

    def test_found_that_it_cannot(self) -> None:
        """That a model cannot go back is learned from a few tokens: no request computes more than a piece."""
        self.server.goes_back = False
        self.first()
        before = len(self.server.requests)
        self.rounds()
        self.assertFalse(self.built.slot.facts.model_goes_back)
        self.assertEqual((["code.bin"], NEXT), (self.slot_calls("restore", before), self.server.tokens))
        trial, back, *pieces = self.pieces(before)
        self.assertEqual((TRIAL, TRIAL - 1), (trial, back))
        self.assertTrue(all(b - a <= 127 for a, b in pairwise([len(PREFIX), *pieces])), pieces)
        self.assertEqual(("hot", len(NEXT)), self.second())

    def test_found_that_it_can(self) -> None:
        """The trial is made once, and the conversation comes back from its file."""
        self.first()
        before = len(self.server.requests)
        self.rounds()
        self.assertEqual(["code.chat.bin"], self.slot_calls("restore", before))
        trial, back, first, *_ = self.pieces(before)
        self.assertEqual((TRIAL, TRIAL - 1), (trial, back))
        self.assertGreater(first, len(ASKED))
        self.assertEqual(("hot", len(NEXT)), self.second())
        before = len(self.server.requests)
        self.rounds()
        self.assertEqual([], self.slot_calls("restore", before))
        self.assertEqual({"done": 2}, self.counts())

    def test_file_gone_after_trial(self) -> None:
        """Where the file cannot be read after the trial, the slot gets all that is wanted all the same."""
        self.first()
        self.server.pause_at = {"/completion"}
        result = self.begin()
        self.server.pause_at = set()
        assert self.server.files is not None
        del self.server.files["code.chat.bin"]
        self.go_on()
        self.successResultOf(result)
        self.assertEqual(NEXT, self.server.tokens)
        self.assertEqual({"done": 1}, self.counts())

    def test_no_trial_without_file(self) -> None:
        """Where no file has the conversation, it is not put at risk."""
        self.use_thinking(save_conversations=False)
        self.first()
        before = len(self.server.requests)
        self.rounds()
        self.assertGreater(min(self.pieces(before)), len(ASKED))
        self.assertEqual({"done": 1}, self.counts())

    def test_although_conversations_are_given_up(self) -> None:
        """The slot is used where restored conversations have turned out to be useless: it has what will come back."""
        self.server.goes_back = self.built.reuse_check.goes_back = self.built.reuse_check.conversations = False
        self.first()
        self.rounds()
        self.assertEqual(("hot", len(NEXT)), self.second())

    def test_saved_before(self) -> None:
        """A conversation that would be lost to whoever comes in the middle is saved first."""
        self.first()
        before = len(self.server.requests)
        self.rounds()
        self.assertEqual(["code.chat.bin"], self.slot_calls("save", before))
        self.assertEqual([*ASKED, *map(ord, THOUGHT + WORDS)], self.built.saved(kind=CHAT))

    def test_not_undone(self) -> None:
        """Nothing is brought back in its place, also after an hour."""
        self.first()
        self.rounds()
        self.built.clock.advance(3600)
        self.assertEqual([], [path for path in self.rounds(5) if path.startswith("/completion")])
        self.assertEqual(NEXT, self.server.tokens)


class NotNeeded(HeadStartTest):
    """Where nothing is evaluated."""

    def nothing_evaluated(self) -> None:
        """Have no round evaluate anything."""
        self.assertNotIn("/completion", self.rounds(3))
        self.assertEqual({}, self.counts())

    def test_right_already(self) -> None:
        """Where the chat template changes nothing, the slot is left alone."""
        self.server.drops_reasoning = False
        self.first()
        self.nothing_evaluated()
        self.assertEqual(("hot", len([*ASKED, *THOUGHT, *WORDS])), self.second())

    def test_few_words(self) -> None:
        """An answer of a few words is not worth it: the next request computes it as quickly."""
        self.server.says = THOUGHT + "w" * (WORTH - len("</><user>") - 1)
        self.first()
        self.nothing_evaluated()
        self.server.says += "w"
        self.first()
        self.rounds()
        self.assertEqual({"done": 1}, self.counts())

    def test_switched_off(self) -> None:
        """Where head starts are switched off after an answer, nothing is asked, and its text is dropped."""
        self.first()
        self.built.parts.last_talk.enabled = False
        self.assertNotIn("/apply-template", self.rounds(3))
        self.assertIsNone(self.built.parts.last_talk.candidate)

    def test_image(self) -> None:
        """What a conversation with an image begins with cannot be told by its text."""
        parts = [{"type": "text", "text": QUESTION}, {"type": "image_url", "image_url": {"url": "data:image/png;,"}}]
        self.built.chat(messages=[{"role": "user", "content": parts}])
        self.nothing_evaluated()

    def test_used_by_others(self) -> None:
        """A slot that somebody has used past bioproxy is left alone."""
        self.first()
        self.successResultOf(self.built.start(lambda: self.built.llama.evaluate([1, 2, 3])))
        self.nothing_evaluated()
        self.assertEqual([1, 2, 3], self.server.tokens)

    def test_broken_off(self) -> None:
        """An answer that was broken off says nothing."""
        self.server.pause_at = {"body"}
        call = self.first()
        call.hang_up()
        self.server.pause_at = set()
        self.go_on()
        self.nothing_evaluated()

    def test_other_request(self) -> None:
        """Whatever uses the slot next, the conversation is not kept any longer."""
        self.first()
        self.built.send("POST", "/v1/embeddings", b'{"input": "x"}')
        self.nothing_evaluated()
        self.assertIsNone(self.built.parts.last_talk.candidate)

    def test_text_is_dropped(self) -> None:
        """Nothing of the conversation is kept after the head start."""
        self.first()
        part = self.built.parts.last_talk
        self.assertIsNotNone(part.candidate)
        self.rounds()
        self.assertEqual((None, None), (part.candidate, part._sent))

    def test_too_long(self) -> None:
        """A conversation that fills the context gets none."""
        self.server.context = 300
        self.look()
        self.rounds(2)
        self.first()
        self.nothing_evaluated()

    def test_too_large(self) -> None:
        """A body that is too large is not kept."""
        self.patch(last_talk, "LARGEST_BODY", 10)
        self.first()
        self.nothing_evaluated()

    def test_not_visible(self) -> None:
        """Where llama-server does not tell what the slot holds, it is not even asked."""
        self.server.slots_shown = False
        self.first()
        self.assertNotIn("/apply-template", self.rounds(3))

    def test_failing(self) -> None:
        """A chat template that fails is no reason to stop; the failure is counted."""
        self.first()
        self.server.answers["/apply-template"] = b"nonsense"
        self.rounds(3)
        self.assertEqual({"failed": 1}, self.counts())


class Interrupted(HeadStartTest):
    """Whoever comes is served at once."""

    def interrupted_at(self, place: str, hold: int = 0) -> None:
        """Have a user come while llama-server is asked for something; the user's answer is right."""
        self.first()
        self.server.pause_at = {place}
        result = self.begin()
        for _ in range(hold):
            self.go_on()
        self.assertEqual(1, self.server.paused, place)
        self.server.pause_at = set()
        before = len(self.server.requests)
        call = self.built.chat(QUESTION, THOUGHT + WORDS, "and?")
        self.go_on()
        self.assertEqual(200, call.status, place)
        self.assertIn("/v1/chat/completions", self.server.paths()[before:])
        self.successResultOf(result)
        self.rounds()
        expected = [*NEXT, *map(ord, f"and?</><assistant>{WORDS}</><user>")]
        self.assertEqual(expected, self.server.tokens, place)

    def test_each_await(self) -> None:
        """At each call of llama-server, the first and later ones."""
        for place, hold in (
            *(("/apply-template", 0), ("/apply-template", 3), ("/tokenize", 0), ("/tokenize", 3)),
            *(("/slots", 0), ("/slots/0?action=save", 0), ("/completion", 0), ("/completion", 1), ("/slots", 2)),
        ):
            self.use_thinking()
            self.interrupted_at(place, hold)

    def test_counted(self) -> None:
        """The piece in progress is given up, and that is counted; nothing is believed about the slot."""
        self.first()
        self.server.pause_at = {"/completion"}
        self.begin()
        self.assertEqual("warmup", self.built.gate.busy)
        call = self.built.chat("@code how?")
        self.assertEqual(["/completion"], self.server.gone)
        self.server.pause_at = set()
        self.go_on()
        self.assertEqual((200, {"preempted": 1}), (call.status, self.counts()))

    def test_goes_on(self) -> None:
        """While it runs, the conversation's next request goes on with what the slot holds, and no other one does."""
        self.goes_back()
        self.first()
        self.server.pause_at = {"/completion"}
        self.begin()
        self.assertTrue(self.continued_by(QUESTION, THOUGHT + WORDS, "and?"))
        self.assertFalse(self.continued_by("@code how?"))
        self.assertFalse(self.built.slot.holds(KEY), "nothing is claimed")

    def continued_by(self, *messages: str) -> bool:
        """Tell whether a request with these messages goes on with what the slot holds."""
        roles = ("user", "assistant")
        turns = [{"role": roles[number % 2], "content": text} for number, text in enumerate(messages)]
        found = read_request(
            json.dumps({"messages": turns}).encode(),
            "/v1/chat/completions",
            tuple(self.built.poller.templates.values()),
            None,
        )
        assert found is not None
        return goes_on_with(self.built.slot, found)()

    def test_hot_all_the_same(self) -> None:
        """The next request uses what was computed until it came: no file is restored in its place."""
        self.goes_back()
        self.first()
        self.server.pause_at = {"/completion"}
        self.begin()
        self.server.go_on()
        self.built.settle()
        before = len(self.server.requests)
        self.server.pause_at = set()
        call = self.built.chat(QUESTION, THOUGHT + WORDS, "and?")
        self.go_on()
        self.assertEqual({"preempted": 1}, self.counts())
        self.assertEqual([], self.slot_calls("restore", before))
        self.assertEqual("hot", call.headers["x-bioproxy-cache"])
        self.assertGreater(call.json()["timings"]["cache_n"], len(ASKED))

    def test_hung_up(self) -> None:
        """A user who comes and hangs up at once ends it as well, and the slot is as it is found."""
        self.first()
        self.server.pause_at = {"/completion", "/v1/chat/completions"}
        self.begin()
        self.built.chat("@code how?").hang_up()
        self.server.pause_at = set()
        self.go_on()
        self.assertEqual({"preempted": 1}, self.counts())
        self.assertIsNone(self.built.gate.busy)
        self.assertEqual(200, self.first().status)

    def test_stopping(self) -> None:
        """When bioproxy stops, it ends."""
        self.first()
        self.server.pause_at = {"/completion"}
        result = self.begin()
        self.built.gate.close()
        self.built.settle()
        self.successResultOf(result)
        self.assertIsNone(self.built.gate.busy)

    def test_restarted(self) -> None:
        """Where llama-server is started again in the middle, nothing is claimed about its slot."""
        self.first()
        self.server.pause_at = {"/completion"}
        result = self.begin()
        self.server.pause_at = set()
        self.server.restart()
        self.look()
        self.go_on()
        self.successResultOf(result)
        self.assertFalse(self.count("done"))
        # What a file had was brought back, as after any restart.
        known = self.built.content.known
        assert known is not None
        self.assertEqual((False, len(self.server.tokens)), (known.ahead, known.witness.tokens))


class WrongGuesses(HeadStartTest):
    """Clients that do not send back what is expected."""

    def wrong(self) -> None:
        """Have a conversation whose second turn has another answer in it."""
        self.first()
        self.rounds()
        self.second("something else")

    def test_twice(self) -> None:
        """After two in a row there are no more for that client, which is told; other clients go on."""
        events: list[Any] = []
        observer = cast("ILogObserver", events.append)
        globalLogPublisher.addObserver(observer)
        self.addCleanup(globalLogPublisher.removeObserver, observer)
        self.wrong()
        self.wrong()
        self.assertEqual(2, self.count("useless"))
        done = self.count("done")
        self.first()
        self.rounds()
        self.assertEqual(done, self.count("done"))
        [told] = json.loads(self.built.operate("GET", "/status").body)["head_start"]
        self.assertEqual("unnamed client /v1/chat/completions", told["client"])
        self.assertIn(told["note"], logged(events))
        body = json.dumps({"messages": [{"role": "user", "content": QUESTION}]}).encode()
        self.built.send("POST", "/v1/chat/completions", body, User_Agent="other/1")
        self.rounds()
        self.assertEqual(done + 1, self.count("done"))

    def test_right_in_between(self) -> None:
        """A right guess in between begins the count anew."""
        self.wrong()
        self.first()
        self.rounds()
        self.assertEqual("hot", self.second()[0])
        self.wrong()
        self.assertEqual([], self.built.parts.last_talk.kinds.told())

    def test_not_judged(self) -> None:
        """Where something else has used the slot in between, the next turn says nothing about the guess."""
        for _ in range(3):
            self.first()
            self.rounds()
            self.built.chat("hello")
            self.second("something else")
        self.assertEqual(0, self.count("useless"))


class LooksRight(HeadStartTest):
    """An answer that llama-server has taken apart, and of which the slot seems to be what comes back."""

    def test_learned(self) -> None:
        """The slot is left alone until a next turn has parted from it; from then on the answer is evaluated."""
        self.server.drops_reasoning, self.server.says, self.server.thinks = False, WORDS, "t" * 300
        earlier = {"role": "assistant", "content": "a", "reasoning_content": "b"}
        history = [{"role": "user", "content": QUESTION}, earlier, {"role": "user", "content": "and?"}]
        answer = {"role": "assistant", "content": WORDS}
        for done in (0, 1):
            self.built.chat(messages=history)
            self.rounds()
            self.assertEqual(done, self.count("done"))
            self.built.chat(messages=[*history, answer, {"role": "user", "content": "so?"}])
            self.assertEqual(0, self.count("useless") * (1 - done))
