"""What using the slot does before and after, whatever happens in between."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from twisted.internet.defer import CancelledError, Deferred

from bioproxy.gate.turn import Turn
from bioproxy.prompts.conversation import ConversationChain
from bioproxy.prompts.digests import digest, prefix_digests
from bioproxy.prompts.prompt_shape import USER_MESSAGE_ONLY, Key
from bioproxy.slot.content import IDLE_POLL
from bioproxy.slot.known_content import NO_CONVERSATION, ProbableContent
from bioproxy.slot.preparer import Prepared
from bioproxy.slot_files.record import CHAT, PART
from bioproxy.slot_files.save_failures import SaveFailed
from tests.support.world import KEY, PREFIX, SlotTest

OTHER = USER_MESSAGE_ONLY.key(digest("something else "))
TURNS = ConversationChain(("question",))
SAVE = "/slots/0?action=save"
ERASE = "/slots/0?action=erase"


class UserTest(SlotTest):
    """A user inside the gate who uses the slot until the test lets go."""

    def setUp(self) -> None:
        """Build it."""
        super().setUp()
        self.body: Deferred[None] = Deferred()
        self.prepared: Prepared | None = None

    async def ask(
        self,
        turn: Turn,
        reused: int | None,
        answered: bool,
        reuses: bool,
        continues: bool,
        pinned: bool,
        adapters: bool,
    ) -> None:
        """Use the slot for ``@code``."""
        async with turn:
            use = self.slot.use_for_prompt(
                turn,
                "code",
                KEY,
                TURNS,
                reuses=reuses,
                adapters=adapters,
                pinned=pinned,
                llama_continues=continues,
            )
            async with use as used:
                self.prepared = used.prepared
                await self.body
                if answered:
                    used.answered(reused)

    def asking(
        self,
        reused: int | None = None,
        *,
        answered: bool = True,
        reuses: bool = True,
        continues: bool = False,
        pinned: bool = True,
        adapters: bool = False,
    ) -> Deferred[None]:
        """Begin to ask; the slot is prepared, and the request is on its way."""
        self.body = Deferred()
        turn = self.built.gate.user()
        return self.built.start(lambda: self.ask(turn, reused, answered, reuses, continues, pinned, adapters))

    def go_on(self) -> None:
        """Let the body end, and what it leads to happen."""
        self.body.callback(None)
        self.built.settle()


class Templates(UserTest):
    """A user's request on a template."""

    def test_answered(self) -> None:
        """In the body the slot is unknown but for what it probably gets; after the answer it is known."""
        asking = self.asking()
        self.assertEqual(Prepared("hot"), self.prepared)
        content = self.built.content
        self.assertEqual((None, ProbableContent(KEY, TURNS, "code")), (content.known, content.probable))
        self.assertTrue(content.left_by_user)
        self.go_on()
        self.successResultOf(asking)
        assert content.known is not None
        self.assertEqual((KEY, TURNS.all_messages), (content.known.key, content.known.conversation))

    def test_not_answered(self) -> None:
        """A body that fails, or does not say that all went well, leaves the slot unknown."""
        for error in (None, ZeroDivisionError()):
            asking = self.asking(answered=False)
            self.go_on() if error is None else self.body.errback(error)
            self.built.settle()
            self.assertEqual(error, None if error is None else self.failureResultOf(asking).value)
            self.assertFalse(self.slot.holds(KEY))
            self.assertIsNotNone(self.built.content.probable)
            self.assertIsNone(self.built.gate.busy)

    def test_cancelled(self) -> None:
        """A client that hangs up frees the gate at once and leaves the slot unknown."""
        asking = self.asking()
        before = len(self.server.requests)
        asking.cancel()
        self.failureResultOf(asking, CancelledError)
        self.assertEqual((None, False), (self.built.gate.busy, self.slot.holds(KEY)))
        self.assertEqual([], self.asked_since(before))

    def test_cancelled_while_llama_continues(self) -> None:
        """Where llama-server goes on by itself, the gate stays closed until the slot is idle."""
        asking = self.asking(continues=True)
        self.server.busy = True
        asking.cancel()
        self.built.settle()
        self.failureResultOf(asking, CancelledError)
        self.assertEqual("user", self.built.gate.busy)
        self.server.busy = False
        self.built.advance(IDLE_POLL)
        self.assertEqual((None, False), (self.built.gate.busy, self.slot.holds(KEY)))

    def test_failed_while_llama_continues(self) -> None:
        """After an error of llama-server's there is nothing to wait for."""
        asking = self.asking(continues=True)
        self.server.busy = True
        self.body.errback(ZeroDivisionError())
        self.built.settle()
        self.failureResultOf(asking, ZeroDivisionError)
        self.assertIsNone(self.built.gate.busy)

    def test_noted_whoever_hangs_up(self) -> None:
        """What the slot holds is written down before the next user comes in, and no client can break that off."""
        asking = self.asking()
        self.server.pause_at = {"/slots"}
        self.go_on()
        self.successResultOf(asking)  # the client's own coroutine is over
        self.assertEqual(("user", False), (self.built.gate.busy, self.slot.holds(KEY)))
        self.server.go_on()
        self.built.settle()
        self.assertEqual((None, True), (self.built.gate.busy, self.slot.holds(KEY)))

    def test_judged(self) -> None:
        """How many tokens were reused is compared with what was promised, where llama-server tells."""
        for reused, doubted in ((None, False), (len(PREFIX), False), (0, True)):
            self.built.content.forget()
            self.asking(reused)
            self.assertEqual("restored", self.prepared and self.prepared.cache)
            self.go_on()
            self.assertEqual(doubted, self.slot.facts.is_doubted("code"), reused)

    def test_not_judged_by_another_slot(self) -> None:
        """A request that names no slot and ran in another one says nothing about what was restored into slot 0."""
        self.built.content.forget()
        self.asking(0, pinned=False)
        self.assertEqual("restored", self.prepared and self.prepared.cache)
        self.go_on()
        self.assertEqual((False, True), (self.slot.facts.is_doubted("code"), self.slot.holds(KEY)))

    def test_judged_in_slot_0(self) -> None:
        """A request that names no slot is judged if it has used slot 0."""
        self.built.content.forget()
        self.asking(0, pinned=False)
        self.evaluate([1, 2, 3])
        self.go_on()
        self.assertTrue(self.slot.facts.is_doubted("code"))

    def test_reuses_nothing(self) -> None:
        """A request that must not reuse anything has the conversation in the slot saved, and leaves nothing of use."""
        held = self.converse("q")
        self.asking(answered=False, reuses=False)
        self.assertEqual(Prepared("cold", "ineffective"), self.prepared)
        self.assertEqual(held, self.built.saved("code", CHAT))
        self.go_on()
        self.assertEqual((None, None), (self.built.content.known, self.built.content.probable))


