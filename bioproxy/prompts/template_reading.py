"""One reading of a template, and how to find out whether a newer one is needed.

A `Reading` is what the files said, with the *stamps* (results of `stat`) that they had then.  While the stamps stay the
same, so do the files, unless two writes came so fast that both have one stamp; `read_if_changed` says how that is
ruled out.

`stat` blocks until the disk has answered, which may take minutes on a network.  So everything here that touches a file
is called in a thread, by `bioproxy.prompts.template_poller`.  It is written for that: a function gets values that
nobody changes and returns new ones, so no lock is needed.  A visit to a thread costs ten times as much as a `stat`,
because two threads must wake each other up.  That is why `changed_among` looks at many templates in one visit, and
`by_disk` says which of them can share it without waiting for each other's disks.

Does not know Twisted, which thread it runs in, or how often it is called.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from bioproxy.prompts import templates
from bioproxy.prompts.templates import FileStamp, Template, TemplateText
from bioproxy.runtime.errors import TemplateError


@dataclass(frozen=True)
class Reading:
    """The result of reading a template once.

    Invariant: exactly one of `text` and `error` is not `None`.
    """

    text: TemplateText | None
    """The template's text with its includes."""
    error: TemplateError | None
    """Why there is no text."""
    stamps: dict[Path, FileStamp]
    """The stamp of the template file and of each included file, taken before the content was read if possible."""
    since: float
    """When these stamps were first seen, in seconds of the monotonic clock."""
    settled: bool
    """Whether equal stamps at the next poll will prove that no file has changed; see `read_if_changed`."""


def error_texts(reading: Reading) -> tuple[str, ...]:
    """Return a human-readable description of each problem with a template; none if all is well."""
    # Either the template itself cannot be read, or some of its includes cannot.
    if reading.error is not None:
        return (str(reading.error),)
    return reading.text.errors if reading.text is not None else ()


def read_if_changed(template: Template, last: Reading | None) -> Reading:
    """Return a new reading if a file of the template may have changed since `last`, else `last` itself.

    Blocking, runs in a thread, touches nothing but its parameters.

    Equal stamps do not always prove that a file is unchanged.  A file system stores times in ticks, from nanoseconds up
    to two seconds.  If a file is written, read, and written again with the same size within one tick, both versions
    have the same stamp, and the second one would never be noticed.  (git has the same problem, and calls such a file
    "racily clean".)  The solution is that a reading is not trusted while its stamps are young: it is repeated at each
    poll until one of them *began* more than a tick after the stamps were first seen.  Any later write then gets another
    time.

    The age is measured with the monotonic clock, from the moment when this process first saw the stamps.  Comparing the
    file's time with the wall clock would be simpler, but wrong: the clock of a file server may differ by minutes, and
    the wall clock can be set.
    """
    # The order is essential: first the stamps, then the contents.  If a file is written in between, the new content is
    # stored with the old stamp, the next poll sees another stamp, and the file is read once more.  The other way round,
    # the old content would be stored with the new stamp, and the change would be lost.
    began = time.monotonic()
    paths = [template.path] if last is None else list(last.stamps)
    stamps = {path: templates.stamp(path) for path in paths}
    if last is not None and last.settled and stamps == last.stamps:
        return last
    text, error = None, None
    try:
        text = templates.read(template)
    except TemplateError as raised:
        error = raised
    else:
        # Which files are included is known only after reading.  The stamp of a new include is therefore taken after its
        # content, the wrong order.  But then the stamps differ from the last ones, so this reading is not settled, and
        # the next poll reads the file once more.
        watched = [template.path, *text.includes]
        stamps = {path: stamps[path] if path in stamps else templates.stamp(path) for path in watched}
        # These properties are computed on first use and then kept.  For a large text that takes long enough to delay
        # other requests, so it is done here, in the thread, and not later in the reactor's.
        _ = text.digest, text.prefix_digest, text.json_escaped
    since = last.since if last is not None and stamps == last.stamps else time.monotonic()
    return Reading(text, error, stamps, since, began - since > templates.COARSEST_FILE_CLOCK)


def by_disk(names: Iterable[str], readings: Mapping[str, Reading]) -> tuple[list[dict[str, Reading]], list[str]]:
    """Divide templates into groups that can be looked at together, and those that have to be read one by one.

    A template is in a group if its reading is settled and all its files are there.  Templates of one group have their
    files on the same disks: if a disk hangs, all of its group would wait for it anyway, and no other group does.  (Only
    a path that leads through a symbolic link on one disk to a file on another one lets a group wait for a disk that has
    none of its files.)  Returns the groups, each as readings by name, and the names of the others.
    """
    groups: dict[frozenset[int], dict[str, Reading]] = {}
    others = []
    for name in names:
        reading = readings.get(name)
        # Where a missing file would be is not known: perhaps on a disk that is not mounted.
        if reading is None or not reading.settled or None in reading.stamps.values():
            others.append(name)
        else:
            # The first number of a stamp is the device.
            disks = frozenset(stamp[0] for stamp in reading.stamps.values() if stamp is not None)
            groups.setdefault(disks, {})[name] = reading
    return list(groups.values()), others


def changed_among(group: Mapping[str, Reading]) -> list[str]:
    """Return the names of those templates whose files have other stamps now than in their settled readings.

    Blocking, runs in a thread, touches nothing but its parameter.  Takes one `stat` for each file, however many
    templates include it.
    """
    stamps = {path: templates.stamp(path) for path in {path for reading in group.values() for path in reading.stamps}}
    return [
        name for name, reading in group.items() if any(stamps[path] != stamp for path, stamp in reading.stamps.items())
    ]
