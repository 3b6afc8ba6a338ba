"""Takes, renews and gives up leases, as `bioproxy.shared.leases` decides.

A lease lives in two places.  `Leases` decides, in memory and in the reactor's thread, whether it is free and which file
has to be created; a thread does that on the disk; and only when the disk has said yes, `Leases` is told.  In this order
a process never believes that it has a lease which it has not.  The other way round there is a gap: a process that ends,
or whose coroutine is cancelled, after the file was created and before that was noted leaves a lease without a holder.
It has no beats, so twenty seconds later it counts for nothing.  That is why no step here has to be undone.

A claim that cannot be made because the disk is in trouble is no obstacle: then each process computes for itself, as
without a shared shelf.

On Twisted: a thread cannot be cancelled, so "cancelling" means only that nobody waits for it any more
(`bioproxy.shared.disk`).

Does not know what a lease is for.
"""

from __future__ import annotations

from contextlib import suppress
from functools import partial

from bioproxy.shared.disk import Unusable
from bioproxy.shared.view import PATIENCE, SharedView


class Claims:
    """The leases of this process, on the disk.

    Invariant: what `Leases.mine` has was created by this process.  What cannot be removed dies by itself.
    """

    def __init__(self, view: SharedView) -> None:
        """Keep the leases of the folder that `view` shows."""
        self._view = view

    async def take(self, key: str) -> bool:
        """Take a lease; fire with whether this process has it now.

        Fails with `Unusable`.  Cancelling stops waiting; a lease that is created nevertheless dies by itself.
        """
        leases, files = self._view.leases, self._view.folder.leases
        # Taken before and not given up yet: a warm-up that was interrupted goes on.
        if key in leases.mine:
            return True
        # Somebody else holds it and is alive.
        file = leases.file_to_create(key)
        if file is None:
            return False
        # Of several processes that create the same file one succeeds.
        work = partial(files.create, file, leases.content(0))
        if not await self._view.disk.call(work, PATIENCE):
            return False
        leases.got(key, file)
        return True

    async def renew(self) -> None:
        """Tell the others that this process is alive, where that is due.  Fails with `Unusable`."""
        leases, files = self._view.leases, self._view.folder.leases
        for file, content in leases.to_renew():
            # Only if it is still this process's: another one may have taken over, and given up again.
            mine = leases.holder.encode() + b" "
            if not await self._view.disk.call(partial(files.renew, file, content, mine), PATIENCE):
                leases.lost(file)

    async def give_up(self, key: str) -> None:
        """Give up a lease, if this process has it.  Fires and never fails."""
        names = self._view.leases.give_up(key)
        if names:
            # If that fails, the lease has no beats from now on, and the others find out.  `Leases` has forgotten it
            # already, so nobody renews it by mistake.
            with suppress(Unusable):
                await self._view.disk.call(partial(self._view.folder.leases.remove, names), PATIENCE)

    async def give_up_all(self) -> None:
        """Give up all leases, because this process stops.  Fires and never fails."""
        # A copy, because giving up takes the key out of the dictionary.
        for key in list(self._view.leases.mine):
            await self.give_up(key)