class Adapters(UserTest):
    """A request with LoRA adapters of its own leaves keys and values of another model for the same tokens."""

    def test_erased(self) -> None:
        """What it left is erased before the next use, once; its own conversation may go on with it."""
        self.leave(NO_CONVERSATION)
        self.assertEqual(1, self.erased_by(lambda: self.asking(reuses=False)))
        self.leave(TURNS)
        self.assertEqual(0, self.erased_by(lambda: self.asking(reuses=False, adapters=True)))
        self.assertEqual(TURNS, self.built.content.foreign)
        self.assertEqual(1, self.erased_by(self.asking))
        self.assertEqual(0, self.erased_by(self.asking))

    def test_hung_up(self) -> None:
        """A client that hangs up leaves it to be erased, and so does one that hangs up while it is erased."""
        self.built.content.foreign = None
        self.asking(reuses=False, adapters=True).addErrback(lambda failure: failure.trap(CancelledError)).cancel()
        self.built.settle()
        self.server.pause_at = {ERASE}
        asking = self.asking()
        asking.cancel()
        self.failureResultOf(asking, CancelledError)
        self.server.go_on()
        self.built.settle()
        self.assertEqual((TURNS, None), (self.built.content.foreign, self.built.content.known))
        self.assertEqual(1, self.erased_by(self.asking))

    def test_refused(self) -> None:
        """A llama-server that has no slot folder is asked once; one that does not answer, again."""
        self.server.files = None
        self.leave(NO_CONVERSATION)
        self.assertEqual(1, self.erased_by(self.asking))
        self.assertIsNone(self.built.content.foreign)
        self.server.misbehaves = {ERASE: "cut"}
        self.leave(TURNS)
        self.assertEqual(1, self.erased_by(self.asking))
        self.assertEqual(TURNS, self.built.content.foreign)

    def test_otherwise(self) -> None:
        """It is erased before a request that bioproxy does not read, and stays for a client that saves the slot."""
        for written, times in (("", 1), ("mine.bin", 0), (None, 0)):
            self.leave(TURNS)
            self.assertEqual(times, self.erased_by(lambda written=written: self.otherwise(written)), written)  # type: ignore[misc]

    def test_switched(self) -> None:
        """After a switch nothing that users left is saved until llama-server restarts."""
        self.slot.model_changed()
        self.slot.model_changed()
        self.run_now(self.built.identity.find_out)
        held = self.converse("q")
        self.run_now(lambda: self.built.saver.save_if_due(displaced=True))
        self.assertNotEqual(held, self.built.saved("code", CHAT))
        self.slot.llama_restarted()
        self.assertFalse(self.built.content.mixed)

    def otherwise(self, written: str | None) -> Deferred[None]:
        """Begin a request that is not read."""
        self.body = Deferred()
        turn = self.built.gate.user()

        async def use() -> None:
            async with turn, self.slot.use_otherwise(turn, may_write=written):
                await self.body

        return self.built.start(use)

    def leave(self, turns: ConversationChain) -> None:
        """Have such a request of this conversation leave the slot."""
        self.built.content.foreign = turns

    def erased_by(self, asking: Callable[[], Deferred[None]]) -> int:
        """Return how often the slot was erased for a request."""
        before = len(self.server.requests)
        asking()
        self.go_on()
        return self.asked_since(before).count(ERASE)


