"""Watches the template files, so that each template's current text is known, or the reason why it cannot be read.

**Why polling.**  Operating systems can report changes of files (inotify on Linux), but not for network file systems,
and differently on each system.  `stat` works everywhere and takes a few microseconds for each file, and every two
seconds is soon enough for files that people edit.  A file is read again only if its `stat` result (its *stamp*) has
changed.

**Why a thread.**  Twisted runs everything in one thread, the reactor's.  Each piece of code runs until it returns or
awaits something, and meanwhile no other request is served.  That is fast and simple as long as nothing blocks, but
reading a file blocks: the call returns when the disk has answered, and a network folder may take minutes.
`deferToThread` is the way out.  It runs a blocking function in a thread of a pool and returns at once with a
`Deferred`, Twisted's object for a result that comes later.  When the function is done, the reactor is woken up, and the
Deferred fires *in the reactor's thread*, where the waiting coroutine goes on behind its `await`.

**Why few visits to threads.**  A visit takes ten times as long as the `stat` that is done there.  So templates that
were read and did not change since are looked at together, in one visit for each disk (`by_disk`).  Only those that have
to be read get a visit of their own.

**Why no lock.**  The functions that run in a thread (`bioproxy.prompts.template_reading`) get values that nobody
changes and return new ones.  They touch no attribute of the poller.  All attributes are read and written in the
reactor's thread, and there no other code runs between two `await`s.  So two threads never see the same changing object.
What can happen is that two readings of one template overlap and end in the wrong order; `_update` says why that does no
harm.

The poller does not know what the texts are for, and does not decide how often it is called (a `Periodic` does).
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Iterable
from typing import Any

from twisted.internet.defer import Deferred, FirstError, gatherResults
from twisted.logger import Logger

from bioproxy.prompts.template_reading import Reading, by_disk, changed_among, error_texts, read_if_changed
from bioproxy.prompts.templates import Template, TemplateText
from bioproxy.runtime.errors import TemplateError
from bioproxy.runtime.metrics import Metrics

InThread = Callable[[Callable[[], Any]], "Deferred[Any]"]
"""Runs a blocking function in another thread and returns a Deferred.

