"""Keeps the shared folder in order, once a minute: tells which prompts are used, and removes what is too much.

What is removed is decided elsewhere (`bioproxy.shared.removal`).  It is carried out here: the times of use are noted on
the disk first, then one process collects the times of all entries, and removes what the rules say together with what
others have left that died.

On Twisted: the collecting and removing is one function that runs in a thread from its first line to its last, with
values that nobody else changes.  The reactor's thread only waits for its result, and then forgets the entries.

Two things make it safe that many processes share one folder and each may die at any moment.  Removing is idempotent: a
file that is gone already is no error, so two processes that remove the same do no harm, and one that dies in the middle
leaves the rest to the next.  And removing takes the entry first, then the file: a reader finds a complete pair or no
entry.  The lease is there to save work, not for safety.

Does not know what is published or fetched, and why.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from functools import partial

from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger

from bioproxy.prompts.prompt_shape import Key
from bioproxy.runtime.metrics import Metrics
from bioproxy.shared.claims import Claims
from bioproxy.shared.disk import Unusable
from bioproxy.shared.entry import SharedEntry
from bioproxy.shared.local_files import LocalFiles
from bioproxy.shared.publishing import COPY_SECONDS
from bioproxy.shared.removal import INTERVAL, REMOVAL, STRAY, Limits, to_remove
from bioproxy.shared.view import PATIENCE, SharedView
from bioproxy.slot_files.folder import RESERVE


class Upkeep:
    """What is done once a minute.

    Invariant: at most one process removes at a time, as long as leases can be written.  Each process tells its own
    uses; one of them removes for all.
    """

    log = Logger()

    def __init__(
        self,
        view: SharedView,
        local: LocalFiles,
        claims: Claims,
        find: Callable[[str, Key], SharedEntry | None],
        metrics: Metrics,
        clock: IReactorTime,
    ) -> None:
        """Keep the folder of `view` in order.

        `local` tells what was used here, and `find` returns the entry of a prompt; `claims` has the lease for removing.
        `clock` measures the minute.
        """
        self._view = view
        self._local = local
        self._claims = claims
        self._find = find
        self._metrics = metrics
        self._clock = clock
        self._done_at = clock.seconds()
        # When each prompt was used, as far as the others were told, by id.  ISO 8601 as in the record; compared for
        # being equal only.
        self._told_uses: dict[str, str] = {}

    async def do(self, limits: Limits, lacking: int) -> None:
        """Tell the uses of this process, and remove what is too much, if the last time is a minute ago.

        Called after each round of publishing; most calls return at once.

        `lacking` is the size of a file for which there was no room, in bytes.  Fires when that is done or the folder
        cannot be used; never fails.  Cancelling stops waiting for the disk.
        """
        if self._clock.seconds() - self._done_at < INTERVAL:
            return
        # The first time comes a minute after the start, when all entries were read; a process that removes with half of
        # them in mind would take the limits for kept.
        # Noted before the work and not after it, so that a disk in trouble is not asked again with each call.
        self._done_at = self._clock.seconds()
        # Trouble is logged by `Disk`, and the next minute is early enough.
        with suppress(Unusable):
            await self._tell_uses()
            await self._remove(limits, lacking)

    async def _tell_uses(self) -> None:
        """Tell the others which prompts were used here, so that these are not removed.

        Fails with `Unusable`; then the uses of this minute are told with the next use.
        """
        view = self._view
        # A prompt that is warm here is not fetched again, so without this its file on the shelf would look unused, and
        # go while everybody relies on it for the next start. The uses of conversations need not be told: one that goes
        # on is published again.
        told, self._told_uses = self._told_uses, {}
        touched: list[str] = []
        for name, key, last_used in self._local.prompt_uses():
            self._told_uses[name] = last_used
            shared = self._find(name, key)
            # Only what has changed since the last minute.  The times are compared for being different and not for being
            # later, so a clock that was set back does no harm.
            # What was used before this process began was told by another one, or is long ago.
            if shared is not None and told.get(name, last_used) != last_used:
                touched.append(shared.stem)
        # A time on the disk is the whole message; no process need be asked who has used what.
        # One call for all of them: each call costs a thread, and on a network disk some round trips.
        if touched:
            await view.disk.call(partial(view.folder.touch, *touched), PATIENCE)

    async def _remove(self, limits: Limits, lacking: int) -> None:
        """Remove what is too much, unless another process does.

        Fails with `Unusable`.  Cancelling stops waiting; the thread removes what it was asked to, and the next look
        shows what is gone.
        """
        view = self._view
        # The bioproxy that is first this minute does it for all.  The others find the lease held, or nothing left to
        # do.
        try:
            if not await self._claims.take(REMOVAL):
                return
        except Unusable:
            # On a full disk no lease can be written, and making room is what matters.  Several may do it at once then,
            # which is harmless, as said above.
            if not view.usable:
                raise
        # The limits are this process's own; where processes have others, the lowest ones count, since each removes by
        # its own. Copied here, in the reactor's thread.  A dictionary that grows while another thread goes through it
        # raises `RuntimeError` there, at a moment that no test finds.
        entries, folder = list(view.mirror.entries.values()), view.folder

        # One call and not four, so that the times are of one moment and the lease is held as shortly as possible.
        def work() -> tuple[list[str], int]:
            """Collect the times, and remove; return the stems that were removed, and how many leftovers."""
            # All times are of one clock, that of the file system, so that differences between them mean something.
            now = folder.now()
            # What the last file lacked, and the space that must stay free on any disk.
            missing = lacking + RESERVE - folder.free() if lacking else 0
            # Decided by the times of use of this moment, not by those of the last look, which has none.
            removed = to_remove(entries, folder.used_at(), now, limits, missing)
            folder.remove(removed)
            return removed, folder.remove_strays(now - STRAY)

        try:
            removed, strays = await view.disk.call(work, COPY_SECONDS, copies=True)
        finally:
            # Also after trouble.  If this fails as well, the lease has no more beats, and another process takes over.
            await self._claims.give_up(REMOVAL)
        # At once, and not with the next look: no request should begin to fetch what is gone.  Other processes may still
        # do so for two seconds; their fetch finds nothing, and they compute.
        for stem in removed:
            view.mirror.drop(stem)
        self._metrics.shared_files.labels("removed", "ok").inc(len(removed))
        if removed or strays:
            text = "removed {files} files from the shared shelf, and {strays} leftovers"
            self.log.info(text, files=len(removed), strays=strays)
