"""What is said of a question that was not answered from what was computed before."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from twisted.logger import capturedLogs
from twisted.trial.unittest import SynchronousTestCase

from bioproxy.prompts.prompt_shape import PLAIN_PROMPT, USER_MESSAGE_ONLY, Shape
from bioproxy.proxy.miss_reasons import MEANINGS
from tests.support.fakes import Refusal
from tests.support.world import CODE, PREFIX, SlotTest, WarmTest, WorldTest, logged


def shape(*before: Any, **fields: Any) -> Shape:
    """Return a shape with these system messages before the template, and fields."""
    return Shape.of([{"role": "system", "content": text} for text in before], {}, [], fields)


def tool(**function: Any) -> Any:
    """Return a tool."""
    return {"type": "function", "function": function}


# Two shapes, and how they differ.
DIFFERENCES: list[tuple[Shape, Shape, str]] = [
    (USER_MESSAGE_ONLY, shape("s"), "messages has 1 entry instead of 0"),
    (shape("s"), USER_MESSAGE_ONLY, "messages has 0 entries instead of 1"),
    (shape("It is 12:01."), shape("It is 12:02."), "messages[0].content differs from character 11 on"),
    (shape("abc"), shape("abcd"), "messages[0].content differs from character 4 on"),
    (shape("a", "b"), shape("a", "c"), "messages[1].content differs from character 1 on"),
    (USER_MESSAGE_ONLY, shape(tools=[tool(name="a")]), "tools is new"),
    (shape(tools=[tool(name="a")]), USER_MESSAGE_ONLY, "tools is missing"),
    (
        shape(tools=[tool(name="ab")]),
        shape(tools=[tool(name="ac")]),
        "tools[0].function.name differs from character 2 on",
    ),
    (shape(tools=[tool(name="a")]), shape(tools=[tool(name="a", x=1)]), "tools[0].function.x is new"),
    (shape(tools=[tool(name="a", x=1)]), shape(tools=[tool(x=1, name="a")]), "its fields are in another order"),
    (
        shape(chat_template_kwargs={"thinking": True}),
        shape(chat_template_kwargs={"thinking": 1}),
        "chat_template_kwargs.thinking has another value",
    ),
    (USER_MESSAGE_ONLY, Shape.of([], {"name": "x"}, [], {}), "name is new"),
    (USER_MESSAGE_ONLY, Shape.of([], {}, [{"type": "image_url"}], {}), "parts has 1 entry instead of 0"),
    (USER_MESSAGE_ONLY, PLAIN_PROMPT, "it was a chat, now a plain prompt"),
    (PLAIN_PROMPT, USER_MESSAGE_ONLY, "it was a plain prompt, now a chat"),
    (USER_MESSAGE_ONLY, shape(chat_template_kwargs={"a\r\nb\u00e9": 1}), "chat_template_kwargs is new"),
    (
        shape(chat_template_kwargs={"a\r\nb\u00e9": 1}),
        shape(chat_template_kwargs={"a\r\nb\u00e9": 2}),
        "chat_template_kwargs.a\\r\\nb\\xe9 has another value",
    ),
]


class Differences(SynchronousTestCase):
    """`Shape.difference`."""

    def test_table(self) -> None:
        """The first difference is named, in one line."""
        for one, other, said in DIFFERENCES:
            self.assertEqual(said, one.difference(other))

    def test_long_names(self) -> None:
        """However long a field's name is, what is said is short."""
        one, other = (shape(chat_template_kwargs={"x" * 5000: value}) for value in (1, 2))
        self.assertEqual(200, len(one.difference(other)))


