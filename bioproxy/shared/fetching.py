"""Fetches files from the shared shelf into this process's own slot folder.

A user's request may wait for a file, but never longer than computing its tokens would take: then computing is as good.
A warm-up may wait for minutes, since nobody waits for it.

What a crash leaves at each step: while the file is copied, a draft or a file with a random name, which the next start
removes; after it got its usual name and before it was recorded, a file that no record names, which is removed as well;
after that nothing, since it is a file like any other.

On Twisted: a fetch can be cancelled, because its client has hung up, and a thread cannot.  So the thread is told that
nobody waits for its file any more, and removes the file itself when it is done.

Does not decide what is worth fetching (`bioproxy.shared.bringing`, `bioproxy.shared.prompt_claims`).
"""

from __future__ import annotations

from pathlib import Path

from twisted.internet.defer import CancelledError

from bioproxy.runtime.metrics import Metrics
from bioproxy.shared.disk import Unusable
from bioproxy.shared.entry import SharedEntry
from bioproxy.shared.local_files import LocalFiles
from bioproxy.shared.view import SharedView


class Fetching:
    """Fetches files: at most one for a user and one for a warm-up at a time, as these come one after the other.

    Invariant: outside of its calls there is no file in the slot folder that was fetched and not recorded, except for
    one that a thread still copies.
    """

    tokens: int
    """Tokens that were fetched instead of computed, since the start: what the shelf was good for, in `/status`."""

    def __init__(self, view: SharedView, local: LocalFiles, metrics: Metrics) -> None:
        """Fetch files from the folder of `view`, and record them in `local`."""
        self.tokens = 0
        self._view = view
        self._local = local
        self._metrics = metrics

    async def fetch(self, shared: SharedEntry, patience: float) -> bool:
        """Have a file of the shelf in the slot folder, and recorded; fire with whether it is there now.

        Fails with `Unusable` if that takes longer than `patience` seconds or the disk is in trouble, and with `OSError`
        if the record cannot be written.  Cancelling leaves nothing behind.
        """
        # Older files may be removed for it at this moment, before it is known whether the copy will succeed.  The other
        # order would need the space of both.
        target = self._local.place_for(shared.name, shared.kind, shared.snapshot.size)
        # There is no room for it, within the limits or on the disk.
        if target is None:
            return False
        # Counted in any case: also a cancelled or failed copy has cost something.
        result = "failed"
        try:
            if await self._copy(shared, target, patience):
                # Here again in the reactor's thread, where nothing else runs until the next ``await``.
                # A user and a warm-up may fetch the same file at the same time.  A user does not wait for the warm-up,
                # which has more time, so there is no lock; the file that comes second is not needed.
                if self._local.has(shared.name, shared.kind, shared.snapshot):
                    self._local.discard(target)
                else:
                    self._local.take_over(shared.name, shared.kind, shared.snapshot, target)
                self.tokens += shared.snapshot.tokens
                self._metrics.shared_tokens.inc(shared.snapshot.tokens)
                self._metrics.shared_bytes.labels("fetched").inc(shared.snapshot.size)
                result = "ok"
            else:
                # Removed to make room, or changed by somebody: it is not what its entry says any more.
                # Nor will it be: an entry never changes.  So it is not tried once more.
                result = "missing"
                self._view.mirror.ignore(shared.stem)
        finally:
            self._metrics.shared_files.labels("fetched", result).inc()
        return result == "ok"

    async def _copy(self, shared: SharedEntry, target: Path, patience: float) -> bool:
        """Copy a file to `target`.  Fires with whether it is there and whole; fails with `Unusable`.

        Cancelling stops waiting, and has the file removed, at once or by the thread when it is done.
        """
        # Read here: what the thread uses must not be looked up in objects that this thread may change meanwhile.
        folder, given_up = self._view.folder, False

        # Runs in another thread.  It shares one variable with this coroutine, `given_up`, which only this one writes
        # and only the thread reads, so no lock is needed.
        def work() -> bool:
            """Copy, and remove the copy if nobody waits for it any more.  Called in the other thread."""
            done = folder.fetch(shared, target)
            if done and given_up:
                target.unlink(missing_ok=True)
            return done

        try:
            # A large file takes long without any trouble.
            return await self._view.disk.call(work, patience, copies=True)
        except (Unusable, CancelledError):
            given_up = True
            # The thread may have been done a moment before, and has not read that.  So both remove, and a file that is
            # not there is no error.
            self._local.discard(target)
            raise
