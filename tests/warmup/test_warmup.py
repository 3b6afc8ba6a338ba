"""One warm-up: pieces, parts, and what is not computed again."""

from __future__ import annotations

from bioproxy.slot_files.record import CHAT, PART
from bioproxy.warmup.progress import LEAST, exact_end
from tests.support.fakes import tokens
from tests.support.world import CODE, PREFIX, WarmTest

SAVE = "/slots/0?action=save"
LINES = "".join(f"Line {number}. " for number in range(400))
"""A long text."""


def warmed(text: str) -> list[int]:
    """Return the tokens that a warm-up of a template with this text processes."""
    found = tokens(f"<user>{text}")
    return found[: exact_end(len(found))]


def again(end: int) -> list[int]:
    """Return where pieces end if the last one is done again, as fewer than 64 tokens were left for it."""
    return [end, end - LEAST + 1, end]


LENGTH = len(warmed(LINES))
ENDS = [128, *range(512, LENGTH, 512), LENGTH]
"""Where the pieces of its warm-up end at half a millisecond for each token: at multiples of 512, once that is known."""


class Pieces(WarmTest):
    """How the tokens are sent."""

    def test_exact_prefix(self) -> None:
        """Exactly the prefix tokens are evaluated, and saved under the template's name."""
        self.use()
        self.rounds()
        self.assertEqual({"code.bin": PREFIX}, self.server.files)
        self.assertEqual(PREFIX, self.server.tokens)
        self.assertEqual((1, 1), (self.ended("done"), self.built.sample("warmup_seconds_count", template="code")))

    def test_in_pieces(self) -> None:
        """No piece has more tokens than `warmup_chunk`, and together they cost no more than one."""
        self.use(warmup_chunk=10)
        self.rounds()
        self.assertEqual([10, 20, len(PREFIX)], self.pieces())
        self.assertEqual({"code.bin": PREFIX}, self.server.files)

    def test_from_nothing(self) -> None:
        """What a short chat has left in the slot is not gone on with: its numbers are not those of a cold run."""
        self.use({"code": f"{LINES}<{{message}}>"}, warmup=False)
        self.built.chat("hello")
        self.assertEqual(self.server.tokens[:6], warmed(LINES)[:6])
        self.built.operate("POST", "/templates/code/warm")
        self.rounds()
        bodies = [body for path, body in self.server.requests if path == "/completion" and not body["n_predict"]]
        self.assertEqual([False, *[True] * (len(ENDS) - 1)], [body["cache_prompt"] for body in bodies])

    def test_speed(self) -> None:
        """Once the speed is known a piece takes about half a second, with 64, 128, 256 or 512 tokens."""
        for ms, expected in ((0.1, [128, 512, 1024, 1536]), (1.5, [128, 256, 512]), (50.0, [128, 192, 256])):
            self.use({"code": "x" * 3000 + "<{message}>"}, warmup_chunk=2048, state_dir=self.folder / str(ms))
            self.server.ms_per_token = ms
            self.rounds()
            self.assertEqual(expected, self.pieces()[: len(expected)])

    def test_slow_moment(self) -> None:
        """After a piece that took long the next ones stay small: what made it slow may come back, and a user waits."""
        self.use({"code": f"{LINES}<{{message}}>"})
        self.built.speed.measured(512, 51.2)
        self.server.pause_at = {"/completion"}
        warming = self.begin()
        self.go_on()  # first comes the fingerprint
        for ms in (4.0, 0.1, 0.1, 0.1, 0.1, 0.1):
            self.server.ms_per_token = ms
            self.go_on()
        self.server.pause_at = set()
        self.go_on()
        self.successResultOf(warming)
        self.assertEqual([512, 576, 640, 704, 768, 1024, 1536], self.pieces()[:7])

    def test_not_in_pieces(self) -> None:
        """What a question has left in the slot is not cut down piece by piece: only the last batch is made anew."""
        self.use({"code": f"{LINES}<{{message}}>"})
        self.built.chat("@code why?")
        self.rounds()
        # Cut back by a batch, with one token that does not belong there; then exactly the prompt.
        self.assertEqual(([LENGTH - LEAST + 1, LENGTH], ["code.bin"]), (self.pieces(), self.slot_calls("save")))
        self.assertEqual(warmed(LINES), self.built.saved())

    def test_old_text_is_dropped(self) -> None:
        """Once the text has changed, no further piece of the old one is evaluated, and none of it is saved."""
        self.use({"code": "x" * 300 + "<{message}>"}, warmup_chunk=64)
        self.server.pause_at = {"/completion"}
        going_on = self.begin()
        self.go_on()  # first comes the fingerprint
        self.assertEqual([64], self.pieces())
        self.edit(CODE)
        self.server.pause_at = set()
        self.go_on()
        self.successResultOf(going_on)
        self.assertEqual(([64], {}), (self.pieces(), self.server.files))

    def test_progress(self) -> None:
        """How far it is can be told after each piece, and that it is at work; another text begins at nought."""
        self.use(warmup_chunk=10)
        self.successResultOf(self.built.start(self.built.identity.find_out))
        self.server.pause_at = {"/completion"}
        warming = self.begin()
        seen = []
        for _ in range(3):
            seen.append((self.built.warmup.current, round(self.built.readiness.progress("code") * len(PREFIX))))
            self.go_on()
        self.assertEqual([("code", 0), ("code", 10), ("code", 20)], seen)
        self.successResultOf(warming)
        self.assertEqual((None, 1.0), (self.built.warmup.current, self.built.readiness.progress("code")))
        self.edit("x <{message}>")
        self.assertEqual(0.0, self.built.readiness.progress("code"))

    def test_same_tokens(self) -> None:
        """Where another shape makes the same tokens, nothing is evaluated or saved again, and the file serves it."""
        self.use()
        self.rounds()
        self.built.chat("@code why?", parallel_tool_calls=True)  # this chat template knows nothing of that
        before = len(self.server.requests)
        self.built.chat("hello")
        self.rounds()
        self.assertEqual(([], []), (self.pieces(before), self.slot_calls("save", before)))
        self.assertEqual("warm", self.state())
        self.built.chat("hello")
        self.assertEqual(("restored", len(PREFIX)), self.ask("@code why?", parallel_tool_calls=True))


