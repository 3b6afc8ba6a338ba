"""Puts what this process has saved on the shared shelf.

A save is noted when it is recorded, and published soon after, outside the gate: copying a large file to a network disk
takes seconds, and no user should wait for that.  Of several saves of the same prompt only the latest is published.

What a crash leaves at each step: a draft, or a whole file without an entry, which nobody sees and the upkeep removes
after an hour; with its entry, a file like any other.  What was saved and not published is not known to the next
process: it is in the local record, and is published when it is saved again.

What cannot be published stays on the list: while the folder is in trouble nothing is tried, and on a disk that is full
or read-only only after a pause (`bioproxy.runtime.backoff`).  A file that the shelf has already is not put there again.

On Twisted: two services may want to publish at the same moment, the one that does so all the time and the shutdown.  A
`DeferredLock` lets the second one wait: `acquire` returns a Deferred that fires when the first one has released it.

Does not know who saves, and when.
"""

from __future__ import annotations

from functools import partial

from twisted.internet.defer import DeferredLock
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger

from bioproxy.prompts.prompt_ids import learned_id
from bioproxy.runtime.backoff import Backoff
from bioproxy.runtime.metrics import Metrics
from bioproxy.shared.disk import Unusable
from bioproxy.shared.local_files import LocalFiles
from bioproxy.shared.view import PATIENCE, SharedView
from bioproxy.slot_files.snapshot import CHAT, PART, PREFIX, Id, Snapshot

COPY_SECONDS = 300.0
"""Seconds that copying a file may take when nobody waits for it.

Halved, files of many gigabytes are not shared over a slow network; doubled, a call that hangs is noticed later.
"""


SHORTEST_PAUSE = 30.0
"""Seconds until a disk that took no file is tried again; doubled with each failure in a row, up to ten minutes.

Halved, a disk that is full is written to twice as often for nothing; doubled, files are shared later when there is
room.
"""

MOST_WAITING = 1000
"""Files that wait for being published, at most; of more, the oldest ones are not shared.

Halved, fewer conversations of a time without the shared folder are shared afterwards; doubled, twice the memory.
"""


class Publishing:
    """Publishes one file at a time.

    Invariant: `waiting` has at most one file for each id, the one that was saved last.
    """

    log = Logger()

    waiting: dict[Id, Snapshot]
    """What was saved here and not published yet."""

    lacking: int
    """Bytes of the file for which there was no room last; 0 after a success."""

    def __init__(self, view: SharedView, local: LocalFiles, metrics: Metrics, clock: IReactorTime) -> None:
        """Publish files of `local` in the folder of `view`; `clock` measures pauses."""
        self.waiting = {}
        self.lacking = 0
        self._view = view
        self._local = local
        self._metrics = metrics
        self._lock = DeferredLock()
        self._backoff = Backoff(clock, SHORTEST_PAUSE)

    @property
    def trouble(self) -> str | None:
        """Why nothing can be published although the folder can be used, in words for operators; `None` if it can."""
        trouble = self._backoff.current()
        return None if trouble is None else trouble.text

    def saved(self, name: str, kind: str, entry: Snapshot) -> None:
        """Note that a file was saved, to be published soon, in the place of an older one with the same id."""
        # Of three kinds two are published: prompts and conversations.
        # The beginning of a prompt helps only the process that goes on computing it, which is mostly the same one.
        if kind != PART:
            self.waiting[name, kind] = entry
        # While the folder is gone nothing leaves the list.  A dictionary keeps the order in which its keys came, so the
        # first one is the one that has waited longest.
        if len(self.waiting) > MOST_WAITING:
            del self.waiting[next(iter(self.waiting))]

    def forget(self, name: str) -> None:
        """Publish nothing of an id that was saved until now."""
        for kind in (PREFIX, CHAT):
            self.waiting.pop((name, kind), None)

    async def publish_all(self, kind: str) -> None:
        """Publish what was saved of a kind since the last call.

        Fires when all of it is there, or the folder takes nothing; never fails.  Cancelling leaves the rest for later.
        """
        # Two at a time would not be wrong, but both would copy the same file.
        await self._lock.acquire()
        try:
            # A copy, because the list changes during each ``await``.  What was saved once more meanwhile is not as its
            # entry says any more, and its turn comes with the next call.
            for id, entry in [each for each in self.waiting.items() if each[0][1] == kind]:
                # Asked for each file: the one before may have found out that the disk is full.
                if self._view.usable and self._backoff.waiting() is None:
                    await self._publish(id, entry)
        finally:
            self._lock.release()

    async def _publish(self, id: Id, entry: Snapshot) -> None:
        """Publish a file and take it from the list; fires and never fails.

        A file that could not be written because of the disk stays on the list.  One that is gone, or that the shelf has
        already, does not.
        """
        try:
            if await self._put(*id, entry):
                self._backoff.over()
                self.lacking = 0
        except Unusable as error:
            self._metrics.shared_files.labels("published", "failed").inc()
            # What is left is trouble with writing alone: no space, no quota, read-only.
            # Trouble with the folder as a whole has been logged, and ends when the folder can be used again.
            if self._view.usable:
                self.lacking = entry.size
                # One line for each new reason: a disk may be full for days.
                if self._backoff.failed(text=str(error)):
                    self.log.warn("files cannot be put on the shared shelf: {reason}", reason=str(error))
            return
        # Published, or not as its entry says any more; either way it is done with.
        # Unless it was saved once more meanwhile.
        if self.waiting.get(id) is entry:
            del self.waiting[id]

    async def _put(self, name: str, kind: str, entry: Snapshot) -> bool:
        """Put a file on the shelf, and remove what it takes the place of; fire with whether it was written.

        Fails with `Unusable`.
        """
        # `None` on a host that does not see its own slot folder: nothing can be shared from there.
        source, folder, id = self._local.path_of(entry), self._view.folder, (name, kind)
        # The last conversation on a template is called after the template here.  Elsewhere it is one of many.
        if kind == CHAT and entry.conversation is not None:
            name = learned_id(entry.conversation.digest)
        # Two processes may have computed the same prompt, while they could not see each other's leases.
        if source is None or self._view.mirror.has(name, kind, entry):
            return False
        work = partial(folder.publish, source, name, kind, entry)
        shared = await self._view.disk.call(work, COPY_SECONDS, copies=True)
        self._metrics.shared_files.labels("published", "ok" if shared is not None else "missing").inc()
        # It was replaced by a newer one already, which is published next, or removed.  Nothing is wrong with that: a
        # conversation that goes on fast is saved more often than it can be copied.
        if shared is None:
            return False
        # What was linked counts as well: it tells what the shelf gets, not what a network carries.
        self._metrics.shared_bytes.labels("published").inc(entry.size)
        # At once, and not with the next look, or this process would publish it once more.
        self._view.mirror.add({shared.stem: shared})
        old = self._view.mirror.superseded(shared)
        # It was forgotten while it was copied.
        if id not in self.waiting:
            old.append(shared.stem)
        # After the new one is there, so that there is no moment with neither.  If the process dies here, both stay
        # until the limits are reached.
        if old:
            await self._view.disk.call(partial(folder.remove, old), PATIENCE)
            for stem in old:
                self._view.mirror.drop(stem)
        return True
