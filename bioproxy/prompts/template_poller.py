"""Watches the template files: always has every template's current text, or knows why not.

There is an operating system call for being told of changes (inotify), but it is silent on network folders and
looks different on each system.  Looking every two seconds with `stat` costs a few microseconds a file and works
everywhere.  Only a file whose `stat` changed is read again.

Reading files *blocks*: the function returns when the disk has answered, and for that long a Twisted program,
which has one thread, would do nothing else.  `deferToThread` runs a function in a thread of a pool and gives a
`Deferred` for its result, which arrives back in the one thread.  So the functions in `bioproxy.prompts.templates` are
plain blocking Python, and this class decides where they run; its own attributes are only ever touched in
the one thread and need no lock.

Both the poller and a request ask through `look`, so a request never gets a text older than the files.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from twisted.internet.defer import Deferred, FirstError, gatherResults
from twisted.logger import Logger

from bioproxy.prompts import templates
from bioproxy.prompts.templates import FileStamp, Template, Text
from bioproxy.runtime.errors import TemplateError
from bioproxy.runtime.metrics import Metrics

InThread = Callable[[Callable[[], "Reading"]], "Deferred[Reading]"]
"""Runs a blocking function elsewhere; the Deferred fires with its result."""


@dataclass(frozen=True)
class Reading:
    """One reading of a template: its text or the error, and the stamps of the files when it was read.

    `since` is when just these stamps were first seen, by the monotonic clock; `settled` tells whether they are old
    enough to prove, when they are seen again, that nothing changed.
    """

    text: Text | None
    error: TemplateError | None
    stamps: dict[Path, FileStamp]
    since: float
    settled: bool


class TemplatePoller:
    """Has a `Reading` of every template; none of them older than the last `poll`."""

    log = Logger()

    def __init__(self, known: Iterable[Template], in_thread: InThread, metrics: Metrics) -> None:
        self.templates = {template.name: template for template in known}
        self.readings: dict[str, Reading] = {}
        self._gone: set[str] = set()
        self._in_thread = in_thread
        self._metrics = metrics

    def use(self, known: Iterable[Template]) -> set[str]:
        """Watch these templates instead; those that stay are not read again.

        Returns the names of those that are gone, or another file now.
        """
        before = self.templates
        self.templates = {template.name: template for template in known}
        others = {name for name, template in before.items() if self.templates.get(name) != template}
        for name in others:
            self.readings.pop(name, None)
        self._gone = (self._gone | before.keys()) - self.templates.keys()
        self._forget_gone()
        return others

    async def poll(self) -> None:
        """Look at all templates, side by side: one on a slow disk keeps no other waiting."""
        self._forget_gone()
        looks = [Deferred.fromCoroutine(self._update(each)) for each in self.templates.values()]
        try:
            # `consumeErrors`: an error that is raised here need not be logged as one that nobody looked at.
            await gatherResults(looks, consumeErrors=True)
        except FirstError as error:
            error.subFailure.raiseException()

    async def look(self, template: Template) -> Text:
        """Return the template's text as it is on disk now.  Raises `TemplateError`."""
        reading = await self._update(template)
        if reading.text is None:
            assert reading.error is not None
            # A new exception each time: one that was raised before carries the traceback of that time along.
            raise TemplateError(str(reading.error))
        return reading.text

    def text(self, name: str) -> Text | None:
        """Return a template's text as it was last read, or `None` while there is none."""
        reading = self.readings.get(name)
        return None if reading is None else reading.text

    async def _update(self, template: Template) -> Reading:
        last = self.readings.get(template.name)
        reading = await self._in_thread(lambda: refresh(template, last))
        if reading is not last and self.templates.get(template.name) == template:
            self.readings[template.name] = reading
            self._tell(template, last, reading)
        return reading

    def _forget_gone(self) -> None:
        """Leave no numbers of templates that are not watched any more; a request may still have added to them."""
        for name in self._gone:
            self._metrics.forget(name)

    def _tell(self, template: Template, last: Reading | None, reading: Reading) -> None:
        """Count and log what is wrong, but only when it is news."""
        if last is None:
            self._metrics.expect(template.name)
        told = frozenset() if last is None else frozenset(error_texts(last))
        for problem in error_texts(reading):
            if problem not in told:
                self._metrics.template_errors.labels(template.name).inc()
                # The error of a template itself begins with its name.
                what = problem if reading.error is not None else f"template {template.name}: {problem}"
                self.log.warn("{what}", what=what)
        old, new = last.text if last is not None else None, reading.text
        if old is not None and new is not None and old.digest != new.digest:
            self.log.info("template {name} changed", name=template.name)


def error_texts(reading: Reading) -> tuple[str, ...]:
    """Return everything that is wrong with a template, for a person."""
    if reading.error is not None:
        return (str(reading.error),)
    return reading.text.errors if reading.text is not None else ()


def refresh(template: Template, last: Reading | None) -> Reading:
    """Read a template again if a file changed, else return `last` itself.  Blocking: runs in a thread.

    Equal stamps prove nothing so soon after a change: a second one within the same tick of the file system's clock that
    keeps the size leaves the same stamp.  (git calls such a file "racily clean".)  So a file is read until a reading
    began when its stamp had been there for longer than a tick.  By our monotonic clock: the wall clock, with which the
    dates of files could be compared, may have been set meanwhile, and a file server has another one.
    """
    began = time.monotonic()
    paths = [template.path] if last is None else list(last.stamps)
    stamps = {path: templates.stamp(path) for path in paths}
    if last is not None and last.settled and stamps == last.stamps:
        return last
    text, trouble = None, None
    try:
        text = templates.read(template)
    except TemplateError as error:
        trouble = error
    else:
        # An include that is new here was not looked at before it was read, so what was read may be older than its
        # stamp: but its stamp is new, too, and so the next round reads it once more.
        watched = [template.path, *text.includes]
        stamps = {path: stamps[path] if path in stamps else templates.stamp(path) for path in watched}
        # Computed on first use and kept; for a large text that takes a while, so it is done here, in the thread.
        _ = text.digest, text.prefix_digest, text.spelled
    since = last.since if last is not None and stamps == last.stamps else time.monotonic()
    return Reading(text, trouble, stamps, since, began - since > templates.COARSE)
