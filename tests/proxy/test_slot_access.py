"""What a request on a prompt or a conversation finds in the slot, and what it teaches."""

from __future__ import annotations

import json
from typing import Any

from twisted.logger import capturedLogs

from bioproxy.slot_files.record import CHAT as CHAT_FILE
from tests.proxy.test_proxy import CHAT
from tests.support.world import CODE, PREFIX, World, WorldTest, logged

SAVE, RESTORE = "/slots/0?action=save", "/slots/0?action=restore"


LONG = "@code " + "why? " * 100
"""A question that makes a conversation worth keeping."""


class Conversations(WorldTest):
    """Questions on several templates in turn."""

    def setUp(self) -> None:
        """Have two templates, and a conversation on one of them that is worth keeping."""
        super().setUp()
        self.built = self.converse()

    def converse(self, **settings: Any) -> World:
        """Have it answered; `held` is what the slot holds then, `asked` what llama-server was asked for before."""
        world = self.warm_world({"code": CODE, "story": "Tell: <{message}>"}, **settings)
        world.chat(LONG)
        self.held, self.asked = list(world.llama_server.tokens), len(world.llama_server.requests)
        return world

    def ask(self, *messages: str, **more: Any) -> tuple[str, int]:
        """Ask; return how the slot came to hold the template, and how many tokens were reused."""
        call = self.built.chat(*messages, **more)
        return call.headers["x-bioproxy-cache"], call.json()["timings"]["cache_n"]

    def changes(self) -> list[str]:
        """Return by which calls the slot was saved, restored or used since."""
        paths = self.built.llama_server.paths()[self.asked :]
        return [path for path in paths if path in (SAVE, RESTORE, CHAT)]

    def test_another_template(self) -> None:
        """A conversation goes on where it was after a question on another template: it was saved, and is restored."""
        self.assertEqual("restored", self.ask("@story a chair")[0])
        self.assertEqual([SAVE, RESTORE, CHAT], self.changes())
        self.assertEqual(("restored", len(self.held)), self.ask(LONG, "fine", "and then?"))
        self.assertEqual(self.held, self.built.saved(kind=CHAT_FILE))

    def test_anything_else(self) -> None:
        """So too after a request without a template, of whatever kind, and a client's own use of the slot."""
        body = {"messages": [{"role": "user", "content": "hello"}], "filename": "mine.bin"}
        for number, target in enumerate((CHAT, "/v1/embeddings", "/slots/0?action=erase", "/slots/0?action=save")):
            self.built = self.converse(state_dir=self.folder / str(number))
            self.built.send("POST", target, json.dumps(body).encode())
            paths = self.built.llama_server.paths()[self.asked :]
            self.assertEqual([SAVE, target], [path for path in paths if path in (SAVE, target)])
            self.assertEqual(("restored", len(self.held)), self.ask(LONG, "fine", "and then?"), target)

    def test_reuse_not_wanted(self) -> None:
        """So too after a request that wants everything computed anew."""
        self.ask("@code why?", cache_prompt=False)
        self.assertEqual([SAVE, CHAT], self.changes())
        self.assertEqual(("restored", len(self.held)), self.ask(LONG, "fine", "and then?"))

    def test_going_on(self) -> None:
        """While a conversation goes on nothing is saved or restored: it is in the slot."""
        self.assertEqual(("hot", len(self.held)), self.ask(LONG, "fine", "and then?"))
        self.assertEqual([CHAT], self.changes())

    def test_other_question(self) -> None:
        """Another conversation on the same template goes on from the template; the first one can be taken up again."""
        self.assertEqual(("hot", len(PREFIX)), self.ask("@code another"))
        self.assertEqual([SAVE, CHAT], self.changes())
        self.assertEqual(("restored", len(self.held)), self.ask(LONG, "fine", "and then?"))

    def test_edited_question(self) -> None:
        """A conversation whose question was changed is another one: only the template is restored."""
        self.ask("@story a chair")
        self.assertEqual(("restored", len(PREFIX)), self.ask(f"{LONG}!", "fine", "and then?"))

    def test_edited_answer(self) -> None:
        """One whose answer was changed, or is to be given once more, goes on from the question."""
        for messages in ((LONG, "bad", "and then?"), (LONG,)):
            self.built = self.converse(state_dir=self.folder / str(len(messages)))
            self.ask("@story a chair")
            cache, reused = self.ask(*messages)
            question = len(self.held) - len("fine")
            self.assertEqual(("restored", True), (cache, question - 1 <= reused <= question))

    def test_short(self) -> None:
        """A few words are not worth a save: such a conversation goes on from the template."""
        self.built = self.warm_world(state_dir=self.folder / "other")
        self.asked = len(self.built.llama_server.requests)
        self.ask("@code why?")
        self.built.chat("hello")
        self.assertEqual(("restored", len(PREFIX)), self.ask("@code why?", "fine", "and then?"))
        self.assertNotIn(SAVE, self.changes())

    def test_switched_off(self) -> None:
        """With `--no-save-conversations` a conversation goes on from the template."""
        self.built = self.converse(save_conversations=False, state_dir=self.folder / "other")
        self.ask("@story a chair")
        self.assertEqual(("restored", len(PREFIX)), self.ask(LONG, "fine", "and then?"))
        self.assertNotIn(SAVE, self.changes())

    def test_hanging_up_meanwhile(self) -> None:
        """Who hangs up while a conversation is being saved leaves it where it is: in the slot."""
        self.built.llama_server.pause_at = {SAVE}
        call = self.built.chat("hello")
        self.assertEqual((0, 1), (call.status, self.built.llama_server.paused))
        call.hang_up()
        self.built.settle()
        self.assertEqual(([SAVE], None), (self.built.llama_server.gone, self.built.gate.busy))
        self.built.llama_server.pause_at = set()
        self.assertEqual(("hot", len(self.held)), self.ask(LONG, "fine", "and then?"))
        self.assertEqual([], self.flushLoggedErrors())

    def test_cannot_be_saved(self) -> None:
        """A save that fails does no harm to the request that it is done before, and is told in the log."""
        self.built.llama_server.answers = {SAVE: "nonsense"}
        with capturedLogs() as events:
            self.assertEqual(200, self.built.chat("hello").status)
        self.assertIn("conversation not saved", "".join(logged(events)))
        self.assertEqual(("restored", len(PREFIX)), self.ask(LONG, "fine", "and then?"))


