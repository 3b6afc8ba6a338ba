"""How templates are used: which one was asked for last, and in what shape clients ask.

Warm-ups are bets on the next question.  A bet needs a guess at what stands before the template in it: nothing, a system
message, tools (`bioproxy.prompts.prompt_shape`).  The guess is what the last clients sent.  A shape is taken over

* at once, if nobody has used the present one since it was taken: then it was no good guess;
* else when two first questions in a row had it: one stranger is no reason to disappoint a regular.

Taking over costs a warm-up.  A client whose system message tells the time has a new shape each time, or each minute,
and following it would warm up for ever and never be right.  So after `GUESSES` guesses that nobody used, only the
second rule is left; and each time that it applies, more in a row are asked for the next time, until the present shape
was used again.

What is learned survives a restart, in a file; losing it costs a few warm-ups.

Knows nothing of llama-server.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from twisted.logger import Logger

from bioproxy.prompts.prompt_shape import USER_MESSAGE_ONLY, Shape
from bioproxy.runtime.state_folder import StateFolder

FILE = "habits.json"

GUESSES = 2
"""How many shapes in a row are taken over at once, without anybody using them."""

IN_A_ROW = 2
"""So many first questions in a row make a habit."""

COSTLY = 2
"""How many more are asked for after each change of habits."""

RESTLESS = 3
"""So many different shapes in a row are no accident."""


@dataclass
class Habit:
    """How one template is used.

    `shape` is the one to warm up in, `used` whether anybody asked in it since it was taken; `guesses` counts shapes
    taken in vain, `changes` those taken from another that was used, less the questions in it since.  `other` is the
    shape of the last first question if it was another, `in_a_row` how often it came, and `others` how many different
    ones there were one after the other.  `turn` is as in `ShapeLearning.turn`.
    """

    shape: Shape = USER_MESSAGE_ONLY
    used: bool = False
    guesses: int = 0
    changes: int = 0
    other: Shape | None = None
    in_a_row: int = 0
    others: int = 0
    turn: int = 0


class ShapeLearning:
    """The habits of all templates."""

    log = Logger()

    def __init__(self, state: StateFolder) -> None:
        self._state = state
        self._known: dict[str, Habit] = {}
        self._turn = 0

    def load(self) -> None:
        """Read what was learned before."""
        try:
            self._known = {name: habit(entry) for name, entry in self._state.read(FILE).items()}
        except (ValueError, TypeError, LookupError, AttributeError, ArithmeticError, RecursionError) as error:
            self.log.warn("{file} is not understood, starting without: {error!r}", file=FILE, error=error)
        self._turn = max((each.turn for each in self._known.values()), default=0)

    def shape(self, name: str) -> Shape:
        """Return the shape to warm a template up in."""
        return self._habit(name).shape

    def turn(self, name: str) -> int:
        """Return a number that is larger the later a template was asked for, 0 if it never was."""
        return self._habit(name).turn

    def other(self, name: str) -> Shape | None:
        """Return the shape of the last first question, if that is not the one to warm up in."""
        return self._habit(name).other

    def restless(self, name: str) -> bool:
        """Tell whether each client, or each request, has another shape, so that no guess is any good."""
        known = self._habit(name)
        return known.others >= RESTLESS or known.changes >= RESTLESS

    def asked(self, name: str, shape_digest: str, first_shape: Shape | None) -> None:
        """Learn from a question that was answered.

        `shape_digest` is that of its shape, `first_shape` the shape itself if it was the first in a conversation.
        """
        known = self._known.setdefault(name, Habit())
        before = (known.shape, known.used, known.turn == self._turn)
        if known.turn < self._turn or not self._turn:
            self._turn += 1
            known.turn = self._turn
        if shape_digest == known.shape.digest:
            known.used, known.guesses, known.other, known.others = True, 0, None, 0
            known.changes = max(0, known.changes - 1)
        elif first_shape is not None and first_shape.may_be_kept:
            self._consider(name, known, first_shape)
        if before != (known.shape, known.used, True):
            self._save()

    def _consider(self, name: str, known: Habit, shape: Shape) -> None:
        """Take over a new shape, or not."""
        again = known.other == shape
        known.in_a_row = known.in_a_row + 1 if again else 1
        known.others = 1 if again else known.others + 1
        known.other = shape
        insists = known.in_a_row >= IN_A_ROW + known.changes
        if not insists and (known.used or known.guesses >= GUESSES):
            return
        self.log.info("template {name}: questions have another shape now, it is warmed up in that", name=name)
        # Who insists has used it already.
        known.shape, known.used = shape, insists
        known.guesses = 0 if insists else known.guesses + 1
        known.changes += COSTLY if insists else 0

    def refused(self, name: str) -> None:
        """Note that llama-server makes no prompt of a template's shape: back to the bare one."""
        known = self._known.get(name)
        if known is not None and known.shape != USER_MESSAGE_ONLY:
            self.log.info("template {name}: llama-server refuses the shape of its last questions", name=name)
            known.shape, known.used = USER_MESSAGE_ONLY, True
            self._save()

    def _habit(self, name: str) -> Habit:
        return self._known.get(name) or Habit()

    def _save(self) -> None:
        content = {
            name: {"shape": each.shape.source, "used": each.used, "guesses": each.guesses, "turn": each.turn}
            for name, each in self._known.items()
        }
        try:
            # Not worth waiting for the disk: this happens with every other question.
            self._state.write(FILE, content, durable=False)
        except OSError as error:
            self.log.warn("{file} cannot be written: {error}", file=FILE, error=error)


def habit(entry: Any) -> Habit:
    """Make a `Habit` of what JSON has of it.  Raises `TypeError`, `KeyError` and the like for anything else."""
    shape = Shape(str(entry["shape"]))
    if not shape.may_be_kept:
        raise ValueError("no shape")
    return Habit(shape, bool(entry["used"]), int(entry["guesses"]), turn=int(entry["turn"]))
