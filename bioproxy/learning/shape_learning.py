"""How prompts are used: in what shape clients ask for each one, and which one was asked for last.

What is learned from a question is decided by `bioproxy.learning.shape_rules`, which is pure.  Here is what the rules do
not have: the habits of all prompts by their ids, a log line for each change, and a file, so that a restart forgets
nothing.

The file is written at once when something changed, in the reactor's thread.  Twisted has one thread for everything, and
a write that blocks holds up every connection.  That is acceptable here because the file is small, it is written to the
operating system's cache and not to the disk (``durable=False``), and most questions change nothing.  What a power cut
takes back costs a few warm-ups.

Losing the whole file costs a few warm-ups, too.  So a file that is not understood is replaced, with a warning.

Does not know llama-server, warm-ups or slot files, and never sees a user's message: a shape that contains one is not
kept (`Shape.may_be_kept`).
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from twisted.logger import Logger

from bioproxy.learning.shape_rules import Habit, learned
from bioproxy.prompts.prompt_shape import USER_MESSAGE_ONLY, Shape
from bioproxy.runtime.state_folder import MALFORMED, StateFolder

FILE = "habits.json"
"""The file's name, in the state folder."""


class ShapeLearning:
    """The habits of all prompts.

    Invariant: what a restart needs (shape, whether it was learned, order of use) is in the file when `asked` returns,
    unless the file cannot be written, which is logged.
    """

    log = Logger()

    def __init__(self, state: StateFolder) -> None:
        """Keep the folder; nothing is read before `load`, because the folder is locked only when the services start."""
        self._state = state
        self._known: dict[str, Habit] = {}
        # The largest `Habit.turn` given so far.  Counted over all prompts, so that any two of them can be compared.
        self._turn = 0

    def load(self) -> None:
        """Read what was learned before the restart.

        Called once, when the folder is open.  A file that is not understood is no reason not to start: it is told in
        the log, and replaced when something is learned.  Each exception here is one that garbage in JSON was seen to
        raise.
        """
        try:
            self._known = {id: habit(entry) for id, entry in self._state.read(FILE).items()}
        except MALFORMED as error:
            self.log.warn("{file} is not understood, starting without: {error!r}", file=FILE, error=error)
        self._turn = max((each.turn for each in self._known.values()), default=0)

    def shape(self, id: str) -> Shape:
        """Return the shape to warm a prompt up in: the bare one as long as nothing is known."""
        return self._habit(id).shape

    def turn(self, id: str) -> int:
        """Return a number that is larger the later a prompt was asked for, 0 if it never was.

        A number and not a time: it only has to order the prompts, and clocks can be set.
        """
        return self._habit(id).turn

    def other(self, id: str) -> Shape | None:
        """Return the shape of the last first question, if that is not the one to warm up in.

        With this a cold answer is explained: by how it differs from the question before.
        """
        return self._habit(id).other

    def note(self, id: str) -> str | None:
        """Return what is unwise about how clients ask for a prompt, in words for an operator, if anything is.

        Learning cannot help such a prompt.  The client has to be changed, for example so that the time stands in the
        user's message.
        """
        if not self._habit(id).restless:
            return None
        return (
            "what stands before the template (a system message, tools) is another with each question, so it cannot be"
            " warmed up for the next one: does it tell the time?"
        )

    def asked(self, id: str, first_shape: Shape | None) -> None:
        """Learn from a question that was answered.

        `first_shape` is the question's shape if it was the first one of a conversation.  A later question counts for
        the order of use only.  Called after the answer, inside the gate, so that the warm-up that may follow finds the
        question's own tokens in the slot, and only has to save them.
        """
        # Habits are values: comparing the one before with the one after tells what there is to log and to write.
        before = self._habit(id)
        after = before if first_shape is None else learned(before, first_shape)
        # The number stays while the same prompt is asked for again and again: then nothing has to be written.
        if before.turn < self._turn or not self._turn:
            self._turn += 1
            after = replace(after, turn=self._turn)
        self._known[id] = after
        # Each such line is followed by a warm-up, and explains it.
        if before.shape != after.shape:
            self.log.info("prompt {id}: clients send another shape now, warm-ups use that", id=id)
        # Without waiting for the disk, see the top of this module.  Only what the file has: counting a row of strangers
        # is not worth a write for each of them.
        if stored(before) != stored(after):
            self._save()

    def refused(self, id: str) -> None:
        """Note that llama-server makes no prompt of the learned shape: back to the bare one.

        The next other shape has to come in a row then, so that the refused one is not taken over again at once.
        """
        known = self._known.get(id)
        if known is not None and known.shape != USER_MESSAGE_ONLY:
            self.log.info("prompt {id}: llama-server refuses the shape that clients send", id=id)
            self._known[id] = replace(known, shape=USER_MESSAGE_ONLY, settled=True)
            self._save()

    def _habit(self, id: str) -> Habit:
        return self._known.get(id) or Habit()

    def _save(self) -> None:
        """Write the file.  What cannot be written is still known, for as long as the process runs."""
        content = {id: stored(each) for id, each in self._known.items()}
        try:
            self._state.write(FILE, content, durable=False)
        except OSError as error:
            self.log.warn("{file} cannot be written: {error}", file=FILE, error=error)


def stored(habit: Habit) -> dict[str, Any]:
    """Return what the file has of a habit.

    Rows, and what takeovers have cost, begin anew after a restart: they change with every other question, and each
    change would be a write.
    """
    return {"shape": habit.shape.source, "settled": habit.settled, "turn": habit.turn}


def habit(entry: Any) -> Habit:
    """Return the habit that an entry of the file is about; raises `TypeError`, `KeyError` and the like for garbage."""
    shape = Shape(str(entry["shape"]))
    if not shape.may_be_kept:
        raise ValueError("the shape may not be kept")
    # Earlier versions wrote two fields: whether the shape was used, and how many guesses there were before.
    settled = entry["settled"] if "settled" in entry else entry["used"] or entry["guesses"]
    return Habit(shape, bool(settled), turn=int(entry["turn"]))