class Told(WorldTest):
    """What clients and the operator are told."""

    def test_first(self) -> None:
        """A question that comes before the first warm-up says that nothing else is wrong."""
        world = self.ready_world()
        call = world.chat("@code why?")
        self.assertEqual("first", call.headers["x-bioproxy-miss"])
        self.assertNotIn("x-bioproxy-miss-detail", call.headers)

    def test_trouble(self) -> None:
        """Where warm-ups fail, the reason is told."""
        world = self.ready_world({"code": f"{'x' * 20000}<{{message}}>"})
        self.successResultOf(world.start(world.warmer.round))
        call = world.chat("@code why?")
        self.assertEqual(world.readiness.state("code")[1], call.headers["x-bioproxy-miss-detail"])
        self.assertIn("tokens", call.headers["x-bioproxy-miss-detail"])

    def test_shape(self) -> None:
        """Where something else stands before the template, what differs is told, and where; and nothing of its text."""
        world = self.warm_world({"code": CODE})
        world.chat("@code a", system="It is 12:01.")
        world.chat("@code b", system="It is 12:01.")
        for _ in range(3):
            self.successResultOf(world.start(world.warmer.round))
        self.successResultOf(world.start(lambda: world.llama.evaluate([1, 2, 3])))
        call = world.chat("@code c", system="It is 12:02.")
        self.assertEqual("shape-changed", call.headers["x-bioproxy-miss"])
        said = "messages[0].content differs from character 11 on"
        self.assertEqual(said, call.headers["x-bioproxy-miss-detail"])
        record = world.operate("GET", "/status").json()["requests"][0]
        self.assertEqual(("shape-changed", said), (record["miss"], record["miss_detail"]))

    def test_clock(self) -> None:
        """Where another system message comes with each question, what differs from the one before is told, too."""
        world = self.warm_world({"code": CODE})
        world.chat("@code bare")
        said = [
            world.chat(f"@code {n}", system=f"It is 12:0{n}.").headers["x-bioproxy-miss-detail"] for n in range(1, 4)
        ]
        bare = "messages has 1 entry instead of 0"
        clock = f"{bare}; since the question before: messages[0].content differs from character 11 on"
        self.assertEqual([bare, clock, clock], said)

    def test_deep(self) -> None:
        """However deep a request nests, it is answered or refused as too deep, and nothing of it goes wrong later."""
        tools = '{"messages": [{"role": "user", "content": "@code why?"}], "tools": [%s%d%s]}'
        for depth in (10, 95, 105, *range(800, 1100, 20), 3000, 5000, 20_000):
            world = self.warm_world({"code": CODE}, state_dir=self.folder / str(depth))
            for leaf in (1, 1, 2, 3, 3):
                body = tools % ('{"a":' * depth, leaf, "}" * depth)
                status = world.send("POST", "/v1/chat/completions", body.encode()).status
                self.assertIn(status, (200,) if depth < 500 else (200, 400), depth)
                self.successResultOf(world.start(world.warmer.round))
            self.assertEqual([], self.flushLoggedErrors(), depth)

    def test_own_wish(self) -> None:
        """Who wants everything computed anew is told that this is why."""
        call = self.warm_world().chat("@code why?", cache_prompt=False)
        self.assertIn("cache_prompt", call.headers["x-bioproxy-miss-detail"])


