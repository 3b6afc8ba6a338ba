"""What llama-server answers about itself and its slot, as values.

llama-server answers in JSON, whose fields differ from build to build.  `bioproxy.llama.api` asks, and makes these
values of the answers; most of bioproxy needs only a value, and does not ask.

All are frozen, and compared field by field: whether two answers are equal is what bioproxy wants to know most often,
since llama-server does not tell when something has changed.  On Twisted's one thread a value may be kept over an
``await``.  It then says what was so when llama-server answered, not what is so now.

Pure: does not know how llama-server is asked, or when.
"""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Witness:
    """What `GET /slots` says about slot 0.

    Invariant: if two witnesses are equal and neither is `busy`, no request has used the slot in between, and
    llama-server was not restarted.  It does not see everything: saving, restoring and erasing leave `task` alone, so
    what is believed about the slot must be forgotten before one of these (`bioproxy.slot.content`).
    """

    task: int | None
    """Number of the slot's last task.  It grows with everything that llama-server does; `None` on a fresh server."""
    tokens: int
    """How many tokens the slot holds."""
    busy: bool
    """Whether a request is being processed in the slot."""


FIXED_MARKER = "<__media__>"
"""The `Props.marker` of older builds, which do not draw a random one.  Their processes cannot be told apart."""


@dataclass(frozen=True)
class Props:
    """What `GET /props` says about the process and its model.

    Invariant: none of these values changes while the process runs, except `asleep`, which is therefore left out of
    `==`.  So two unequal values come from two processes.  (Equal ones do not prove the opposite, see `FIXED_MARKER`.)
    """

    model: str | None
    """Path of the model's file, made safe to print; `None` if it is not told."""
    build: str | None
    """llama.cpp's build, for example ``b11549-1a2b3c4``, made safe to print; `None` if it is not told."""
    context: int
    """How many tokens one slot can hold; as good as unlimited if it is not told."""
    marker: str
    """Random text that each process draws at its start, unless the variable LLAMA_MEDIA_MARKER fixes it.

    It stands for images in prompts.  For bioproxy it is the name of the process.
    """
    about_model: str
    """All that `/props` says about the model (file type, chat template and so on), as text to be compared."""
    asleep: bool = field(compare=False)
    """Whether the model is unloaded after some idle time (``--sleep-idle-seconds``).

    For the next request it is loaded again, from its file; what the slot held is lost.
    """
    slots: int = 1
    """How many slots there are (``-np``).  bioproxy uses slot 0."""
    tells_slots: bool = True
    """Whether `GET /slots` is answered; with ``--no-slots`` it is not."""


@dataclass(frozen=True)
class Evaluated:
    """What an evaluation took, as llama-server's `timings` say."""

    reused: int
    """Prompt tokens that the slot held already (`cache_n`)."""
    computed: int
    """Prompt tokens that had to be computed (`prompt_n`)."""
    ms: float
    """Milliseconds that computing them took (`prompt_ms`)."""


@dataclass(frozen=True)
class SlotFile:
    """What a save has written or a restore has read."""

    tokens: int
    """How many tokens that are (`n_saved`, `n_restored`)."""
    size: int
    """How many bytes that are (`n_written`, `n_read`).  Some builds report fewer than the file has."""
