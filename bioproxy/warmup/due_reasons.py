"""What can be decided about a prompt: it is due for a warm-up, or it waits, each with the reason.

The value is used three times: `bioproxy.warmup.schedule` chooses among what is due, the log names the reason when a
warm-up starts, and `/status` shows the value for each template.  An operator who wonders why a template is cold, or why
llama-server is busy at night, reads the very value that the program acts on.

Values only, so there is nothing of Twisted here.  A value holds until the next ``await`` of the code that asked for it:
meanwhile other code runs, and may change what it was decided from.

Does not know how it is decided: `bioproxy.warmup.due` does.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Any

from bioproxy.prompts.catalogue import Prompt


class Reason(Enum):
    """Why a prompt is due.

    The values are what operators read, after "its warm-up starts:" in the log and as `reason` in `/status`.  "It" is
    the prompt.
    """

    ASKED_FOR = "an operator asked for it"
    DOUBTED = "a restore did not help: its tokens have to be looked at again"
    IN_SLOT = "the slot holds it, and no file does"
    NO_FILE = "there is no slot file"
    FILE_CHANGED = "its slot file is gone, or was written by another program"
    NEW_TEXT = "the text has changed since its slot file was saved"
    OTHER_SHAPE = "its slot file has something else before the text than clients send"
    MODEL_UNKNOWN = "it is not known yet whether its slot file is of the model that runs"
    OTHER_MODEL = "its slot file is of another model"
    NOT_IN_SLOT = "the slot holds something else, and slot files cannot be used"


class Hold(Enum):
    """Why a prompt is not due.

    The values are what operators read.  Only `WARM` is the aim; `EMPTY`, `NOT_LEARNED` and `NOT_ASKED` are as
    configured; the others say what is in the way.
    """

    WARM = "warm"
    DOWN = "llama-server is not up"
    FILES_UNKNOWN = "it is not known yet whether llama-server keeps slot files"
    NO_TEXT = "there is no usable text"
    EMPTY = "nothing stands before the message"
    NOT_LEARNED = "learning is switched off"
    NOT_ASKED = "warm-ups are switched off, and nobody has asked for it"
    PAUSED = "paused after a failure"
    USELESS = "it failed, and would fail again: another text, model or context is needed"
    CHANGING = "the text keeps changing during its warm-ups"
    ASLEEP = "llama-server sleeps, and slot files cannot be used"
    OTHER_FIRST = "slot files cannot be used, and another prompt has the slot"
    SLOT_UNSEEN = "slot files cannot be used, and llama-server does not tell what the slot holds"
    USERS_SLOT = "slot files cannot be used, and a user's conversation on it has the slot"
    BUSY = "users are asking: a learned prompt waits for a quiet moment"
    ELSEWHERE = "another bioproxy warms it up, and shares the file"
    NO_FILES = "slot files cannot be used, and learned prompts are kept in files only"


@dataclass(frozen=True)
class Due:
    """A prompt that is to be warmed up now.

    "Now" is as soon as no user is at the gate: whether one is there, is not part of the decision.
    """

    prompt: Prompt
    """The prompt as it was when this was decided."""

    reason: Reason
    """Why it is due."""

    def told(self) -> dict[str, Any]:
        """Return what `/status` has of this, with the same fields as `NotDue.told`."""
        return {"due": True, "reason": self.reason.value, "until": None}


@dataclass(frozen=True)
class NotDue:
    """A prompt that is not to be warmed up now.

    No timer is set for `until`: the decision is made anew twice a second, and will be another one then.
    """

    reason: Hold
    """Why it is not due."""

    until: str | None = None
    """When a pause ends, in ISO 8601; `None` for everything that does not end by itself.  For operators only."""

    def told(self) -> dict[str, Any]:
        """Return what `/status` has of this, with the same fields as `Due.told`."""
        return {"due": False, "reason": self.reason.value, "until": self.until}
