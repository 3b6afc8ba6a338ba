"""Decides whether a prompt is to be warmed up now, and says why.

The decision is one pure function, `decide`, from facts to a value of `bioproxy.warmup.due_reasons`: `Due` with the
reason, or `NotDue` with the reason why not.

Nothing here waits or asks: the facts are collected in one go, without an ``await`` in between.  That is what makes them
fit together.  In Twisted other code runs only while a coroutine awaits something, so between the first and the last
fact nothing can change.  The decision holds until the next ``await``, and is made anew in the next round.

Does not know where the facts come from, and neither the order of prompts nor what a warm-up does.
"""

from __future__ import annotations

from dataclasses import dataclass

from bioproxy.prompts.catalogue import Prompt, Source
from bioproxy.runtime.backoff import Trouble
from bioproxy.slot_files.record import Snapshot
from bioproxy.warmup.due_reasons import Due, Hold, NotDue, Reason


@dataclass(frozen=True)
class Facts:
    """All that the decision about one prompt depends on, at one moment.

    Each fact is a plain value, so that a test can write down any combination of them, also such as are hard to bring
    about: a file of another model for a prompt that an operator wants while llama-server sleeps.
    """

    up: bool
    """llama-server answers, with its model loaded."""

    asleep: bool
    """llama-server has unloaded its model for the time being."""

    files_known: bool
    """llama-server was asked whether it keeps slot files.  While it sleeps it is not asked: that would wake it up."""

    files_usable: bool
    """Slot files can be saved, and restoring them helps.

    False without ``--slot-save-path``, after saves of two prompts failed, and where restored tokens are not reused.
    """

    model_known: bool
    """It is known for certain which model runs.

    False after each restart of llama-server, and after it was asleep: a file may have been exchanged meanwhile.
    """

    wanted: bool
    """An operator asked for a warm-up of this prompt, and it has neither succeeded nor failed since."""

    allowed: bool
    """Warm-ups ahead of any question are on, or a user has asked for this prompt."""

    failure: Trouble | None
    """The failure after which this prompt's warm-ups pause now."""

    change: Trouble | None
    """The change of the text during a warm-up after which warm-ups pause now."""

    recorded: Snapshot | None
    """What the record says of the prompt's file, whatever text or model the file is of.  `None`: there is no file."""

    whole: bool
    """The recorded file is as it was when it was recorded, as far as can be seen."""

    saved: bool
    """The recorded file may be restored for just this prompt now: text, shape and model are right, and it is whole.

    The slot's own judgement; `recorded`, `whole` and `model_known` only find the words where it is "no".
    """

    doubted: bool
    """The file was restored and not reused, so the tokens may be other ones than when it was saved.

    A chat template with a date in it does that, once a day.
    """

    held: bool
    """The slot holds this prompt, as far as is believed."""

    slot_seen: bool
    """llama-server tells what the slot holds.  With ``--no-slots`` it does not."""

    favourite: bool
    """The prompt is the one that will probably be asked for next.

    Only filled in where slot files cannot be used, because it matters only there.
    """

    left_by_user: bool
    """A user left a conversation on this prompt in the slot, in whatever shape.

    In the present shape that would be `held`.
    """

    learns: bool = True
    """Learning is on (``learn``, with ``slot_save_path``).  Without it nothing new is written of learned prompts."""

    elsewhere: bool = False
    """Another bioproxy with the same shared shelf computes it."""

    quiet: bool = True
    """No user has been at the gate for a moment.

    Templates do not wait for that: an operator has said that they will be asked.
    """