class Unpinned(UserTest):
    """A chat that names no slot: on a llama-server with several slots it may run in another one."""

    async def chat(self, turn: Turn, key: Key) -> None:
        """Use a slot for a chat."""
        async with turn, self.slot.use_for_prompt(turn, "", key, TURNS, pinned=False) as used:
            await self.body
            used.answered(0)

    def answer(self, key: Key, *, in_slot_0: bool) -> None:
        """Have a chat answered in slot 0 or another one."""
        self.body = Deferred()
        chatting = self.built.start(lambda: self.chat(self.built.gate.user(), key))
        if in_slot_0:
            self.evaluate([1, 2, 3])
        self.go_on()
        self.successResultOf(chatting)

    def test_elsewhere(self) -> None:
        """What slot 0 was left with is still known if the chat did not use it."""
        before = self.built.content.known
        assert before is not None
        self.answer(KEY, in_slot_0=False)
        self.assertEqual(before, self.built.content.known)
        self.answer(KEY, in_slot_0=True)
        assert self.built.content.known is not None
        self.assertEqual(TURNS.all_messages, self.built.content.known.conversation)

    def test_unknown_before(self) -> None:
        """A slot that was unknown and not used does not count as holding the chat."""
        self.built.content.forget()
        self.answer(OTHER, in_slot_0=False)
        self.assertFalse(self.slot.holds(KEY) or self.slot.holds(OTHER))

    def test_untold(self) -> None:
        """Where llama-server did not tell before the chat, or does not at all, the chat counts as being in slot 0."""
        for answers, shown in (({"/slots": "nonsense"}, True), ({}, False)):
            self.built.content.forget()
            self.server.answers, self.server.slots_shown = answers, shown
            self.assertIsNone(self.run_now(self.built.content.as_it_is))
        self.server.slots_shown = True
        self.answer(OTHER, in_slot_0=True)
        self.assertTrue(self.slot.holds(OTHER))