class UnderWay(WarmTest):
    """Questions that come before the end of their template's warm-up."""

    def interrupt(self, *messages: str, pieces: int = 1, **more: Any) -> tuple[str, str, str | None]:
        """Ask when a warm-up has done so many pieces; return the answer's cache, miss and detail."""
        self.server.pause_at = {"/completion"}
        self.begin()
        for _ in range(1 + pieces):  # the first one is the question which model runs
            self.go_on()
        self.assertEqual("warming", self.state())
        self.server.pause_at = set()
        return self.told(*messages, **more)

    def told(self, *messages: str, **more: Any) -> tuple[str, str, str | None]:
        """Ask; return the answer's cache, miss and detail."""
        headers = self.built.chat(*(messages or ("@code why?",)), **more).headers
        return headers["x-bioproxy-cache"], headers["x-bioproxy-miss"], headers.get("x-bioproxy-miss-detail")

    def test_never_asked(self) -> None:
        """The first question is told so, and how far the warm-up is, in headers, `/status` and the log."""
        self.use(warmup_chunk=7)
        share = 7 / len(PREFIX)
        said = f"its warm-up is at {share:.0%}"
        with capturedLogs() as events:
            self.assertEqual(("cold", "warming", said), self.interrupt())
        record = self.built.operate("GET", "/status").json()["requests"][0]
        self.assertEqual(("warming", said), (record["miss"], record["miss_detail"]))
        self.assertTrue([line for line in logged(events) if "cache=cold miss=warming" in line])

    def test_before_the_first_piece(self) -> None:
        """It is the reason from the warm-up's start on."""
        self.use(warmup_chunk=7)
        self.assertEqual(("cold", "warming", "its warm-up is at 0%"), self.interrupt(pieces=0))

    def test_interrupted_earlier(self) -> None:
        """It stays the reason until the warm-up is finished, whatever else has the slot meanwhile."""
        self.use(warmup_chunk=7)
        first = self.interrupt()
        self.server.restart()
        self.look()
        self.assertEqual(first, self.told("@code how?"))
        self.rounds(2)
        call = self.built.chat("@code what?")
        self.assertEqual("hot", call.headers["x-bioproxy-cache"])
        self.assertNotIn("x-bioproxy-miss", call.headers)

    def test_edited(self) -> None:
        """It goes before that the text has changed, once the warm-up of the new text has begun."""
        self.use(warmup_chunk=7)
        self.rounds()
        self.edit("Now this is known: abc. <{message}>")
        self.assertEqual("content-changed", self.told()[1])
        for path in ("/completion", "/slots"):
            self.edit(f"{path} is what this is about: abc. <{{message}}>")
            self.server.pause_at = {path}
            self.begin()
            self.assertEqual(("warming", 1), (self.state(), self.server.paused), path)
            self.server.pause_at = set()
            self.assertEqual(("cold", "warming"), self.told()[:2], path)
        self.edit("This is the last one: abc. <{message}>")
        self.assertEqual("content-changed", self.told()[1])

    def test_another_shape(self) -> None:
        """The warm-up of another shape is not that of the question's prompt."""
        self.use(warmup_chunk=7)
        self.assertEqual(("cold", "first", None), self.interrupt(system="Be brief."))

    def test_failed(self) -> None:
        """A warm-up that failed is not under way: what went wrong is told instead."""
        self.use(warmup_chunk=7)
        self.server.pause_at = {"/completion"}
        self.begin()
        self.go_on()
        self.go_on()
        self.server.answers["/completion"] = Refusal(500, "out of memory", "server_error")
        self.server.pause_at = set()
        self.go_on()
        del self.server.answers["/completion"]
        self.assertEqual("error", self.state())
        self.assertEqual(("cold", "slot-taken", self.error()), self.told())

    def test_words(self) -> None:
        """Each word is explained in the documentation for clients."""
        text = (Path(__file__).parents[2] / "docs" / "clients" / "README.md").read_text(encoding="utf-8")
        for word in MEANINGS:
            self.assertIn(f"| `{word}` |", text)


class Afterwards(SlotTest):
    """What an answer shows that nobody knew before it was sent."""

    def test_not_reused(self) -> None:
        """A template that was hot or restored, and was not reused, is a miss, with the numbers; else there is none."""
        self.built.chat("@code why?")
        record: Any = self.built.request_log.latest()[0]
        self.assertEqual(("hot", None, None), (record["cache"], record["miss"], record["miss_detail"]))
        # Where the prompt's tokens are not known, the slot is not cut back to it, and the answer is what tells.
        self.slot.facts.tokens_of = lambda key: None
        self.server.goes_back = False
        self.built.chat("@code why not?")
        record = self.built.request_log.latest()[0]
        tokens = self.built.readiness.tokens["code"]
        self.assertEqual(("hot", "ineffective"), (record["cache"], record["miss"]))
        self.assertEqual(f"0 of its {tokens} tokens were reused", record["miss_detail"])
