"""What is to be done with the slot, as two tables that cover every combination of circumstances.

Each row names some circumstances and leaves the others open (`ANY`).  The tests go through all combinations, and demand
that exactly one row speaks of each: a table with a gap or with two answers is as wrong as a plan that differs from it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import product
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from bioproxy.llama.answers import Witness
from bioproxy.llama.model_identity import Model
from bioproxy.prompts.conversation import Conversation, ConversationChain
from bioproxy.prompts.prompt_shape import Key
from bioproxy.slot.known_content import NO_CONVERSATION, KnownContent, ProbableContent
from bioproxy.slot.plan import (
    CUT_BACK,
    CheckProbable,
    Compute,
    Files,
    InSlot,
    Replace,
    Restore,
    Reuse,
    Use,
    Wanted,
    plan,
    plan_replacement,
)
from bioproxy.slot_files.file_search import SavedConversation
from bioproxy.slot_files.record import CHAT, PREFIX, Snapshot

ANY = "any"
YES, NO = True, False
TOKENS = 100
"""How many tokens the template has where that is known."""

KEY, OTHER_TEXT, OTHER_SHAPE = Key("text", "shape"), Key("other text", "shape"), Key("text", "other shape")
MODEL, OTHER_MODEL = Model("facts", ((1, -0.5),)), Model("facts", ((1, -1.5),))
QUESTION = ConversationChain(("first", "answer", "second"))
"""The conversation of the request: its second question."""

EARLIER, SAME, ANOTHER = QUESTION.first_messages(1), QUESTION.all_messages, Conversation(1, "another")
"""Conversations: one that the request goes on with, the same question, and one that has nothing to do with it."""

EDITED = ConversationChain(("first", "answer", "edited"))
"""A conversation whose last question was another one."""


def snapshot(kind: str, key: Key = KEY, model: Model = MODEL) -> Snapshot:
    """Return a file."""
    return Snapshot(f"code.{kind}", key, TOKENS, 1, model, "", conversation=EARLIER if kind == CHAT else None)


def saved(entry: Snapshot | None) -> SavedConversation | None:
    """Return a conversation's file as it is found."""
    return None if entry is None else SavedConversation("auto-chat", entry)


def held(
    conversation: Conversation | None,
    key: Key = KEY,
    name: str = "code",
    tokens: int = TOKENS,
    turns: ConversationChain = NO_CONVERSATION,
) -> KnownContent:
    """Return what a slot holds for certain."""
    return KnownContent(name, key, conversation, 0, Witness(1, tokens, False), turns)


def combinations(circumstances: Mapping[str, Sequence[Any]]) -> Iterator[dict[str, Any]]:
    """Yield all combinations of circumstances."""
    for values in product(*circumstances.values()):
        yield dict(zip(circumstances, values, strict=True))


def row_of(table: Sequence[tuple[Any, ...]], case: Mapping[str, Any]) -> tuple[Any, ...]:
    """Return the only row that speaks of a combination; its last column says what to do."""
    rows = [
        row for row in table if all(each in (ANY, value) for each, value in zip(row[:-1], case.values(), strict=False))
    ]
    assert len(rows) == 1, (case, rows)
    return rows[0]


