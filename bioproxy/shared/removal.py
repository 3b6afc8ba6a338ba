"""Which files of the shared shelf are removed when there are too many.

The rules are those of a single bioproxy's files (`bioproxy.slot_files.removal`): learned prompts and conversations have
a limit each, and what was not used for the longest time goes first.  Some things are different where many share:

* When a file was used is the time of its entry, by the file system's own clock, so it means the same to everybody.
* Templates have no limit, but a template that is in nobody's configuration any more would stay for ever.  So their
  files go after a month without any use.
* Of two files of the same prompt and model, published by two processes at the same time, the older one goes.
* A disk that is full, although no limit is reached, would take nothing new.  So some room is made there, too.
* A new file is protected for a while in any case, so that nobody removes what somebody else has just published.

One process at a time removes, the one with the lease `REMOVAL`.  If two did, nothing would break: a missing file is no
error.

Nothing here asks a clock or a disk.  All times are given, by one clock, so that an age is a difference of two times of
the same clock whatever machine this is.

Pure: what is there goes in, what is to be removed comes out.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from bioproxy.shared.entry import SharedEntry
from bioproxy.slot_files.snapshot import CONVERSATION, PROMPT, TEMPLATE, Id, class_of

REMOVAL = "removal"
"""The key of the lease of the process that removes.  No prompt's lease has this name: those have a dot."""

INTERVAL = 60.0
"""Seconds between two rounds of removal.

Halved, each process reads the times of all entries twice as often; doubled, the limits are exceeded for twice as long.
"""

PROTECTED = 60.0
"""Seconds after its last use for which no file is removed.

Halved, a process that was slow to fetch it may find it gone; doubled, a burst of large files exceeds the limit longer.
"""

UNUSED_TEMPLATE = 30 * 86400.0
"""Seconds without any use after which a template's file is removed.

Halved, a template that is used once a month is computed anew; doubled, files of old configurations stay for two months.
"""

STRAY = 3600.0
"""Seconds after which a file without an entry counts as left by a process that died.

Halved, a slow writer of a large file might be taken for dead; doubled, the disk is full for longer after a crash.
"""


@dataclass(frozen=True)
class Limits:
    """Bytes of all files of a class, at most."""

    prompts: int
    """Those of learned prompts (``prompts_limit``)."""
    conversations: int
    """Those of conversations (``conversations_limit``)."""


def to_remove(
    entries: Iterable[SharedEntry], used_at: Mapping[str, float], now: float, limits: Limits, missing: int = 0
) -> list[str]:
    """Return the stems of the entries to remove.

    `used_at` has the time of each entry's last use and `now` the present time, in seconds by the same clock.  An entry
    without a time is gone already.  `missing` is how many bytes should become free in any case.
    """
    # Those that were not used for longest come first, and go first.
    by_use = sorted((each for each in entries if each.stem in used_at), key=lambda each: used_at[each.stem])
    newest: dict[Id, list[SharedEntry]] = {}
    for each in by_use:
        newest.setdefault((each.name, each.kind), []).append(each)
    removed: list[str] = []
    excess = {PROMPT: -limits.prompts, CONVERSATION: -limits.conversations}
    for each in by_use:
        if (of_class := class_of(each.name, each.kind)) in excess:
            excess[of_class] += each.snapshot.size
    for each in by_use:
        of_class, age = class_of(each.name, each.kind), now - used_at[each.stem]
        # A time in the future is of a clock that was set back; it counts as new.
        if age < PROTECTED:
            continue
        if any(each.replaced_by(other) for other in newest[each.name, each.kind]):
            unwanted = True
        elif of_class == TEMPLATE:
            unwanted = age >= UNUSED_TEMPLATE
        else:
            unwanted = excess[of_class] > 0 or missing > 0
        if unwanted:
            removed.append(each.stem)
            missing -= each.snapshot.size
            if of_class in excess:
                excess[of_class] -= each.snapshot.size
    return removed
