"""The prompts that were learned from requests: what each one is, kept over restarts.

A learned prompt is a beginning that requests share and nobody has configured: a system message and tools, in the form
in which the client sends them (`bioproxy.prompts.prompt_shape`).  It is either *whole*, everything before the first
user message, or *cut*: the first tokens of it only, where two beginnings are the same for a while and then part, as
those of a client do that writes the time into its system message.

Which prompts are worth learning is decided in `bioproxy.learning.prompt_learning`.  Here they are only kept, because a
warm-up needs their text: llama-server has to be asked for their tokens again after each restart of bioproxy, or with
another model.  So the texts of system messages and tools are in a file in the state folder, which only its owner may
read.  Users' messages are never in it (`Shape.may_be_kept`).

Plain state and a file, nothing to wait for.  Losing the file costs the time in which the same prompts are learned once
more.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

from twisted.logger import Logger

from bioproxy.prompts.digests import digest
from bioproxy.prompts.prompt_ids import is_learned, learned_id
from bioproxy.prompts.prompt_shape import Key, Shape
from bioproxy.runtime.state_folder import MALFORMED, StateFolder

FILE = "learned.json"
"""The file's name, in the state folder."""

FORMAT = 1
"""The form of the file, ``{"format": 1, "prompts": [{...}, ...]}``.  To be raised when older versions would misread it.
"""

MOST = 64
"""How many prompts are kept at most; of more, those that were not used for the longest time are forgotten.

Each has up to 256 KiB of text in memory and in the file.  Halved, a machine with many agents forgets some that will be
used again; doubled, a client that sends other tools each time takes twice as much of both.
"""


@dataclass(frozen=True)
class LearnedPrompt:
    """One learned prompt.

    Invariant: `shape` may be kept (`Shape.may_be_kept`), and has only what stands before the first user message.
    """

    shape: Shape
    """The beginning that it was learned from."""

    cut: int | None = None
    """How many tokens of that beginning it has; `None` for all of them, however many they are with the present
    model."""

    mark: str = ""
    """A digest of these tokens, where there is a `cut`: with another model they are other ones, and it is of no use."""

    @property
    def id(self) -> str:
        """The name in slot files and `/status`: ``auto-`` and twelve digits."""
        return learned_id(self.shape.digest if self.cut is None else digest(f"{self.cut}:{self.mark}"))

    @property
    def key(self) -> Key:
        """What the slot and its files are compared by.  That of a whole prompt is the key of each request on it."""
        return whole_key(self.shape) if self.cut is None else Key(f"{self.cut}:{self.mark}", "")


def whole_key(beginning: Shape) -> Key:
    """Return the key of everything that stands before the first user message."""
    return beginning.key("")


class LearnedPrompts:
    """All learned prompts, by their ids, the one that was used last at the end.

    Invariant: at most `MOST`.  The file has them all when a method returns, unless it cannot be written, which is
    logged.
    """

    log = Logger()

    def __init__(self, state: StateFolder) -> None:
        """Keep the folder; nothing is read before `load`, because the folder is locked only when the services start."""
        self._state = state
        self._known: dict[str, LearnedPrompt] = {}
        self._failed = False

    def load(self) -> None:
        """Read the file.  What is not understood is left out, and the file is written anew at the next change."""
        content = self._state.read(FILE)
        if not content:
            return
        try:
            if content["format"] != FORMAT:
                raise ValueError(content["format"])
            known = [learned_prompt(each) for each in content["prompts"]]
        except MALFORMED as error:
            self.log.warn("{file} cannot be read, starting without it: {error!r}", file=FILE, error=error)
            return
        self._known = {each.id: each for each in known[-MOST:]}

    def __iter__(self) -> Iterator[str]:
        """Yield all ids."""
        return iter(tuple(self._known))

    def __len__(self) -> int:
        return len(self._known)

    def get(self, id: str) -> LearnedPrompt | None:
        """Return the prompt with this id, if there is one."""
        return self._known.get(id)

    def whole(self, beginning: Shape) -> LearnedPrompt | None:
        """Return the prompt that is all of a beginning, if that was learned."""
        found = self._known.get(learned_id(beginning.digest))
        # Twelve digits may be equal by accident.
        return found if found is not None and found.cut is None and found.shape == beginning else None

    def cuts(self) -> list[LearnedPrompt]:
        """Return the prompts that are the first tokens of a beginning."""
        return [each for each in self._known.values() if each.cut is not None]

    def add(self, prompt: LearnedPrompt) -> list[str]:
        """Keep a prompt; return the ids of those that were forgotten for it."""
        self._known[prompt.id] = prompt
        forgotten = list(self._known)[: max(0, len(self._known) - MOST)]
        for id in forgotten:
            del self._known[id]
        self._save()
        return forgotten

    def used(self, id: str) -> None:
        """Note that a prompt was used, so that it is not among the first to be forgotten."""
        # Not written at once: the order is only of interest where there are too many.
        if id in self._known:
            self._known[id] = self._known.pop(id)

    def forget(self, id: str) -> bool:
        """Forget a prompt; return whether there was one."""
        if self._known.pop(id, None) is None:
            return False
        self._save()
        return True

    def _save(self) -> None:
        content = {"format": FORMAT, "prompts": [stored(each) for each in self._known.values()]}
        try:
            # Not flushed to the disk, as for other things that can be learned again.
            self._state.write(FILE, content, durable=False)
            self._failed = False
        except OSError as error:
            # A full disk stays full: one line is enough.
            if not self._failed:
                self.log.warn("{file} cannot be written: {error}", file=FILE, error=error)
            self._failed = True


def stored(prompt: LearnedPrompt) -> dict[str, Any]:
    """Return what the file has of a prompt."""
    return {**asdict(prompt), "shape": prompt.shape.source}


def learned_prompt(entry: Any) -> LearnedPrompt:
    """Return the prompt that an entry of the file is about; raises `TypeError`, `KeyError` and the like for garbage."""
    shape, cut = Shape(str(entry["shape"])), entry["cut"]
    if not shape.may_be_kept or not (cut is None or (isinstance(cut, int) and cut > 0)):
        raise ValueError("no prompt that may be kept")
    prompt = LearnedPrompt(shape, cut, str(entry["mark"]))
    assert is_learned(prompt.id)
    return prompt
