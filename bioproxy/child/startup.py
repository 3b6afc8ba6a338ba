"""The start of one process with llama.cpp: waits until the process answers, has ended, or has had its time.

Three things can come first, and they come from three sides: an answer to a question that is asked here, the end of the
process, which Twisted reports, and a timer.  With threads this would be a condition variable and a race.  Here it is
one Deferred, that of the questions: the end of the process cancels it, the timer cancels it, and otherwise it fires
when llama.cpp answers.  Twisted runs one callback at a time, so exactly one of the three is first.

Each of them leaves the others harmless.  A Deferred that has fired takes a later `cancel` quietly, and `addTimeout`
takes its timer back when the Deferred fires.  So nothing has to be tidied up, and a test can look whether a timer was
left.

What cannot be told from inside is *who* has cancelled: the coroutine may itself be cancelled, because bioproxy stops.
The process is asked then.  If it has ended, that was the reason; if not, the cancellation is passed on.

Does not know why the process was started, what its end means, or when the next one may be started
(`bioproxy.child.life`).
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from enum import Enum
from typing import Any

from twisted.internet.defer import CancelledError, Deferred, TimeoutError
from twisted.internet.task import deferLater

from bioproxy.child.process_output import ProcessOutput

LOOK = 0.25
"""Seconds between two looks whether a new process answers.

Halved, twice as many small requests during a start; doubled, requests that wait begin up to half a second late.
"""

START_LIMIT = 900.0
"""Seconds that a process may take until it answers; then it is killed, and the start has failed.

A model of 100 GB from a slow disk takes ten minutes.  Halved, such a model could never be loaded; doubled, requests
wait longer for a llama.cpp that hangs, if `queue_timeout` lets them.
"""


class Start(Enum):
    """How the start of a process has ended."""

    ANSWERS = "answers"
    """It answers, and runs."""

    ENDED = "ended"
    """It has ended before it answered; its last lines may say why."""

    LATE = "late"
    """It has had its time, and was killed; its end is yet to be reported."""


async def until_up(
    process: ProcessOutput,
    look: Callable[[], Coroutine[Any, Any, None]],
    is_up: Callable[[], bool],
    limit: float,
    reactor: Any,
) -> Start:
    """Wait until a process that was just started answers, has ended, or has had its time.

    `look` asks llama-server how it is, and `is_up` tells what the last look has found.  `limit` is in seconds;
    `reactor` is the clock.
    Fires with how the start has ended.  Fails with what `look` fails with.  Cancelling ends the waiting, and leaves the
    process as it is.
    """
    looking = Deferred.fromCoroutine(_look_until_up(look, is_up, reactor))
    # Runs at once if the process could not even be started: the first look is then cancelled before it is answered.
    process.gone.addCallback(lambda _: looking.cancel())
    try:
        await looking.addTimeout(limit, reactor)
    except TimeoutError:
        # It had its time, and may not react to anything any more, so it is not asked to end.
        process.kill()
        return Start.LATE
    except CancelledError:
        # By the end of the process; otherwise by the code that waits for this.
        if not process.ended:
            raise
        return Start.ENDED
    return Start.ANSWERS


async def _look_until_up(
    look: Callable[[], Coroutine[Any, Any, None]], is_up: Callable[[], bool], reactor: Any
) -> None:
    """Look again and again until llama-server answers.  Cancelling ends that."""
    # `is_up` may still be true from the process before.  A look that begins after the start can only have been answered
    # by the new one, so what was found before the first look counts for nothing.
    await look()
    while not is_up():
        await deferLater(reactor, LOOK)
        await look()
