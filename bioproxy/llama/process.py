"""One process of llama-server, as a value.

bioproxy outlives llama-server: an operator restarts it with another model, it crashes, or it is replaced by another
build.  What was learned from one process (what its slot holds, which model it runs, whether it writes slot files) says
nothing about the next one.  So everything that is known about a process stands together in one frozen value, and when
llama-server turns out to be another process, the whole value is replaced.  Nothing can be left over from the old one,
as could happen with a set of attributes of which one is forgotten.

`bioproxy.llama.process_watch.ProcessWatch` holds the current value.  Code that needs a part of it reads it there, at
the moment of need, and keeps no copy; a reader that wants to know later whether it still talks to the same process
keeps the value and compares it with `==`.

Pure: this module asks nobody and decides nothing.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, field

from bioproxy.llama.answers import Props


@dataclass(frozen=True)
class LlamaProcess:
    """What is known about one process of llama-server.

    Two values are equal if their `serial` is: they then describe the same process, perhaps at different moments.  The
    other fields are left out of the comparison, because a process that falls asleep, or of which one more fact was
    found out, is still the same process.
    """

    serial: int
    """Counts the processes that were met, from 1 on.

    A process that was out of reach for a moment gets a new number although it may be the same one: builds without a
    random marker (`bioproxy.llama.answers.FIXED_MARKER`) cannot be told apart, and a mistake in this direction costs a
    few requests, in the other direction wrong answers.
    """

    props: Props = field(compare=False)
    """What the process says about itself: model file, build, context, number of slots, whether it sleeps, and so on.

    As old as the last look.
    """

    slot_files: bool | None = field(default=None, compare=False)
    """Whether it runs with ``--slot-save-path``; `None` as long as it was not asked, because asking would wake it."""


NOT_MET = LlamaProcess(0, Props(None, None, sys.maxsize, "", "", asleep=False))
"""Stands for the process while none was met: it names no model, sets no limit on the context, and is awake.

A value instead of `None`, so that readers need no second case for the first two seconds.
"""