class LongTest(WarmTest):
    """A template that is long enough for part files."""

    def setUp(self) -> None:
        """Build it; the model is known."""
        super().setUp()
        self.use({"code": f"{LINES}<{{message}}>"})
        self.find_out()

    def find_out(self) -> None:
        """Let the fingerprint be taken, so that what is paused later are pieces."""
        self.successResultOf(self.built.start(self.built.identity.find_out))

    def interrupt_after(self, pieces: int) -> None:
        """Let a user come after so many pieces."""
        self.server.pause_at = {"/completion"}
        warming = self.begin()
        for _ in range(pieces):
            self.go_on()
        self.server.pause_at = set()
        self.assertEqual(200, self.built.chat("hello").status)
        self.successResultOf(warming)

    def warm(self) -> tuple[list[str], list[int]]:
        """Let a round pass; return what was restored and where the pieces ended."""
        before = len(self.server.requests)
        self.rounds()
        return self.slot_calls("restore", before), self.pieces(before)

    def assert_warm(self, text: str) -> None:
        """Check that a text's prefix tokens are saved, and nothing else of it is recorded."""
        self.assertEqual(("warm", ""), (self.state(), self.error()))
        self.assertEqual(warmed(text), self.built.saved())
        self.assertIsNone(self.built.saved(kind=PART))