class Planning(SynchronousTestCase):
    """Does the slot stay as it is?"""

    def compare(
        self, table: Sequence[tuple[Any, ...]], circumstances: Mapping[str, Sequence[Any]], slots: Mapping[str, InSlot]
    ) -> None:
        """Compare the plan with a table, in all combinations; each row must be of use."""
        used = set()
        for case in combinations({"slot": list(slots), **circumstances}):
            files = Files(
                SavedConversation("code", snapshot(CHAT)) if case["chat"] else None,
                snapshot(PREFIX) if case["sized"] else None,
                TOKENS if case["sized"] else None,
            )
            in_slot = replace(slots[case["slot"]], probable_is_there=case.get("there"))
            # Whether files may be restored, and what was asked for before, is no matter here.
            for blocked, before in product((YES, NO), repeat=2):
                reuse = Reuse(case["goes_back"], case["conversations"], blocked)
                wanted = Wanted("code", KEY, QUESTION, before)
                row = row_of(table, case)
                used.add(row)
                expected = row[-1]
                if isinstance(expected, Use) and expected.promised == TOKENS:
                    expected = replace(expected, promised=files.prompt_tokens)
                if isinstance(expected, CheckProbable):
                    expected = CheckProbable(files.prompt_tokens or 0)
                self.assertEqual(expected, plan(in_slot, wanted, files, reuse), case)
        self.assertEqual(set(table), used)

    def test_known(self) -> None:
        """What the slot holds for certain is used where it is the best there is; a conversation to be lost is saved."""
        slots = {
            "prompt": InSlot(held(None)),
            "earlier turn": InSlot(held(EARLIER)),
            "same question": InSlot(held(SAME)),
            "another conversation": InSlot(held(ANOTHER)),
            "another long conversation": InSlot(held(ANOTHER, tokens=TOKENS + CUT_BACK + 1)),
            "edited question": InSlot(held(EDITED.all_messages, turns=EDITED)),
            "other text": InSlot(held(ANOTHER, OTHER_TEXT)),
            "other key, same conversation": InSlot(held(EARLIER, OTHER_SHAPE)),
            "other shape, no conversation": InSlot(held(None, OTHER_SHAPE)),
            "other template": InSlot(held(ANOTHER, KEY, "story")),
            "other template and text": InSlot(held(ANOTHER, OTHER_TEXT, "story")),
            "other template, no conversation": InSlot(held(None, OTHER_TEXT, "story")),
        }
        circumstances = {"chat": (YES, NO), "goes_back": (YES, NO), "conversations": (YES, NO), "sized": (YES, NO)}
        table = [
            # what the slot holds, chat file, goes back, conversations of use -> what to do
            ("prompt", NO, ANY, ANY, Use()),
            ("prompt", YES, ANY, ANY, Replace()),
            ("earlier turn", ANY, ANY, YES, Use(TOKENS, CHAT)),
            ("earlier turn", ANY, YES, NO, Use(TOKENS)),
            ("earlier turn", ANY, NO, NO, Replace(save_first=True)),
            ("same question", ANY, YES, ANY, Use(TOKENS)),
            ("same question", ANY, NO, ANY, Replace(save_first=True)),
            ("another conversation", NO, YES, ANY, Use(TOKENS, save_first=True, cut_back=True)),
            ("another conversation", NO, NO, ANY, Replace(save_first=True)),
            ("another conversation", YES, ANY, ANY, Replace(save_first=True)),
            # What both share by accident may be long here.
            ("another long conversation", NO, YES, ANY, Use(TOKENS, save_first=True)),
            ("another long conversation", NO, NO, ANY, Replace(save_first=True)),
            ("another long conversation", YES, ANY, ANY, Replace(save_first=True)),
            # The slot has what the file would bring, and more, which is dropped.
            ("edited question", ANY, YES, ANY, Use(TOKENS, save_first=True)),
            ("edited question", ANY, NO, ANY, Replace(save_first=True)),
            ("other text", ANY, ANY, ANY, Replace(save_first=True)),
            # The digests of the messages cover what stands before them, under whatever key it was asked.
            ("other key, same conversation", ANY, ANY, YES, Use(TOKENS, CHAT)),
            ("other key, same conversation", ANY, YES, NO, Use(TOKENS)),
            ("other key, same conversation", ANY, NO, NO, Replace(save_first=True)),
            ("other shape, no conversation", ANY, ANY, ANY, Replace()),
            # Two templates may have the same text.
            ("other template", NO, YES, ANY, Use(TOKENS, save_first=True, cut_back=True)),
            ("other template", NO, NO, ANY, Replace(save_first=True)),
            ("other template", YES, ANY, ANY, Replace(save_first=True)),
            ("other template and text", ANY, ANY, ANY, Replace(save_first=True)),
            ("other template, no conversation", ANY, ANY, ANY, Replace()),
        ]
        self.compare(table, circumstances, slots)

    def test_cut_back_without_a_file(self) -> None:
        """A prompt that was counted and has no file yet is cut back to all the same; nothing is promised."""
        long = InSlot(held(ANOTHER, tokens=CUT_BACK + TOKENS))
        for counted, cut_back in ((TOKENS, True), (None, False)):
            expected = Use(save_first=True, cut_back=cut_back)
            files = Files(counted_tokens=counted)
            self.assertEqual(expected, plan(long, Wanted("code", KEY, QUESTION), files, Reuse()))

    def test_unknown(self) -> None:
        """What the slot probably holds is asked for only where it would be the best, and used if it is there."""
        slots = {
            "nothing": InSlot(),
            "other key": InSlot(None, ProbableContent(OTHER_SHAPE, QUESTION)),
            "earlier turn": InSlot(None, ProbableContent(KEY, ConversationChain(QUESTION.message_digests[:1]))),
            "same question": InSlot(None, ProbableContent(KEY, QUESTION)),
            "another conversation": InSlot(None, ProbableContent(KEY, ConversationChain(("another",)))),
        }
        circumstances = {
            "chat": (YES, NO),
            "goes_back": (YES, NO),
            "there": (None, YES, NO),
            "conversations": (YES, NO),
            "sized": (YES, NO),
        }
        table = [
            # what the slot probably holds, chat file, goes back, is it there -> what to do
            ("nothing", ANY, ANY, ANY, Replace()),
            ("other key", ANY, ANY, ANY, Replace()),
            ("earlier turn", ANY, NO, ANY, Replace()),
            ("earlier turn", ANY, YES, None, CheckProbable(TOKENS)),
            ("earlier turn", ANY, YES, YES, Use()),
            ("earlier turn", ANY, YES, NO, Replace()),
            ("same question", ANY, NO, ANY, Replace()),
            ("same question", ANY, YES, None, CheckProbable(TOKENS)),
            ("same question", ANY, YES, YES, Use()),
            ("same question", ANY, YES, NO, Replace()),
            ("another conversation", YES, ANY, ANY, Replace()),
            ("another conversation", NO, NO, ANY, Replace()),
            ("another conversation", NO, YES, None, CheckProbable(TOKENS)),
            ("another conversation", NO, YES, YES, Use()),
            ("another conversation", NO, YES, NO, Replace()),
        ]
        self.compare(table, circumstances, slots)

    def test_warmup(self) -> None:
        """A warm-up goes on with no conversation, not even an empty one; it finds the template before any of them."""
        wanted = Wanted("code", KEY, ConversationChain())
        for conversation, expected in (
            (None, Use()),
            (Conversation(0, ""), Use(TOKENS, save_first=True)),
            (SAME, Use(TOKENS, save_first=True)),
        ):
            in_slot = InSlot(held(conversation))
            self.assertEqual(expected, plan(in_slot, wanted, Files(prompt_tokens=TOKENS), Reuse()))
        probable = InSlot(None, ProbableContent(KEY, QUESTION))
        self.assertEqual(CheckProbable(0), plan(probable, wanted, Files(), Reuse()))


