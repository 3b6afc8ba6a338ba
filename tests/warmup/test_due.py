"""Whether a prompt is due, and why: the table of the decision, and where its result is shown."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from twisted.logger import capturedLogs
from twisted.trial.unittest import SynchronousTestCase

from bioproxy.llama.model_identity import Model
from bioproxy.prompts.catalogue import Prompt
from bioproxy.prompts.learned_prompts import LearnedPrompt
from bioproxy.prompts.prompt_shape import PLAIN_PROMPT, USER_MESSAGE_ONLY
from bioproxy.runtime.backoff import Trouble
from bioproxy.slot_files.record import Snapshot
from bioproxy.warmup.due import Facts, decide
from bioproxy.warmup.due_reasons import Due, Hold, NotDue, Reason
from tests.support.world import CODE, WarmTest, logged

PROMPT = Prompt("code", USER_MESSAGE_ONLY, "Know this: ", "digest")
LEARNED = Prompt("auto-0123456789ab", USER_MESSAGE_ONLY, "", "", LearnedPrompt(USER_MESSAGE_ONLY))
FILE = Snapshot("code.bin", PROMPT.key, 10, 100, Model("facts", ()), "2026-01-01T00:00:00+00:00")
UNTIL = "2026-01-01T00:01:00+00:00"
PAUSE, END = Trouble(None, "failed", 1, 60.0, UNTIL), Trouble(None, "does not fit", 1, None, None)

COLD = Facts(
    up=True,
    asleep=False,
    files_known=True,
    files_usable=True,
    model_known=True,
    wanted=False,
    allowed=True,
    failure=None,
    change=None,
    recorded=None,
    whole=True,
    saved=False,
    doubted=False,
    held=False,
    slot_seen=True,
    favourite=False,
    left_by_user=False,
)
"""A prompt without a file, with nothing in the way of a warm-up."""

NO_FILES: dict[str, Any] = {"files_usable": False, "favourite": True}
ELSEWHERE = replace(FILE, key=replace(PROMPT.key, text="other"))

TABLE: tuple[tuple[dict[str, Any], Reason | Hold], ...] = (
    # What nothing can overcome, each before what comes after it.
    ({"up": False, "files_known": False, "wanted": True}, Hold.DOWN),
    ({"files_known": False, "wanted": True}, Hold.FILES_UNKNOWN),
    # An operator's wish goes before everything else.
    ({"wanted": True}, Reason.ASKED_FOR),
    ({"wanted": True, "saved": True, "recorded": FILE}, Reason.ASKED_FOR),
    ({"wanted": True, "allowed": False, "failure": END, "change": PAUSE}, Reason.ASKED_FOR),
    ({"wanted": True, "files_usable": False, "asleep": True}, Reason.ASKED_FOR),
    # Nobody asked, or a pause.
    ({"allowed": False, "held": True}, Hold.NOT_ASKED),
    ({"failure": PAUSE, "change": PAUSE}, Hold.PAUSED),
    ({"failure": END}, Hold.USELESS),
    ({"change": PAUSE, "held": True}, Hold.CHANGING),
    # With slot files.
    ({"saved": True, "recorded": FILE}, Hold.WARM),
    ({"saved": True, "recorded": FILE, "held": True, "asleep": True}, Hold.WARM),
    ({"doubted": True, "recorded": FILE, "held": True}, Reason.DOUBTED),
    ({"held": True}, Reason.IN_SLOT),
    ({"held": True, "recorded": ELSEWHERE}, Reason.IN_SLOT),
    ({}, Reason.NO_FILE),
    ({"asleep": True}, Reason.NO_FILE),
    ({"recorded": ELSEWHERE}, Reason.NEW_TEXT),
    ({"recorded": replace(ELSEWHERE, key=PLAIN_PROMPT.key("other"))}, Reason.NEW_TEXT),
    ({"recorded": replace(FILE, key=PLAIN_PROMPT.key("digest"))}, Reason.OTHER_SHAPE),
    ({"recorded": FILE, "whole": False}, Reason.FILE_CHANGED),
    ({"recorded": FILE, "model_known": False}, Reason.MODEL_UNKNOWN),
    ({"recorded": FILE}, Reason.OTHER_MODEL),
    # What was learned waits for a quiet moment, which is no news of a prompt that is warm; templates do not.
    ({"quiet": False}, Reason.NO_FILE),
    # What another bioproxy computes is waited for, unless it is warm, wanted, or to be warm in this slot alone.
    ({"elsewhere": True}, Hold.ELSEWHERE),
    ({"elsewhere": True, "saved": True, "recorded": FILE}, Hold.WARM),
    ({"elsewhere": True, "wanted": True}, Reason.ASKED_FOR),
    ({"elsewhere": True, **NO_FILES, "favourite": True}, Reason.NOT_IN_SLOT),
    # Without: only the slot can be warm.
    ({**NO_FILES}, Reason.NOT_IN_SLOT),
    ({**NO_FILES, "recorded": FILE}, Reason.NOT_IN_SLOT),
    ({**NO_FILES, "held": True}, Hold.WARM),
    ({**NO_FILES, "asleep": True}, Hold.ASLEEP),
    ({**NO_FILES, "favourite": False}, Hold.OTHER_FIRST),
    ({**NO_FILES, "slot_seen": False}, Hold.SLOT_UNSEEN),
    ({**NO_FILES, "left_by_user": True}, Hold.USERS_SLOT),
)


class Decision(SynchronousTestCase):
    """`decide`."""

    def test_table(self) -> None:
        """Each set of facts leads to its reason."""
        for facts, expected in TABLE:
            found = decide(PROMPT, replace(COLD, **facts))
            self.assertEqual((isinstance(expected, Reason), expected), (isinstance(found, Due), found.reason), facts)
            if isinstance(found, Due):
                self.assertIs(PROMPT, found.prompt)

    def test_learned(self) -> None:
        """A learned prompt waits until users are quiet, if it is due, and until slot files can be used."""
        for facts, expected in (
            ({}, Reason.NO_FILE),
            ({"quiet": False}, Hold.BUSY),
            ({"quiet": False, "wanted": True}, Reason.ASKED_FOR),
            ({"quiet": False, "saved": True, "recorded": FILE}, Hold.WARM),
            ({**NO_FILES}, Hold.NO_FILES),
            ({"learns": False}, Hold.NOT_LEARNED),
            ({"learns": False, "wanted": True}, Hold.NOT_LEARNED),
        ):
            self.assertEqual(expected, decide(LEARNED, replace(COLD, **facts)).reason, facts)

    def test_every_reason(self) -> None:
        """The tables have every reason that there is, but for those of prompts without a text."""
        others = {Hold.NO_TEXT, Hold.EMPTY, Hold.BUSY, Hold.NO_FILES, Hold.NOT_LEARNED}
        self.assertEqual({*Reason, *Hold} - others, {expected for _, expected in TABLE})

    def test_without_text(self) -> None:
        """Not even an operator's wish makes a prompt due that has no text, or nothing in it."""
        facts = replace(COLD, wanted=True)
        self.assertEqual(NotDue(Hold.NO_TEXT), decide(None, facts))
        self.assertEqual(NotDue(Hold.EMPTY), decide(replace(PROMPT, text=" \n"), facts))

    def test_until(self) -> None:
        """A pause says when it ends; what does not end by itself says nothing."""
        for facts in (replace(COLD, failure=PAUSE), replace(COLD, change=PAUSE)):
            self.assertEqual(UNTIL, decide(PROMPT, facts).told()["until"])
        for facts in (replace(COLD, failure=END), replace(COLD, saved=True), COLD):
            self.assertIsNone(decide(PROMPT, facts).told()["until"])