class Parts(LongTest):
    """The beginning of a warm-up, kept in case that a user comes."""

    def test_when(self) -> None:
        """The beginning is saved when it took half a second to compute, and 20 times as long as to save."""
        for seconds, expected in ((0.0, [1024, 2048, 3072]), (0.00002, [1024]), (0.00003, [])):
            self.use({"code": f"{LINES}<{{message}}>"}, state_dir=self.folder / str(seconds))
            self.built.speed.saved(1, 10, seconds)
            self.server.pause_at = {SAVE}
            warming = self.begin()
            saved = []
            while self.slot_calls("save")[-1] == "code.part.bin":
                saved.append(len(self.server.tokens))
                self.built.advance(seconds * saved[-1])
                self.go_on()
            self.go_on()
            self.successResultOf(warming)
            self.assertEqual(expected, saved, seconds)
            self.assertEqual(ENDS, self.pieces())

    def test_resumed(self) -> None:
        """After a user came the warm-up goes on from the part, not from the beginning."""
        self.interrupt_after(3)
        self.assertEqual(tokens(f"<user>{LINES}")[:1024], self.built.saved(kind=PART))
        self.assertEqual((["code.part.bin"], ENDS[3:]), self.warm())
        self.assert_warm(LINES)

    def test_again_and_again(self) -> None:
        """However often users come, a warm-up gets on: what they have made it lose counts, too."""
        saved, progress = [], []
        for _ in range(7):
            self.interrupt_after(1)
            saved.append(len(self.built.saved(kind=PART) or ()))
            progress.append(round(self.built.readiness.progress("code") * LENGTH))
        self.assertEqual([0, 0, 512, 512, 1024, 1024, 1536], saved)
        self.assertEqual([128, 512, 512, 1024, 1024, 1536, 1536], progress)
        self.warm()
        self.assert_warm(LINES)

    def test_progress(self) -> None:
        """What was computed behind the part is lost when a user comes, and that shows."""
        progress = []
        for pieces in (4, 0):
            self.interrupt_after(pieces)
            progress.append(round(self.built.readiness.progress("code") * LENGTH))
        self.assertEqual([1536, 1024], progress)

    def test_too_early(self) -> None:
        """What was computed before the first part is lost."""
        self.interrupt_after(2)
        self.assertIsNone(self.built.saved(kind=PART))
        self.assertEqual([], self.slot_calls("save"))
        self.assertEqual([], self.warm()[0])
        self.assert_warm(LINES)

    def test_file_is_removed(self) -> None:
        """When the warm-up is over the part is removed, where the folder can be seen; the template is in one file."""
        folder = self.folder / "slots"
        folder.mkdir(0o700)
        self.use({"code": f"{LINES}<{{message}}>"}, slot_save_path=folder, state_dir=self.folder / "other")
        self.find_out()
        self.interrupt_after(3)
        self.assertEqual(["code.part.bin"], [file.name for file in folder.iterdir()])
        self.rounds()
        self.assertEqual(["code.bin"], [file.name for file in folder.iterdir()])

    def test_failed(self) -> None:
        """A part that cannot be saved does no harm: the warm-up goes on, and the next part is tried."""
        self.server.pause_at = {SAVE}
        warming = self.begin()
        self.server.answers = {SAVE: "nonsense"}
        self.go_on()
        self.server.answers = {}
        self.assertEqual(["code.part.bin"] * 2, self.slot_calls("save"))
        self.server.pause_at = set()
        self.go_on()
        self.successResultOf(warming)
        self.assertEqual(ENDS, self.pieces())
        self.assert_warm(LINES)
        self.assertEqual((1, 0), (self.ended("done"), self.ended("failed")))

    def test_without_files(self) -> None:
        """Where llama-server keeps no slot files, no part is saved."""
        self.use({"code": f"{LINES}<{{message}}>"}, files=False, state_dir=self.folder / "other")
        self.rounds()
        self.assertEqual((ENDS, []), (self.pieces(), self.slot_calls("save")))

    def test_edited_behind(self) -> None:
        """After an edit behind the part, it is used all the same."""
        self.interrupt_after(3)
        text = f"{LINES[:1300]} And so on."
        self.edit(f"{text}<{{message}}>")
        self.assertEqual((["code.part.bin"], [len(warmed(text))]), self.warm())
        self.assert_warm(text)

    def test_edited_before(self) -> None:
        """After an edit in what the part has, what stands before that is not computed; the part is gone in the end."""
        early, late, cut = f"X{LINES[1:]}", f"{LINES[:900]}X{LINES[901:]}", LINES[:1000]
        # The marks tell of 896 of the 907 tokens before the late edit.  The cut one leaves a whole batch to compute.
        begins = {early: (0, [512]), late: (2, [64, 1024]), cut: (2, [64, *again(944)])}
        for number, (text, (restores, first)) in enumerate(begins.items()):
            self.use({"code": f"{LINES}<{{message}}>"}, state_dir=self.folder / str(number))
            self.find_out()
            self.interrupt_after(3)
            self.assertIsNotNone(self.built.saved(kind=PART))
            self.edit(f"{text}<{{message}}>")
            self.assertEqual(0.0, self.built.readiness.progress("code"))
            length = len(warmed(text))
            expected = [*first, *range(first[-1] + 512, length, 512), *([length] if length > first[-1] else [])]
            self.assertEqual((["code.part.bin"] * restores, expected), self.warm())
            self.assert_warm(text)

    def test_another_model(self) -> None:
        """A part is used by the same model after a restart of llama-server, and not by another one."""
        self.interrupt_after(3)
        self.server.restart()
        self.look()
        self.assertEqual((["code.part.bin"], ENDS[3:]), self.warm())
        self.edit(f"X{LINES}<{{message}}>")
        self.interrupt_after(3)
        self.server.restart("<__media_three__>")
        self.server.odds = [(1, -1.0)]
        self.look()
        self.assertEqual([], self.warm()[0])
        self.assert_warm(f"X{LINES}")

    def test_of_no_use(self) -> None:
        """Where nothing is reused of a part, pieces double until that is made up for, and the text is warm anyway."""
        self.interrupt_after(3)
        self.server.reuses_files = False
        self.assertEqual((["code.part.bin"], [1536, 3072, 3584, LENGTH]), self.warm())
        self.assert_warm(LINES)