class Replacing(SynchronousTestCase):
    """What comes into the slot instead?"""

    FILES: Mapping[str, dict[str, Any]] = {
        "fits": {},
        "other model": {"model": OTHER_MODEL},
        "other text": {"key": OTHER_TEXT},
        "other shape": {"key": OTHER_SHAPE},
        "other text and shape": {"key": Key("other text", "other shape")},
        "other shape and model": {"key": OTHER_SHAPE, "model": OTHER_MODEL},
    }
    TABLE: Sequence[tuple[Any, ...]] = (
        # restoring of no use, chat file, prefix file, asked for before -> what to do
        (YES, ANY, ANY, ANY, Compute("ineffective")),
        (NO, "fits", ANY, ANY, Restore("auto-chat", CHAT, snapshot(CHAT))),
        *((NO, chat, "fits", ANY, Restore("code", PREFIX, snapshot(PREFIX))) for chat in ("useless", "none")),
        *((NO, chat, "none", NO, Compute("first")) for chat in ("useless", "none")),
        *((NO, chat, "none", YES, Compute("slot-taken")) for chat in ("useless", "none")),
        *((NO, chat, "failed", ANY, Compute("no-file")) for chat in ("useless", "none")),
        *((NO, chat, "other model", ANY, Compute("other-model")) for chat in ("useless", "none")),
        *((NO, chat, "other text", ANY, Compute("content-changed")) for chat in ("useless", "none")),
        *((NO, chat, "other text and shape", ANY, Compute("content-changed")) for chat in ("useless", "none")),
        *((NO, chat, "other shape", ANY, Compute("shape-changed")) for chat in ("useless", "none")),
        *((NO, chat, "other shape and model", ANY, Compute("shape-changed")) for chat in ("useless", "none")),
    )

    def file(self, kind: str, state: str) -> Snapshot | None:
        """Return a file in one of the states of the table."""
        return None if state == "none" else snapshot(kind, **self.FILES[state if state != "failed" else "fits"])

    def test_all(self) -> None:
        """The conversation's file comes before the template's; what does not fit stays; a miss has its reason."""
        states = (*self.FILES, "failed", "none")
        circumstances = {"blocked": (YES, NO), "chat": states, "prefix": states, "before": (YES, NO)}
        for case in combinations(circumstances):
            files = Files(saved(self.file(CHAT, case["chat"])), self.file(PREFIX, case["prefix"]))
            failed = frozenset(kind for kind, state in ((CHAT, "chat"), (PREFIX, "prefix")) if case[state] == "failed")
            # A chat file that cannot be restored, for whatever reason, is as good as none.  Its key does not matter:
            # the conversation itself covers what it begins with.
            chat = {"other text": "fits", "other shape": "fits", "other text and shape": "fits"}.get(case["chat"])
            shown = {**case, "chat": chat or (case["chat"] if case["chat"] in ("fits", "none") else "useless")}
            decision = plan_replacement(
                Wanted("code", KEY, QUESTION, case["before"]), files, MODEL, Reuse(no_restore=case["blocked"]), failed
            )
            expected = row_of(self.TABLE, shown)[-1]
            if isinstance(expected, Restore) and expected.kind == CHAT and files.chat is not None:
                expected = replace(expected, entry=files.chat.entry)
            self.assertEqual(expected, decision, case)

    def test_parting_conversation(self) -> None:
        """A conversation that parts from the request's is restored, too; how much of it is reused is not promised."""
        entry = snapshot(CHAT)
        files = Files(SavedConversation("auto-chat", entry, shared=2), snapshot(PREFIX))
        wanted = Wanted("code", KEY, QUESTION)
        self.assertEqual(2, files.messages)
        self.assertEqual(
            Restore("auto-chat", CHAT, entry, whole=False), plan_replacement(wanted, files, MODEL, Reuse())
        )

    def test_both_failed(self) -> None:
        """With each file that fails the next best is restored, and in the end the reason is that there is no file."""
        files, failed, decisions = Files(saved(snapshot(CHAT)), snapshot(PREFIX)), frozenset[str](), []
        wanted = Wanted("code", KEY, QUESTION, prepared_before=True)
        while isinstance(decision := plan_replacement(wanted, files, MODEL, Reuse(), failed), Restore):
            decisions.append(decision.kind)
            failed |= {decision.kind}
        self.assertEqual(([CHAT, PREFIX], Compute("no-file")), (decisions, decision))
