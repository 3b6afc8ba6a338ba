"""What this process sees of the shared folder: the files that are there, and who computes what.

A look reads the names of all entries and the few leases.  Only entries that were not there before are read, since none
ever changes.  So a look costs two listings of a folder, whatever there is.

Looks come by themselves every two seconds.  Before a request is served, one more comes if the last is not fresh: its
client may have been answered by another process a moment ago.

On Twisted: two looks may overlap, one of a round and one of a request.  Each takes over what it has read in one piece,
and both have read the truth, only at different moments.  An entry that one of them has not seen yet is found by the
next.

Does not know what is done with it.
"""

from __future__ import annotations

from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger

from bioproxy.shared.disk import Disk
from bioproxy.shared.folder import SharedFolder
from bioproxy.shared.leases import Leases
from bioproxy.shared.mirror import Mirror

FRESH = 0.5
"""Seconds for which a look counts as new when a request asks.

Halved, a busy process looks twice as often; doubled, a conversation that has just moved here may not be found.
"""

PATIENCE = 5.0
"""Seconds that a look or a small write may take when nobody waits for it.

Halved, a slow disk counts as gone more often; doubled, trouble is noticed later.
"""

USERS_PATIENCE = 1.0
"""Seconds that a user waits for a look.

Halved, a slow network disk is of no use to users; doubled, a disk that hangs costs one of them so much more.
"""


class SharedView:
    """The shared folder as it was seen last.

    Invariant: `mirror` and `leases` are from the last look that succeeded, with what this process has changed since.
    """

    log = Logger()

    def __init__(self, folder: SharedFolder, disk: Disk, leases: Leases, clock: IReactorTime) -> None:
        """Look into `folder` by `disk`, and tell `leases` what was seen; `clock` tells how old a look is."""
        self.folder = folder
        """The folder, for those who change something.  All its methods block."""
        self.disk = disk
        """The way to call them."""
        self.leases = leases
        """Who computes what."""
        self.mirror = Mirror()
        """The files that are there."""
        self._clock = clock
        self._checked = False
        self._told = False
        # When the looks began whose listing was taken over last, and whose entries were all read.
        self._newest = self._looked_at = float("-inf")

    @property
    def usable(self) -> bool:
        """Whether somebody may wait for the folder now: it was checked, and the last call did not fail."""
        return self._checked and self.disk.usable

    async def check(self) -> None:
        """Find out whether the file system is good enough, at first and after each trouble.

        Fails with `Unusable`; cancelling stops waiting.
        """
        # What was in trouble may be something else now: another disk at the same place, or an empty folder.
        if self.usable:
            return
        self._checked = False
        await self.disk.call(self.folder.check, PATIENCE)
        self._checked = True
        if not self._told:
            self._told = True
            self.log.info("sharing slot files in {path}", path=str(self.folder.path))

    async def look(self, patience: float = PATIENCE) -> None:
        """See what is there now, waiting for so many seconds at most.  Fails with `Unusable`."""
        began, folder = self._clock.seconds(), self.folder
        # Leases first.  A bioproxy that gives up a lease has published its file before: where the lease is gone, the
        # file is seen.  The other way round both could be missed.
        leases, stems = await self.disk.call(lambda: (folder.leases.read(), folder.stems()), patience)
        # A look that began later has ended first, and its result is newer.
        if began < self._newest:
            return
        self._newest = began
        self.leases.saw(leases, began)
        # Asked only now, behind the ``await``: another look may have read some of them meanwhile.
        new = self.mirror.news(stems)
        if new:
            self.mirror.add(await self.disk.call(lambda: folder.read_all(new), patience))
        self._looked_at = max(began, self._looked_at)

    async def look_for_user(self) -> None:
        """See what is there now, unless that was seen a moment ago.  Fails with `Unusable`."""
        if self._clock.seconds() - self._looked_at > FRESH:
            await self.look(USERS_PATIENCE)