class OlderText(LongTest):
    """After an edit the file of the older text has the beginning of the new one."""

    def setUp(self) -> None:
        """Have the template warm."""
        super().setUp()
        self.rounds()

    def edited(self, text: str) -> tuple[list[str], list[int]]:
        """Edit the template; return what was restored and where the pieces ended until it was warm."""
        self.edit(f"{text}<{{message}}>")
        self.built.chat("hello")
        warmed = self.warm()
        self.assert_warm(text)
        return warmed

    def test_end(self) -> None:
        """After an edit at the end only the end is computed, once it was tried whether the model can go back."""
        text = f"{LINES[:2000]}."
        # The texts have 2,007 tokens in common, and the marks tell of 1,792 of them.
        self.assertEqual((["code.bin"] * 2, [64, *again(len(warmed(text)))]), self.edited(text))

    def test_cut(self) -> None:
        """So too where the end was only cut off; the slot is cut down to it."""
        text = LINES[:2041]
        self.assertEqual((["code.bin"] * 2, [64, *again(2048)]), self.edited(text))

    def test_longer(self) -> None:
        """So too where something was added."""
        text = f"{LINES}More. "
        self.assertEqual((["code.bin"] * 2, [64, *again(len(warmed(text)))]), self.edited(text))

    def test_beginning(self) -> None:
        """After an edit at the beginning nothing is restored."""
        text = f"X{LINES}"
        self.assertEqual(([], [*range(512, LENGTH, 512), LENGTH + 1]), self.edited(text))

    def test_short(self) -> None:
        """For fewer than 512 tokens it is not worth the while."""
        text = f"{LINES[:500]}."
        self.assertEqual(([], [445]), self.edited(text))

    def test_cannot_go_back(self) -> None:
        """A model that cannot go back computes everything, in pieces, so that no user has to wait for it."""
        self.server.goes_back = False
        text = f"{LINES[:2000]}."
        self.assertEqual((["code.bin"], [64, 512, 1024, 1536, 1945]), self.edited(text))

    def test_known_not_to_go_back(self) -> None:
        """Once it is known that a model cannot go back, that is not tried."""
        self.built.reuse_check.went_back(100, 0)
        self.assertEqual(([], [512, 1024, 1536, 1945]), self.edited(f"{LINES[:2000]}."))

    def test_part_or_older(self) -> None:
        """Of a part and an older text that one is used of which more is right."""
        text = f"{LINES[:600]}{'y' * 3000}"
        self.edit(f"{text}<{{message}}>")
        self.interrupt_after(4)  # the trial is the first
        self.assertEqual(tokens(f"<user>{text}")[:2048], self.built.saved(kind=PART))
        # What is right of the part, all of 2,048 tokens, is more than 512 of the older text.
        restored, [first, *_] = self.warm()
        self.assertEqual((["code.part.bin"], 2560), (restored, first))
        self.assert_warm(text)

    def test_older_instead_of_part(self) -> None:
        """A part of which nothing is right any more is not used, the older text is."""
        self.edit(f"X{LINES}<{{message}}>")
        self.interrupt_after(3)
        self.assertIsNotNone(self.built.saved(kind=PART))
        self.assertEqual(["code.bin"] * 2, self.edited(f"{LINES}More. ")[0])