class Others(UserTest):
    """Any other request of a user."""

    async def call(self, may_write: str | None) -> None:
        """Use the slot for something."""
        turn = self.built.gate.user()
        async with turn, self.slot.use_otherwise(turn, may_write=may_write):
            await self.body

    def test_kept_and_forgotten(self) -> None:
        """The conversation in the slot is saved before, and the slot is unknown from then on."""
        held = self.converse("q")
        using = self.built.start(lambda: self.call(""))
        self.assertEqual(held, self.built.saved("code", CHAT))
        self.assertEqual((None, None), (self.built.content.known, self.built.content.probable))
        self.go_on()
        self.successResultOf(using)
        self.assertIsNone(self.built.content.known)

    def test_written_files(self) -> None:
        """A file that the call may write is forgotten before the call is sent, and no other one."""
        for may_write, stays in (("", True), ("mine.bin", True), ("code.bin", False)):
            self.body = Deferred()
            self.built.start(partial(self.call, may_write))
            self.assertEqual(stays, self.slot.facts.saved("code", KEY) is not None, may_write)
            self.go_on()


class Warmups(SlotTest):
    """A warm-up, here one for another text of ``@code``."""

    TOKENS = (1, *map(ord, "<user>something else "))

    async def warm_up(self, complete: bool, part: int = 0) -> None:
        """Use the slot for a warm-up, in one piece and perhaps a saved part before."""
        async with self.slot.use_for_warmup(self.built.gate, "code", OTHER, self.TOKENS) as use:
            self.seen = (use.already_saved, use.in_slot)
            if part:
                await use.evaluate(part)
                await use.save_beginning(part)
            await use.evaluate(len(self.TOKENS))
            if complete:
                use.completed()

    def test_completed(self) -> None:
        """A warm-up that says so has the slot known and saved when it leaves, and then there is nothing more to do."""
        held = self.converse("q")
        self.run_now(lambda: self.warm_up(complete=True))
        self.assertEqual(((False, False), True), (self.seen, self.slot.holds(OTHER)))
        self.assertEqual(held, self.built.saved("code", CHAT))
        self.assertEqual(list(self.TOKENS), self.built.saved("code"))
        self.assertFalse(self.built.content.left_by_user)
        self.run_now(lambda: self.warm_up(complete=False))
        self.assertTrue(self.seen[0])

    def test_not_completed(self) -> None:
        """One that does not leaves the slot unknown, the file as it was, and its beginning saved."""
        self.run_now(lambda: self.warm_up(complete=False, part=9))
        self.assertFalse(self.slot.holds(OTHER) or self.slot.holds(KEY))
        self.assertEqual(PREFIX, self.built.saved("code"))
        part = self.built.snapshots.get("code", PART)
        assert part is not None
        self.assertEqual((9, prefix_digests(self.TOKENS[:9])), (part.tokens, part.marks))

    def test_cancelled(self) -> None:
        """One that is cancelled while llama-server computes leaves the slot unknown."""
        self.server.pause_at = {"/completion"}
        warming = self.built.start(lambda: self.warm_up(complete=True))
        warming.cancel()
        self.built.settle()
        self.failureResultOf(warming, CancelledError)
        self.assertFalse(self.slot.holds(OTHER) or self.slot.holds(KEY))

    def test_cannot_be_saved(self) -> None:
        """A save that fails is an error of the warm-up; the slot has the template all the same."""
        self.server.answers = {SAVE: "nonsense"}
        self.failureResultOf(self.built.start(lambda: self.warm_up(complete=True)), SaveFailed)
        self.assertTrue(self.slot.holds(OTHER))