class Learning(WorldTest):
    """What the proxy learns from answers."""

    def test_habits(self) -> None:
        """An answered question tells which template was used last and in what shape; another one tells nothing."""
        world = self.warm_world({"code": CODE, "story": "Tell: <{message}>"})
        bare = world.shape_learning.shape("code")
        world.chat("@code why?", "fine", "and?", system="a later turn")
        self.assertEqual((1, bare), (world.shape_learning.turn("code"), world.shape_learning.shape("code")))
        world.chat("@code why?", system="s")
        self.assertEqual(
            [{"role": "system", "content": "s"}], world.shape_learning.shape("code").request("")["messages"][:1]
        )
        world.llama_server.context = 5
        self.assertEqual(400, world.chat("@story too long").status)
        world.llama_server.pause_at = {CHAT}
        world.chat("@story hanging up").hang_up()
        self.assertEqual((1, 0), (world.shape_learning.turn("code"), world.shape_learning.turn("story")))

    def ask(self, world: World) -> tuple[str | None, ...]:
        """Ask after somebody else used the slot; return cache, miss and what `/status` says about llama-server."""
        world.chat("hello")
        call = world.chat("@code why?")
        note = world.operate("GET", "/status").json()["llama"]["note"]
        return call.headers["x-bioproxy-cache"], call.headers.get("x-bioproxy-miss"), note

    def test_doubt(self) -> None:
        """After a restore that did not help nothing is restored before it was looked into, in a warm-up."""
        world = self.warm_world()
        world.llama_server.reuses_files = False
        self.assertEqual(("restored", None, None), self.ask(world))
        self.assertEqual(("cold", "ineffective", None), self.ask(world))
        self.successResultOf(world.start(world.warmer.round))
        self.assertEqual(("restored", None, None), self.ask(world))

    def test_ineffective(self) -> None:
        """Restores that do not help, twice in a row, are given up, and this is told until llama-server starts again."""
        world = self.warm_world()
        world.llama_server.reuses_files = False
        with capturedLogs() as events:
            for _ in range(2):
                self.assertEqual(("restored", None, None), self.ask(world))
                self.successResultOf(world.start(world.warmer.round))
        self.assertEqual(1, len([line for line in logged(events) if "does not help" in line]))
        cache, miss, note = self.ask(world)
        self.assertEqual(("cold", "ineffective"), (cache, miss))
        self.assertIn(f"of {len(PREFIX)} tokens restored llama-server reused 0", note or "")
        self.assertEqual(2, world.sample("slot_restores_total", template="code", result="ineffective"))
        self.assertEqual(2, world.sample("slot_restores_total", template="code", result="ok"))
        world.llama_server.restart()
        world.llama_server.reuses_files = True
        self.successResultOf(world.start(world.watch.look))
        self.assertEqual(("restored", None, None), self.ask(world))

    def test_not_for_ever(self) -> None:
        """One restore that does not help, between others that do, is forgiven."""
        world = self.warm_world()
        for helps in (False, True) * 3:
            world.llama_server.reuses_files = helps
            self.assertEqual(("restored", None, None), self.ask(world))
            self.successResultOf(world.start(world.warmer.round))

    def test_regenerated(self) -> None:
        """Where a model cannot go back, and has no use of a saved conversation, the template's file still is of use."""
        world = self.warm_world()
        world.llama_server.goes_back = False
        for _ in range(3):
            world.chat(LONG)  # its answer is to be given once more
            self.successResultOf(world.start(world.warmer.round))
            world.chat("hello")
        call = world.chat("@code why?")
        self.assertEqual("restored", call.headers["x-bioproxy-cache"])
        self.assertEqual(len(PREFIX), call.json()["timings"]["cache_n"])
        self.assertIsNone(world.reuse_check.trouble)
