"""What came of the last tries to warm each prompt up, and how long the next one has to wait for that.

A warm-up that failed waits before the next try, longer after each failure, so that lasting trouble does not keep
llama-server busy.  So does a prompt whose text changes during each of its warm-ups, for example because an included
file contains a clock.  These are two kinds of trouble, with a `Backoff` each: a failure is about a prompt and a process
of llama-server, and is over when either is another one; a change is about the prompt's id alone.

There is no timer.  In Twisted a pause is often a delayed call (`callLater`), which has to be cancelled when its reason
is gone.  Here a pause is a time that is compared with the clock whenever somebody asks, twice a second.

Does not know which prompt is due, or what anybody asked for: `bioproxy.warmup.schedule` does.
"""

from __future__ import annotations

from twisted.internet.interfaces import IReactorTime

from bioproxy.runtime.backoff import Backoff
from bioproxy.warmup.due_reasons import Due

SHORTEST_PAUSE = 2.0
"""Seconds of the pause after the first failure of a warm-up; the pause doubles from there on.

Halved or doubled: the seventh pause in a row is as long as before, a minute.
"""

CHANGES = 2
"""How many times in a row a text may change during its warm-up before the next warm-up has to wait.

An editor that saves twice in a row is nothing unusual.  Halved: such an editor costs a pause of four seconds.  Doubled:
a clock in an include costs four warm-ups in a row instead of two.
"""

CHANGES_PAUSE = 4.0
"""Seconds of the pause after the next such change; the pause doubles from there on, up to a minute.

With a text that changes every five seconds an hour has 56 warm-ups, which take 8 % of the time; without pauses, 91 %.
Halved or doubled: one warm-up more or less.
"""


class Outcomes:
    """The last tries, by the id of the prompt.

    Invariant: nothing is kept of a prompt whose last try has succeeded, or that was forgotten.
    """

    failures: Backoff
    """Warm-ups that failed, each about a prompt's key and a process of llama-server."""

    changes: Backoff
    """Warm-ups during which the text changed."""

    def __init__(self, clock: IReactorTime) -> None:
        """`clock` is what pauses are measured by."""
        self.failures = Backoff(clock, SHORTEST_PAUSE)
        self.changes = Backoff(clock, CHANGES_PAUSE, free=CHANGES)
        # By id, what the last warm-up was begun for, until the prompt is warm.  Only for the log: it decides nothing.
        # (What was begun is not what is going on: a user may have interrupted it.)
        self._begun: dict[str, object] = {}

    def begins(self, due: Due) -> bool:
        """Note that a warm-up begins; return whether that is news.

        Under steady traffic a long warm-up needs dozens of tries.  Only the first one for a reason is worth a line in
        the log, until the prompt is warm.
        """
        occasion = (due.prompt.key, due.reason)
        news = self._begun.get(due.prompt.id) != occasion
        # The prompt itself would keep an old text of many megabytes in memory; its key is enough to tell texts apart.
        self._begun[due.prompt.id] = occasion
        return news

    def changed(self, id: str) -> None:
        """Note that a text changed while it was warmed up: if that goes on, the next warm-ups wait ever longer.

        How long the try took does not matter here, unlike after a failure: the next text may stay for good.
        """
        # About nothing in particular: a change that is noted about its text would be forgotten with the next text, and
        # the next text is just what does not stay.
        self.changes.failed(id)

    def end_pauses(self, id: str) -> None:
        """Let the next try come at once."""
        self.failures.over(id)
        self.changes.over(id)

    def forget(self, id: str) -> None:
        """Forget all tries: the prompt is warm, or gone."""
        self._begun.pop(id, None)
        self.end_pauses(id)