class Shown(WarmTest):
    """Where operators see it."""

    def warmup(self) -> dict[str, Any]:
        """Return what `/status` says of the warm-up of the first template."""
        found: dict[str, Any] = self.built.operate("GET", "/status").json()["templates"][0]["warmup"]
        return found

    def test_status(self) -> None:
        """`/status` has the decision about each template, as it is made anew all the time."""
        world = self.use(warmup_chunk=10)
        told = [self.warmup()]
        self.rounds()
        told.append(self.warmup())
        self.edit("Other: <{message}>")
        told.append(self.warmup())
        world.schedule.want("code")
        told.append(self.warmup())
        self.server.loading = True
        self.look()
        told.append(self.warmup())
        reasons = (Reason.NO_FILE, Hold.WARM, Reason.NEW_TEXT, Reason.ASKED_FOR, Hold.DOWN)
        self.assertEqual(
            [{"due": isinstance(reason, Reason), "reason": reason.value, "until": None} for reason in reasons], told
        )

    def test_pause(self) -> None:
        """A pause after a failure is shown with its end, which stays the same while nothing happens."""
        self.use()
        self.server.answers = {"/apply-template": "nonsense"}
        self.rounds()
        told = self.warmup()
        self.assertEqual((False, Hold.PAUSED.value), (told["due"], told["reason"]))
        self.assertIsNotNone(told["until"])
        self.built.clock.advance(0.5)
        self.assertEqual(told, self.warmup())
        self.built.clock.advance(5)
        self.assertTrue(self.warmup()["due"])

    def test_broken_template(self) -> None:
        """A template that cannot be read is not due, for want of a text."""
        self.use({"bad": "no place", "code": CODE})
        self.assertEqual(Hold.NO_TEXT.value, self.warmup()["reason"])

    def test_log(self) -> None:
        """The log says why a warm-up starts: once for each reason, however many tries it takes, and again next time."""
        self.use(warmup_chunk=10)
        with capturedLogs() as events:
            for _ in range(3):
                self.server.pause_at = {"/completion"}
                self.begin()
                self.server.pause_at = set()
                self.built.send("POST", "/v1/completions", b"{}")
            self.rounds()
            for _ in range(2):
                self.built.schedule.want("code")
                self.rounds()
        lines = [line for line in logged(events) if "warm-up starts" in line]
        reasons = (Reason.NO_FILE, Reason.ASKED_FOR, Reason.ASKED_FOR)
        self.assertEqual([f"template code: its warm-up starts: {reason.value}" for reason in reasons], lines)
