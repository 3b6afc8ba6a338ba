"""What is learned from requests, and with which learned prompt a request begins."""

from __future__ import annotations

import json
from typing import Any

from twisted.internet.defer import CancelledError

from bioproxy.learning.prompt_learning import PROOF_SECONDS
from bioproxy.learning.prompt_rules import UNPROVEN, why_not
from bioproxy.prompts.chat_request import ChatRequest
from bioproxy.prompts.learned_prompts import MOST, LearnedPrompt
from bioproxy.prompts.prompt_shape import LARGEST_SHAPE
from bioproxy.prompts.request_search import read_request
from tests.support.world import WarmTest

LONG = "All that a careful assistant has to know. " * 40
"""More than `learn_minimum` tokens: the fake makes one of each character."""

TOOLS = [{"type": "function", "function": {"name": "look", "parameters": {}}}]


def chat(system: str, question: str = "why?", **more: Any) -> ChatRequest:
    """Return a request with this system message and question."""
    messages = [*more.pop("before", []), {"role": "user", "content": question}]
    body = {"messages": [{"role": "system", "content": system}, *messages], **more}
    found = read_request(json.dumps(body).encode(), "/v1/chat/completions", (), 0)
    assert isinstance(found, ChatRequest)
    return found


class LearningTest(WarmTest):
    """`PromptLearning`, in a world without templates that sees its slot folder."""

    def setUp(self) -> None:
        """Build it."""
        super().setUp()
        slots = self.folder / "slots"
        slots.mkdir(mode=0o700)
        self.use({}, slot_save_path=slots)
        self.learning = self.built.parts.prompt_learning

    def study(self) -> list[str]:
        """Have learned what there is to learn; return what was forgotten for it."""
        return self.successResultOf(self.built.start(self.learning.study))

    def answer(self, *chats: ChatRequest) -> None:
        """Have these requests answered, and learn from each."""
        for each in chats:
            self.learning.answered(each)
            self.study()

    def arrive(self, request: ChatRequest) -> list[str]:
        """Look at a request that arrives; return what llama-server was asked for."""
        before = len(self.server.requests)
        self.successResultOf(self.built.start(lambda: self.learning.look(request)))
        return self.server.paths()[before:]

    def cuts(self) -> list[int | None]:
        """Return what was learned, as the number of tokens of parts."""
        found = [self.learning.learned.get(id) for id in self.learning.learned]
        return [each.cut for each in found if each is not None]

    def learn_part(self) -> LearnedPrompt:
        """Have a part learned that two beginnings share."""
        self.answer(chat(LONG + "one"), chat(LONG + "two"))
        [part] = self.learning.learned.cuts()
        return part


class Requests(LearningTest):
    """What a request finds: `look` and `prompt_for`."""

    def test_whole(self) -> None:
        """A beginning that was learned as a whole is found without asking llama-server."""
        self.answer(chat(LONG, tools=TOOLS))
        request = chat(LONG, "another question", tools=TOOLS)
        self.assertEqual([], self.arrive(request))
        found = self.learning.prompt_for(request)
        assert found is not None
        self.assertEqual((None, request.beginning), (found.cut, found.shape))

    def test_part(self) -> None:
        """A beginning of which a part may be known is made tokens, once for each process of llama-server."""
        part, request = self.learn_part(), chat(LONG + "three")
        self.assertIsNone(self.learning.prompt_for(request))
        self.assertEqual(["/apply-template", "/tokenize"], self.arrive(request))
        self.assertEqual([], self.arrive(request))
        self.assertEqual(part, self.learning.prompt_for(request))
        self.server.restart()
        self.look()
        self.assertIsNone(self.learning.prompt_for(request))
        self.assertEqual(["/apply-template", "/tokenize"], self.arrive(request))
        self.assertEqual(part, self.learning.prompt_for(request))

    def test_not_asked(self) -> None:
        """Nothing is asked where no part is known, the beginning is of no use, or nobody would answer."""
        self.assertEqual([], self.arrive(chat(LONG)))
        self.learn_part()
        self.assertEqual([], self.arrive(chat("short")))
        self.assertEqual([], self.arrive(chat("x" * (LARGEST_SHAPE + 1))))
        self.learning.minimum = None
        self.assertEqual([], self.arrive(chat(LONG + "three")))
        self.learning.minimum = 1024
        self.server.down = True
        self.look()
        self.assertEqual([], self.arrive(chat(LONG + "three")))

    def test_refused(self) -> None:
        """A llama-server that does not make tokens of it does not hold the request up."""
        self.learn_part()
        self.server.answers = {"/apply-template": "nonsense"}
        self.assertEqual(["/apply-template"], self.arrive(chat(LONG + "three")))
        self.assertIsNone(self.learning.prompt_for(chat(LONG + "three")))

    def test_cancelled(self) -> None:
        """A client that hangs up gives up the question, and the next request asks it again."""
        self.learn_part()
        for path in ("/apply-template", "/tokenize"):
            self.server.pause_at = {path}
            looking = self.built.start(lambda: self.learning.look(chat(LONG + "three")))
            looking.cancel()
            self.built.settle()
            self.failureResultOf(looking, CancelledError)
            self.assertIn(path, self.server.gone)
        self.server.pause_at = set()
        self.assertEqual(["/apply-template", "/tokenize"], self.arrive(chat(LONG + "three")))

    def test_switched_off(self) -> None:
        """With learning off nothing is found or learned; what is known is found again when it is on."""
        request = chat(LONG, tools=TOOLS)
        self.answer(request)
        self.learning.minimum = None
        self.assertIsNone(self.learning.prompt_for(request))
        self.learning.answered(chat(LONG + "other", tools=TOOLS))
        self.assertFalse(self.learning.has_news)
        self.learning.minimum = 1024
        self.assertIsNotNone(self.learning.prompt_for(request))


