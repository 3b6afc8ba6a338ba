"""What a warm-up need not compute again, and what becomes of a model that cannot use it."""

from __future__ import annotations

from bioproxy.prompts.catalogue import Prompt
from bioproxy.prompts.conversation import Conversation
from bioproxy.prompts.digests import digest, prefix_digests
from bioproxy.prompts.prompt_shape import USER_MESSAGE_ONLY, Key
from bioproxy.slot_files.record import CHAT, PART, PREFIX
from bioproxy.warmup.progress import LEAST as LEAST_BATCH
from bioproxy.warmup.resume import LEAST, TRIAL, Resume
from tests.support.world import KEY, SlotTest

CUT = Prompt("code", USER_MESSAGE_ONLY, "Know this", digest("Know this"))
CHATTED = "auto-0123456789ab"
RESTORE = "/slots/0?action=restore"


def text(length: int, kind: int = 0) -> list[int]:
    """Return tokens; those of another kind differ from the first one on."""
    return [1000 * kind + number for number in range(length)]


class HeadStartTest(SlotTest):
    """`Resume`, for ``@code``."""

    def setUp(self) -> None:
        """Begin with nothing saved."""
        super().setUp()
        self.files.discard(("code", PREFIX))
        self.resume = Resume(self.slot, self.built.llama)

    def save(self, kind: str, tokens: list[int], name: str = "code") -> None:
        """Save these tokens, and have others in the slot then."""
        self.evaluate(tokens)
        self.run_now(lambda: self.files.save(name, kind, KEY, len(tokens), prefix_digests(tokens)))
        self.evaluate([1, 2, 3])

    def restore(self, tokens: list[int]) -> int:
        """Restore what there is of these; check that the slot begins with that."""
        found = self.run_now(lambda: self.resume.restore(tokens, KEY))
        self.assertEqual(tokens[:found], self.server.tokens[:found])
        return found

    def warm_up(self, tokens: list[int]) -> None:
        """Do a whole warm-up for another text, which has these tokens."""
        self.run_now(lambda: self.built.warmup.run(CUT, tokens, lambda: True))

    def restores(self) -> int:
        """Return how many files llama-server was asked to read."""
        return self.server.paths().count(RESTORE) - 1  # it was asked once whether it can

    def test_nothing(self) -> None:
        """Without any file there is no head start, and nothing is asked."""
        before = len(self.server.requests)
        self.assertEqual(0, self.restore(text(1000)))
        self.assertEqual([], self.asked_since(before))

    def test_part(self) -> None:
        """An interrupted warm-up goes on where it was, however short it is."""
        for length in (10, 600):
            self.save(PART, text(length))
            self.assertEqual(length, self.restore(text(1000)))
            self.assertEqual(text(length), self.server.tokens)

    def test_part_of_another_text(self) -> None:
        """One that is no beginning of these tokens is of no use: with an early edit in it, or longer than they are."""
        self.save(PART, text(600))
        for tokens in (text(1000, 1), [*text(511), *text(200, 5)], text(512)):
            self.assertEqual(0, self.restore(tokens), len(tokens))
        self.assertEqual(0, self.restores())

    def test_another_prompt(self) -> None:
        """Whose file it is does not matter: what another prompt has in common with this one need not be computed."""
        self.evaluate(text(700))
        self.run_now(lambda: self.files.save("other", PREFIX, KEY, 700, prefix_digests(text(700))))
        self.evaluate([1, 2, 3])
        self.assertEqual(700, self.restore(text(1000)))

    def test_rest_is_a_batch(self) -> None:
        """So much is left to be computed that it is a batch like those of a cold run, where the model can go back."""
        self.save(PREFIX, text(1000))
        self.assertEqual(1000 + 30 - LEAST_BATCH, self.restore(text(1030)))

    def test_older_text(self) -> None:
        """Of an older text all is used that is surely the same, in steps of 64 tokens, or all of it."""
        self.assertEqual((512, 64), (LEAST, TRIAL))
        self.save(PREFIX, text(1000))
        for same, expected in ((1000, 1000), (999, 960), (576, 576), (575, 512), (512, 512), (511, 0)):
            self.assertEqual(expected, self.restore([*text(same), *text(200, 5)]), same)

    def keep(self, tokens: list[int], key: Key = KEY) -> None:
        """Save these tokens as a conversation on a prompt, and have others in the slot then."""
        self.evaluate(tokens)
        self.run_now(lambda: self.files.save(CHATTED, CHAT, key, len(tokens), conversation=Conversation(2, "x")))
        self.evaluate([1, 2, 3])

    def test_conversation(self) -> None:
        """Of a conversation on the prompt all of the prompt is used but a batch; behind that the slot is cut off."""
        self.keep(text(1100))
        before = len(self.server.requests)
        self.assertEqual(1000 - LEAST_BATCH, self.restore(text(1000)))
        self.assertEqual([RESTORE, "/completion", RESTORE, "/completion"], self.asked_since(before))
        self.assertEqual(1000 - LEAST_BATCH + 1, len(self.server.tokens))
        self.warm_up(text(1000))
        self.assertEqual(text(1000), self.server.tokens)

    def test_conversation_of_no_use(self) -> None:
        """One on another prompt is not read, nor any for a short prompt, nor where the model cannot go back."""
        self.keep(text(1100), Key("another", KEY.shape))
        self.assertEqual(0, self.restore(text(1000)))
        self.keep(text(1100))
        self.assertEqual(0, self.restore(text(LEAST + LEAST_BATCH - 1)))
        self.assertEqual(0, self.restores())
        self.server.goes_back = False
        self.assertEqual(0, self.restore(text(1000)))
        self.assertEqual(text(64), self.server.tokens)

    def test_tried_out(self) -> None:
        """Whether the model can go back to where the texts part is tried on a few tokens, before it is relied on."""
        self.save(PREFIX, text(1000))
        before = len(self.server.requests)
        self.assertEqual(768, self.restore([*text(780), *text(200, 5)]))
        self.assertEqual([RESTORE, "/completion", RESTORE], self.asked_since(before))
        self.assertEqual(text(64), self.server.requests[-2][1]["prompt"])
        self.assertEqual(text(1000), self.server.tokens)

    def test_cannot_go_back(self) -> None:
        """A model that cannot is not given the older text; that was tried on no more than a few tokens."""
        self.save(PREFIX, text(1000))
        self.server.goes_back = False
        self.assertEqual(0, self.restore([*text(800), *text(200, 5)]))
        self.assertEqual(text(64), self.server.tokens)

    def test_tried_once(self) -> None:
        """Of many files that begin in the same way one is tried, whatever came of a conversation before."""
        for name in ("code", "one", "two"):
            self.save(PREFIX, text(1000), name)
        self.keep(text(1100))
        self.server.goes_back = False
        before = len(self.server.requests)
        self.assertEqual(0, self.restore([*text(800), *text(200, 5)]))
        self.assertEqual(2 * [RESTORE, "/completion"], self.asked_since(before))

    def test_known_not_to_go_back(self) -> None:
        """Where that is known already, nothing is tried; an interrupted warm-up still helps."""
        self.save(PREFIX, text(1000))
        self.built.reuse_check.went_back(1000, 0)
        self.assertEqual(0, self.restore([*text(800), *text(200, 5)]))
        self.assertEqual(0, self.restores())
        self.save(PART, text(100))
        self.assertEqual(100, self.restore([*text(800), *text(200, 5)]))

    def test_falls_back(self) -> None:
        """Where the older text is found to be of no use, the interrupted warm-up is taken."""
        new = [*text(800), *text(200, 5)]
        self.save(PREFIX, text(1000))
        self.save(PART, new[:300])
        self.server.goes_back = False
        self.assertEqual(300, self.restore(new))
        self.assertEqual(new[:300], self.server.tokens)

    def test_longest(self) -> None:
        """The longer beginning is taken, and the interrupted warm-up if both are as long: it need not go back."""
        new = [*text(800), *text(200, 5)]
        self.save(PREFIX, text(1000))
        for length, expected in ((700, text(1000)), (768, new[:768]), (900, new[:900])):
            self.save(PART, new[:length])
            self.assertEqual(max(768, length), self.restore(new))
            self.assertEqual(expected, self.server.tokens)

    def test_other_model(self) -> None:
        """Files of another model are none."""
        self.save(PREFIX, text(1000))
        self.save(PART, text(100))
        self.built.identity.current = None
        self.assertEqual((0, 0), (self.restore(text(1000)), self.restores()))

    def test_of_no_use(self) -> None:
        """Nothing is restored where llama-server keeps no files, or where restoring them does not help."""
        self.save(PART, text(600))
        self.files.enabled = False
        self.assertEqual(0, self.restore(text(1000)))
        self.files.enabled = True
        self.built.reuse_check.did_not_help(1000, 0)
        self.built.reuse_check.did_not_help(1000, 0)
        self.assertEqual((0, 0), (self.restore(text(1000)), self.restores()))

    def test_gone(self) -> None:
        """Files that are gone are no head start, and forgotten."""
        self.save(PREFIX, text(1000))
        self.save(PART, text(600))
        self.server.files = {}
        self.assertEqual(0, self.restore([*text(800), *text(200, 5)]))
        self.assertEqual([], list(self.built.snapshots.items()))

    def test_slot_unknown(self) -> None:
        """What the slot was believed to hold is forgotten once something else was restored."""
        self.save(PART, text(600))
        self.run_now(lambda: self.slot.remember("code", KEY))
        self.assertEqual(600, self.restore(text(1000)))
        self.assertIsNone(self.run_now(self.built.content.confirm))

    def test_cut_short(self) -> None:
        """A text that was cut at its end is warmed up from the older file: just its tokens are in the slot then."""
        for new in (text(600), text(512), text(999)):
            self.save(PREFIX, text(1000))
            self.warm_up(new)
            self.assertEqual(new, self.server.tokens)
            self.assertEqual(new, self.built.saved())
            self.files.discard(("code", PREFIX))