class Hurried(WarmTest):
    """Users who come so often that no piece gets done."""

    def test_smaller_pieces(self) -> None:
        """Pieces get smaller until one is done in time; then a long template gets warm all the same."""
        self.use({"code": "x" * 2000 + "<{message}>"})
        self.built.speed.measured(1000, 1000)  # a thousand tokens a second
        for _ in range(5):
            before = len(self.server.requests)
            self.server.pause_at = {"/completion"}
            self.begin()
            while self.server.paused and not self.pieces(before):
                self.server.go_on()  # the fingerprint comes first
                self.built.settle()
            self.server.pause_at = set()
            self.built.chat("hello")
        self.assertEqual([256, 128, 64, 64, 64], self.pieces())
        self.assertEqual(5, self.ended("preempted"))
        self.rounds()
        self.assertEqual("warm", self.state())


class BrokenOff(WarmTest):
    """After a question whose client hung up, on a template that was not warm yet."""

    def ask_and_hang_up(self, done: int) -> None:
        """Have a question broken off when so many of its tokens were computed."""
        self.use({"code": "x" * 2000 + "<{message}>"})
        self.server.pause_at = {"body"}
        call = self.built.chat("@code why?")
        self.server.tokens = self.server.tokens[:done]
        call.hang_up()
        self.server.pause_at = set()
        self.built.settle()

    def test_all_there(self) -> None:
        """Where the slot has all of the template it only needs saving, as after an answer."""
        self.ask_and_hang_up(2010)
        before = len(self.server.requests)
        self.rounds()
        end = exact_end(2007)
        self.assertEqual([end - LEAST + 1, end], self.pieces(before))
        self.assertEqual("warm", self.state())

    def test_only_a_part(self) -> None:
        """Where it has less, the rest comes in pieces, so that a user who comes need not wait for all of it."""
        self.ask_and_hang_up(100)
        before = len(self.server.requests)
        self.rounds()
        self.assertEqual(128, self.pieces(before)[0])
        self.assertEqual("warm", self.state())


class GivingWay(LongTest):
    """Users who come while a file is being written."""

    def test_user_during_a_part(self) -> None:
        """A user who comes while a part is being saved waits for that and for nothing more."""
        self.server.pause_at = {SAVE}
        warming = self.begin()
        call = self.built.chat("hello")
        self.assertEqual((0, 1), (call.status, self.built.gate.waiting))
        self.server.pause_at = set()
        self.go_on()
        self.assertEqual(200, call.status)
        self.successResultOf(warming)
        self.assertEqual(ENDS[:3], self.pieces())
        self.assertEqual((1, 0), (self.ended("preempted"), self.ended("done")))
        self.assertEqual((["code.part.bin"], ENDS[3:]), self.warm())

    def test_user_while_keeping(self) -> None:
        """A user who comes while a conversation is being saved, before a warm-up, waits for that and nothing more."""
        self.rounds()
        self.built.chat("@code " + "why? " * 100)
        self.edit(CODE)
        before = len(self.server.requests)
        self.server.pause_at = {SAVE}
        warming = self.begin()
        call = self.built.chat("hello")
        self.assertEqual((0, ["code.chat.bin"]), (call.status, self.slot_calls("save", before)))
        self.server.pause_at = set()
        self.go_on()
        self.assertEqual(200, call.status)
        self.successResultOf(warming)
        self.assertEqual(([], 1), (self.pieces(before), self.ended("preempted")))
        self.assertIsNotNone(self.built.saved(kind=CHAT))

    def test_user_at_the_end(self) -> None:
        """A user who comes while the template is being saved waits for that, and the warm-up was done."""
        self.server.pause_at = {SAVE}
        warming = self.begin()
        for _ in range(3):
            self.go_on()
        self.assertEqual("code.bin", self.slot_calls("save")[-1])
        call = self.built.chat("@code why?")
        self.assertEqual((0, 1), (call.status, self.built.gate.waiting))
        self.server.pause_at = set()
        self.go_on()
        self.successResultOf(warming)
        self.assertEqual((200, "hot"), (call.status, call.headers["x-bioproxy-cache"]))
        self.assertEqual((1, 0), (self.ended("done"), self.ended("preempted")))