It fires with the function's result, or fails with the exception that the function raised.  A parameter, so that tests
can run the function at once, or later, or never.
"""


class TemplatePoller:
    """Keeps a `Reading` of each template.

    Invariant: after `poll` has finished, no reading is older than the beginning of that `poll`.
    """

    # Twisted's logger as a class attribute: it logs under the name of the class, and knows the instance it was used on.
    log = Logger()

    def __init__(self, known: Iterable[Template], in_thread: InThread, metrics: Metrics) -> None:
        """Prepare for the templates in `known`.  Reads no file: nothing is opened before the services start."""
        self.templates = {template.name: template for template in known}
        """The templates that are watched, by name."""
        self.readings: dict[str, Reading] = {}
        """The latest reading of each template, by name; none of a template that has not been read yet."""
        self._removed: set[str] = set()
        self._in_thread = in_thread
        self._metrics = metrics

    def set_templates(self, known: Iterable[Template]) -> set[str]:
        """Watch these templates from now on; called when the configuration is reloaded.

        A template that stays the same keeps its reading.  Returns the names of those that were removed, or that now
        have another prefix or file.
        """
        # A reading is dropped if anything about its template changed.  A new prefix alone changes nothing on disk, but
        # then the name belongs to another template for everybody who asks by name.
        before = self.templates
        self.templates = {template.name: template for template in known}
        changed = {name for name, template in before.items() if self.templates.get(name) != template}
        for name in changed:
            self.readings.pop(name, None)
        self._removed = (self._removed | before.keys()) - self.templates.keys()
        # A metric that is kept after its template is gone would look like a template that nobody asks for.
        self._forget_metrics_of_removed()
        return changed

    async def poll(self) -> None:
        """Read all templates whose files changed.  Called every few seconds.

        Disks are looked at concurrently, and so are files that have to be read, so a template on a slow disk does not
        delay those on others.  Fires when all are done.  A file that cannot be read is no failure.  Fails with the
        first exception that is a bug, after which the other readings still complete.  Cancelling it ends the waiting;
        the threads finish their reading, unused.
        """
        self._forget_metrics_of_removed()
        groups, others = by_disk(self.templates, self.readings)
        await together([*map(self._update_changed, groups), *(self._update(self.templates[name]) for name in others)])

    async def read_current(self, template: Template) -> TemplateText:
        """Return the template's text as it is on disk now.

        For a request, which so never gets a text that is older than the files.  Usually this costs one visit to the
        thread pool and a few calls of `stat`.

        Fires with the text, fails with `TemplateError`.  Cancelling it ends the waiting; the thread finishes its
        reading, unused.
        """
        reading = await self._update(template)
        # What was just read, not what `self.readings` has now: another reading may have ended since.
        if reading.text is None:
            assert reading.error is not None
            # A new exception for each caller.  Raising adds a traceback to the exception object, so one that is kept
            # and raised for each request would grow, and would keep the frames of all those requests alive.
            raise TemplateError(str(reading.error))
        return reading.text

    def text(self, name: str) -> TemplateText | None:
        """Return a template's text as it was last read, or `None` if it could not be read or has not been yet."""
        reading = self.readings.get(name)
        return None if reading is None else reading.text

    async def _update_changed(self, group: dict[str, Reading]) -> None:
        """Read those templates of a group again whose files changed since these readings.  Fires when that is done."""
        changed: list[str] = await self._in_thread(lambda: changed_among(group))
        # A reload during the `await` may have removed a template.  If it gave the name another file, that one is read.
        await together([self._update(self.templates[name]) for name in changed if name in self.templates])

    async def _update(self, template: Template) -> Reading:
        """Read a template if its files changed, and keep the result.  Fires with the current reading."""
        # `last` is read here, in the reactor's thread, and given to the function.  The lambda does not touch `self`.
        last = self.readings.get(template.name)
        reading: Reading = await self._in_thread(lambda: read_if_changed(template, last))

        # Anything may have happened during the `await`.  The configuration may have been reloaded: then the reading is
        # still right for the request that asked for it, but must not be kept.  Or another reading that began later may
        # have ended earlier, and is now replaced by this older one.  That is corrected by the next poll, because this
        # one has the older stamps, and a request is not concerned, because it uses its own reading.
        if reading is not last and self.templates.get(template.name) == template:
            self.readings[template.name] = reading
            self._report(template, last, reading)
        return reading

    def _forget_metrics_of_removed(self) -> None:
        """Remove the metrics of templates that are no longer configured.

        Done again at each poll: a request that was running during the reload may have created them anew.
        """
        # Names stay in the set until they are configured again.  There are as many as the operator ever removed: few.
        for name in self._removed:
            self._metrics.forget(name)

    def _report(self, template: Template, last: Reading | None, reading: Reading) -> None:
        """Log and count the problems of a template that it did not have at the last reading, and log a change."""
        # With the first reading its counters begin at zero, so that Prometheus sees the first error as an increase.
        if last is None:
            self._metrics.expect(template.name)
        # A template may include thousands of missing files.  A set finds each of them without comparing all with all.
        known = frozenset() if last is None else frozenset(error_texts(last))
        for problem in error_texts(reading):
            if problem not in known:
                self._metrics.template_errors.labels(template.name).inc()
                # The error of a template itself already begins with its name.
                what = problem if reading.error is not None else f"template {template.name}: {problem}"
                self.log.warn("{what}", what=what)
        # A change is logged only if the text is different, not for a file that was saved again without a change.
        old, new = last.text if last is not None else None, reading.text
        if old is not None and new is not None and old.digest != new.digest:
            self.log.info("template {name} changed", name=template.name)


async def together(work: Iterable[Coroutine[Deferred[Any], Any, Any]]) -> None:
    """Run coroutines concurrently.

    Fires when all have ended.  Fails at once with the first exception of one of them; the others go on.  Cancelling it
    cancels all of them.
    """
    # A coroutine does nothing until it is awaited or wrapped.  `Deferred.fromCoroutine` starts it at once and runs it
    # until its first `await`, where the work is handed to a thread.  So after this line all reads are under way.
    started = [Deferred.fromCoroutine(each) for each in work]
    try:
        # A Deferred that failed without any handler is logged as an "unhandled error" when it is garbage-collected.
        # `consumeErrors` marks all of them as handled.  The first one is raised below, so nothing is lost.
        await gatherResults(started, consumeErrors=True)
    except FirstError as error:
        # `gatherResults` wraps the exception to say which Deferred failed.  The caller wants the exception itself.
        error.subFailure.raiseException()
