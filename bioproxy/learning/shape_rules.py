"""Learns from first questions in which shape a prompt should be warmed up.  Pure: values in, values out.

A warm-up is a bet on the next question.  What stands before the prompt's text in a request (a system message, tools) is
its *shape* (`bioproxy.prompts.prompt_shape`), and only a question in the very shape of the warm-up profits from it.  A
prompt has a file of one shape at a time, and changing the shape costs a warm-up.  The rules, as `learned` applies them:

1. A first question in the present shape confirms that shape, and ends a row of others.
2. The shape of the very first question is taken over at once.
3. Any other shape is taken over when `IN_A_ROW` first questions in a row had it.
4. Each takeover by rule 3 makes the next one harder, by `COSTLY` more questions in a row.  Each confirmation makes it
   easier again, by one.

Only the first questions of conversations count.  What stands before the text in a later question is a conversation,
which no other user will have.

Each rule has a figure beside it: what happened when seventeen kinds of clients were replayed without the rule
(``python -m benchmarks.replay_shapes``; the mean of ten replays, added up over the kinds).  With all rules there were
202 warm-ups, and 68 % of the first questions found their prompt warm.

Nothing of Twisted is needed here.  A rule that has to be right about clients of all kinds should be testable thousands
of times in a second, without a reactor, a clock or a file; `bioproxy.learning.shape_learning` has the file.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from bioproxy.prompts.prompt_shape import USER_MESSAGE_ONLY, Shape

IN_A_ROW = 2
"""How many first questions in a row must have another shape before that shape is taken over.

Halved: 1,072 warm-ups instead of 202, 65 % found warm instead of 68 %; every stranger displaces a regular client.  One
more: 136 and 69 %, but after a real change of the system message one more question is cold.
"""

COSTLY = 2
"""How many more questions in a row each takeover asks of the next one.

At 0: 310 warm-ups instead of 202, with as many questions found warm; the clock that tells the minute costs 36 instead
of 4.  Doubled: 148, with as many found warm, but shapes that change every ten minutes are followed too late.
"""

RESTLESS = 3
"""How many other shapes in a row, or how large a `Habit.changes`, an operator is told of.

Changes no warm-up.  Smaller: two clients that take turns are told of as a problem.  Doubled: the note comes later.
"""


@dataclass(frozen=True)
class Habit:
    """How clients ask for one prompt.

    Invariant: `shape` is one that may be kept for warm-ups (`Shape.may_be_kept`).
    """

    shape: Shape = USER_MESSAGE_ONLY
    """The shape to warm up in."""

    settled: bool = False
    """Whether `shape` was learned from a question; before that it is only a default."""

    changes: int = 0
    """How much harder the next takeover is: `COSTLY` for each one so far, less 1 for each confirmation."""

    other: Shape | None = None
    """The shape of the last first question, if that was not `shape`."""

    in_a_row: int = 0
    """How many first questions in a row had the shape `other`."""

    others: int = 0
    """How many first questions in a row had a shape that was neither `shape` nor that of the question before."""

    turn: int = 0
    """Larger the later the prompt was asked for, among all prompts; 0 if never.  No rule depends on it."""

    @property
    def restless(self) -> bool:
        """Whether each client, or each request, has another shape, so that no shape can be right."""
        return self.others >= RESTLESS or self.changes >= RESTLESS


def learned(habit: Habit, shape: Shape) -> Habit:
    """Return the habit after another first question, which had this shape."""
    # Rule 1.  If a confirmation did not end the row: 302 warm-ups and 67 %.  Two clients in turn would be taken for a
    # change each time, and the file would always be in the shape of the one who has just asked.
    #
    # If a confirmation did not make takeovers easier again: 73 warm-ups and 68 %.  That looks better, but a client that
    # changes its system message for good ten times finds 82 % warm instead of 93 %, and less with each further change.
    if shape == habit.shape:
        return replace(habit, settled=True, changes=max(0, habit.changes - 1), other=None, in_a_row=0, others=0)
    # A shape that must not be kept, because users' words or images are in it, teaches nothing.
    if not shape.may_be_kept:
        return habit
    again = shape == habit.other
    in_a_row = habit.in_a_row + 1 if again else 1
    others = 1 if again else habit.others + 1
    habit = replace(habit, other=shape, in_a_row=in_a_row, others=others)
    # Rule 2.  Without: 201 warm-ups and 65 %.  Of two clients that take turns from the start, none would ever find the
    # prompt warm; with this rule one of them does.
    if not habit.settled:
        return replace(habit, shape=shape, settled=True)
    # Rules 3 and 4.  `other` stays: further questions in the new shape go through rule 1, which forgets it.
    if in_a_row < IN_A_ROW + habit.changes:
        return habit
    return replace(habit, shape=shape, changes=habit.changes + COSTLY)
