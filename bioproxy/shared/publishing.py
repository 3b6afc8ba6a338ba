"""Puts what this process has saved on the shared shelf.

A save is noted when it is recorded, and published soon after, outside the gate: copying a large file to a network disk
takes seconds, and no user should wait for that.  Of several saves of the same prompt only the latest is published.

A failure is no reason to try again: the disk is in trouble or full, and the next save of the prompt comes anyhow.

Does not know who saves, and when.
"""

from __future__ import annotations

from functools import partial

from twisted.internet.defer import DeferredLock
from twisted.logger import Logger

from bioproxy.prompts.prompt_ids import learned_id
from bioproxy.runtime.metrics import Metrics
from bioproxy.shared.disk import Unusable
from bioproxy.shared.local_files import LocalFiles
from bioproxy.shared.view import PATIENCE, SharedView
from bioproxy.slot.snapshot import CHAT, PART, Id, Snapshot

COPY_SECONDS = 300.0
"""Seconds that copying a file may take when nobody waits for it.

Halved, files of many gigabytes are not shared over a slow network; doubled, a call that hangs is noticed later.
"""


class Publishing:
    """Publishes one file at a time.

    Invariant: `waiting` has at most one file for each id, the one that was saved last.
    """

    log = Logger()

    waiting: dict[Id, Snapshot]
    """What was saved here and not published yet."""

    def __init__(self, view: SharedView, local: LocalFiles, metrics: Metrics) -> None:
        self.waiting = {}
        self._view = view
        self._local = local
        self._metrics = metrics
        self._lock = DeferredLock()

    def saved(self, name: str, kind: str, entry: Snapshot) -> None:
        """Note that a file was saved, to be published soon."""
        # The beginning of a prompt is only of use to whoever goes on computing it, which is mostly the same process.
        if kind != PART:
            self.waiting[name, kind] = entry

    async def publish_all(self) -> None:
        """Publish what was saved since the last call.

        Fires when all of it is there, or the folder cannot be used; never fails.  Cancelling leaves the rest for later.
        """
        while self.waiting and self._view.usable:
            await self.publish(next(iter(self.waiting)))

    async def publish(self, id: Id) -> None:
        """Publish the file of one id, if it was saved since its last publication.  Fires and never fails."""
        await self._lock.acquire()
        try:
            entry = self.waiting.pop(id, None)
            if entry is not None and self._view.usable:
                await self._publish(*id, entry)
        except Unusable as error:
            self._metrics.shared_files.labels("published", "failed").inc()
            self.log.info("{prompt} is not shared: {error}", prompt=id[0], error=error)
        finally:
            self._lock.release()

    async def _publish(self, name: str, kind: str, entry: Snapshot) -> None:
        """Put a file on the shelf, and remove what it takes the place of.  Fails with `Unusable`."""
        source, folder = self._local.path_of(entry), self._view.folder
        if source is None:
            return
        # The last conversation on a template is called after the template here.  Elsewhere it is one of many.
        if kind == CHAT and entry.conversation is not None:
            name = learned_id(entry.conversation.digest)
        work = partial(folder.publish, source, name, kind, entry)
        shared = await self._view.disk.call(work, COPY_SECONDS, late_is_trouble=False)
        self._metrics.shared_files.labels("published", "ok" if shared is not None else "missing").inc()
        # It was replaced by a newer one already, which is published next.
        if shared is None:
            return
        self._metrics.shared_bytes.labels("published").inc(entry.size)
        self._view.mirror.add([shared.stem], [shared])
        old = self._view.mirror.superseded(shared)
        if old:
            await self._view.disk.call(partial(folder.remove, old), PATIENCE)
            for stem in old:
                self._view.mirror.drop(stem)