class Studying(LearningTest):
    """What is learned: `answered`, `study` and `forget`."""

    def test_two_conversations(self) -> None:
        """A beginning is learned when a second conversation has it, not when one conversation goes on."""
        more = [{"role": "user", "content": "why?"}, {"role": "assistant", "content": "so"}]
        self.answer(chat(LONG), chat(LONG), chat(LONG, "and?", before=more))
        self.assertEqual([], self.cuts())
        self.answer(chat(LONG, "something else"))
        self.assertEqual([None], self.cuts())

    def test_no_news(self) -> None:
        """What is too short, too long or has more than instructions in it is not even thought about."""
        greeting = [{"role": "assistant", "content": "Hello!"}]
        for request in (chat("short"), chat("x" * (LARGEST_SHAPE + 1)), chat(LONG, before=greeting)):
            self.learning.answered(request)
            self.assertFalse(self.learning.has_news)

    def test_unproven(self) -> None:
        """Only some are learned at first sight, until one was used by a second conversation or an hour has passed."""
        different = [chat(f"{number} {LONG}", tools=TOOLS) for number in range(UNPROVEN + 2)]
        self.answer(*different[: UNPROVEN + 1])
        self.assertEqual(UNPROVEN, self.cuts().count(None))
        self.answer(chat(f"0 {LONG}", "again", tools=TOOLS), different[-1])
        self.assertEqual(UNPROVEN + 1, self.cuts().count(None))
        self.answer(chat(f"a {LONG}", tools=TOOLS))
        self.assertEqual(UNPROVEN + 1, self.cuts().count(None))
        self.built.advance(PROOF_SECONDS)
        self.answer(chat(f"b {LONG}", tools=TOOLS))
        self.assertEqual(UNPROVEN + 2, self.cuts().count(None))

    def test_refused(self) -> None:
        """A beginning that llama-server refuses is not tried again before the next request on it."""
        self.server.answers = {"/apply-template": "nonsense"}
        self.answer(chat(LONG, tools=TOOLS))
        self.assertEqual(([], False), (self.cuts(), self.learning.has_news))
        self.server.answers = {}
        self.answer(chat(LONG, tools=TOOLS))
        self.assertEqual([None], self.cuts())

    def test_cancelled(self) -> None:
        """A round that is cancelled leaves the rest for the next one."""
        self.learning.answered(chat(LONG, tools=TOOLS))
        self.server.pause_at = {"/tokenize"}
        studying = self.built.start(self.learning.study)
        studying.cancel()
        self.built.settle()
        self.failureResultOf(studying, CancelledError)
        self.assertEqual(([], True), (self.cuts(), self.learning.has_news))
        self.server.pause_at = set()
        self.study()
        self.assertEqual(([None], False), (self.cuts(), self.learning.has_news))

    def test_switched_off_meanwhile(self) -> None:
        """Nothing is learned any more if learning was switched off while llama-server was asked."""
        self.learning.answered(chat(LONG, tools=TOOLS))
        self.server.pause_at = {"/tokenize"}
        studying = self.built.start(self.learning.study)
        self.learning.minimum = None
        self.server.pause_at = set()
        self.go_on()
        self.successResultOf(studying)
        self.assertEqual([], self.cuts())

    def test_too_many(self) -> None:
        """The prompt that was not used for the longest time is forgotten for a new one."""
        learned = self.learning.learned
        for number in range(MOST):
            learned.add(LearnedPrompt(chat(f"{number} {LONG}").beginning))
        first, second, *_ = learned
        self.learning.answered(chat(f"0 {LONG}"))  # a use of the first one
        self.study()
        self.learning.answered(chat(LONG, tools=TOOLS))
        self.assertEqual([second], self.study())
        self.assertIsNotNone(learned.get(first))
        self.assertEqual(MOST, len(learned))

    def test_forgotten(self) -> None:
        """What was forgotten is learned once more from the next request that begins with it."""
        request = chat(LONG, tools=TOOLS)
        self.answer(request)
        [id] = self.learning.learned
        self.assertEqual((True, False), (self.learning.forget(id), self.learning.forget(id)))
        self.assertIsNone(self.learning.prompt_for(request))
        self.answer(request)
        self.assertEqual([id], list(self.learning.learned))


class Telling(LearningTest):
    """What an operator is told."""

    def test_note(self) -> None:
        """A part's note says where the requests that share it differ, until the part is forgotten."""
        part = self.learn_part()
        self.assertIn("requests share only this part: messages[0].content differs", self.learning.note(part.id) or "")
        self.learning.forget(part.id)
        self.assertIsNone(self.learning.note(part.id))

    def why_not(self, chat: ChatRequest) -> str:
        """Say why a beginning is not learned."""
        return why_not(chat, self.learning.difference)

    def test_why_not(self) -> None:
        """The reason why a beginning was not learned is the first one that applies."""
        greeting = [{"role": "assistant", "content": "Hello!"}]
        self.assertIn("too long", self.why_not(chat("x" * (LARGEST_SHAPE + 1))))
        self.assertIn("more in it", self.why_not(chat(LONG, before=greeting)))
        self.assertEqual("learned when a second conversation begins with it", self.why_not(chat(LONG)))
        told = self.why_not(chat(LONG, tools=TOOLS))
        self.assertEqual("not seen like this before, and learned now", told)
        self.answer(chat(LONG + "one"))
        self.assertIn("the most similar one so far: messages[0]", self.why_not(chat(LONG)))
        self.assertIn("not seen like this before: ", self.why_not(chat(LONG, tools=TOOLS)))
