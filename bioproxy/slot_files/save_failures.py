"""Saves that have failed: in which ways a save can fail, and when it is not worth trying again for a while.

Everything that breaks off a save ends as a `SaveFailed`, because callers treat all of it alike: they go on without a
file.  Only one question needs the cause: would the next save fail, too?  A full disk or a wrong folder fails every save
until somebody does something about it, and computing a prompt for minutes only to fail at its save would be a waste.  A
slot that another request has used, a llama-server that died, or one file that is too large say nothing about the next
save.

A single prompt that fails again and again may be at fault itself.  So a pause begins when the saves of *two* prompts
have failed, without a successful one in between.

Nothing of Twisted runs here.  A pause is a time on the reactor's clock, which is compared when somebody asks; there is
no timer that a stop would have to cancel.  This clock stands still while bioproxy cannot run, so a night in which the
machine slept does not count as a pause.

Does not know what a save consists of (`bioproxy.slot_files.saving`).
"""

from __future__ import annotations

from twisted.internet.interfaces import IReactorTime

from bioproxy.runtime.backoff import Backoff
from bioproxy.runtime.errors import UpstreamError, UpstreamTimeout


class SaveFailed(Exception):
    """The slot could not be saved.  The text says why, for operators.

    It stands for every error in a save, because callers handle all of them in the same way.
    """


class SlotChanged(SaveFailed):
    """Another request used the slot, or llama-server has changed, meanwhile; the next save may succeed.

    This is a class of its own because it causes no pause: the disk is not at fault.
    """


class TooLarge(SaveFailed):
    """The file would be larger than the limit of all files of its class; a smaller one may still be saved.

    It causes no pause either.  Saving the same tokens again would be useless before the limit is changed.
    """


SAYS_NOTHING_OF_THE_DISK = SlotChanged, TooLarge, UpstreamError, UpstreamTimeout
"""Errors after which the next save may well succeed."""

SHORTEST_PAUSE, LONGEST_PAUSE = 30.0, 600.0
"""Seconds without saving after saves of two prompts have failed; doubled with each failure in a row.

During a pause no prompt is warmed up only to save it.  Half the shortest: a full disk is tried
twice as often, each time after a warm-up.  Twice the longest: after space was freed on the disk, it
takes up to twenty minutes until saving is tried again.
"""


class SavePause:
    """Whether saving pauses.

    Invariant: it does only after saves of two prompts have failed for a reason that the next save would meet as well,
    and no save has succeeded since.
    """

    def __init__(self, clock: IReactorTime) -> None:
        """Begin without a failure; `clock` measures the pauses."""
        # The prompts whose last save failed.
        self._failed: set[str] = set()
        # Not lengthened at random, as the pauses of warm-ups are: there is one pause for all files, so nothing that
        # failed together would be tried again together.
        self._backoff = Backoff(clock, SHORTEST_PAUSE, LONGEST_PAUSE, jitter=0)

    @property
    def in_force(self) -> bool:
        """Whether saving pauses because it has failed, and would probably fail again."""
        # Asked before anything is computed or begun only to save it.  A save itself does not ask: when it is called,
        # the content is there already, so saving may as well be tried.
        return self._backoff.waiting() is not None

    def end(self) -> None:
        """End a pause, because an operator expects saving to work now."""
        # The operator's request counts like a success: if saving fails again, the next pause is the shortest again.
        self._backoff.over()

    def failed(self, name: str, error: Exception) -> None:
        """Note that a save of this prompt ended with this error, and pause if another prompt could not be saved either.

        A repeated failure of the same prompt counts once.
        """
        # A single prompt may be too large, or have an unsuitable name, and must not keep the others from being saved.
        if isinstance(error, SAYS_NOTHING_OF_THE_DISK):
            return
        # Two are enough to know: each conversation has a name of its own, and a disk may be full for weeks.
        if len(self._failed) < 2:
            self._failed.add(name)
        if len(self._failed) > 1:
            self._backoff.failed()

    def succeeded(self) -> None:
        """Note that a file was saved: earlier failures had another cause, and the next pause is the shortest again."""
        self._backoff.over()
        self._failed.clear()