def decide(prompt: Prompt | None, facts: Facts) -> Due | NotDue:
    """Return whether a prompt is due, and why.  `None` is a prompt without a text: its file cannot be read.

    The branches come in the order of their weight, and the first that applies is the reason.  So one reason is given
    where there may be several, and it is the one to do something about first.
    """
    # What no wish of an operator can overcome.  Whether there are slot files is asked when llama-server is first seen
    # awake, and not before: the question would wake it up.
    if not facts.up:
        return NotDue(Hold.DOWN)
    if not facts.files_known:
        return NotDue(Hold.FILES_UNKNOWN)
    if prompt is None:
        return NotDue(Hold.NO_TEXT)
    if prompt.empty:
        return NotDue(Hold.EMPTY)
    # No request is compared with learned prompts then, so a file would be of no use, and an operator who has switched
    # learning off does not expect new files.
    if prompt.source is Source.LEARNED and not facts.learns:
        return NotDue(Hold.NOT_LEARNED)
    # An operator's wish goes before all pauses, and before the question whether the prompt is warm already.
    if facts.wanted:
        return Due(prompt, Reason.ASKED_FOR)
    if not facts.allowed:
        return NotDue(Hold.NOT_ASKED)
    if prompt.source is Source.LEARNED and not facts.files_usable:
        return NotDue(Hold.NO_FILES)
    # Pauses, before anything is looked at in detail: a prompt in trouble is not due, whatever its file is like.  A
    # failure that no pause can mend has no end (`retry_at` is `None`).
    if facts.failure is not None:
        useless = facts.failure.retry_at is None
        return NotDue(Hold.USELESS if useless else Hold.PAUSED, facts.failure.retry_at_utc)
    if facts.change is not None:
        return NotDue(Hold.CHANGING, facts.change.retry_at_utc)
    found = by_file(prompt, facts) if facts.files_usable else by_slot(prompt, facts)
    # Asked last, so that a prompt that is warm is not said to wait.
    if isinstance(found, Due) and facts.elsewhere and facts.files_usable:
        return NotDue(Hold.ELSEWHERE)
    if isinstance(found, Due) and prompt.source is Source.LEARNED and not facts.quiet:
        return NotDue(Hold.BUSY)
    return found


def by_file(prompt: Prompt, facts: Facts) -> Due | NotDue:
    """Decide where slot files can be used: every prompt can be warm, each in its file.

    llama-server may be asleep here.  It is woken up for a warm-up, because the file stays when it falls asleep again.
    """
    recorded = facts.recorded
    # Requests rely on the same judgement, so what is called warm here is found warm by the next question.
    if facts.saved:
        return NotDue(Hold.WARM)
    if facts.doubted:
        return Due(prompt, Reason.DOUBTED)
    # Saving what the slot holds is nearly free, and soon impossible: `schedule` has such prompts come first.  So this
    # reason is named even where a file exists that is of no use.
    if facts.held:
        return Due(prompt, Reason.IN_SLOT)
    if recorded is None:
        return Due(prompt, Reason.NO_FILE)
    if recorded.key.text != prompt.key.text:
        return Due(prompt, Reason.NEW_TEXT)
    if recorded.key != prompt.key:
        return Due(prompt, Reason.OTHER_SHAPE)
    if not facts.whole:
        return Due(prompt, Reason.FILE_CHANGED)
    # So the file has the right text in the right shape, and only the model is left as a reason.
    #
    # To find out the model costs the slot's content, so it is left to the warm-up, which then mostly finds that nothing
    # has to be computed.
    return Due(prompt, Reason.OTHER_MODEL if facts.model_known else Reason.MODEL_UNKNOWN)


def by_slot(prompt: Prompt, facts: Facts) -> Due | NotDue:
    """Decide where slot files cannot be used: one prompt can be warm, in the slot itself.

    That is so without ``--slot-save-path``, where restoring does not help on this model, and for some minutes after
    saves have failed.
    """
    # A prompt that the slot holds is warm, whether it is the favourite or not.
    if facts.held:
        return NotDue(Hold.WARM)
    # Waking llama-server up would be useless: when it falls asleep again, the slot is empty again.
    if facts.asleep:
        return NotDue(Hold.ASLEEP)
    if not facts.favourite:
        return NotDue(Hold.OTHER_FIRST)
    # If the slot cannot be seen, a warm-up that has succeeded cannot be told from none: it would be repeated endlessly.
    if not facts.slot_seen:
        return NotDue(Hold.SLOT_UNSEEN)
    # What a user left on this prompt stays, even if it is in another shape: the user may go on with it.
    if facts.left_by_user:
        return NotDue(Hold.USERS_SLOT)
    return Due(prompt, Reason.NOT_IN_SLOT)
