"""The files of leases: created once, written over in place, removed.

A lease is one small file, ``leases/KEY.GENERATION``.  Each operation here is chosen for what happens if another process
does something at the same moment, or if this one dies in the middle:

* It is *created* only if it does not exist, so of several processes one gets the lease.
* It is *renewed* in place, and only if its content is still this process's.  A rename would be the usual way to replace
  a file, but it would also create the file again after somebody has removed it, and so bring a lease back to life.
* It is *removed* without asking: a lease that is gone already is what was wanted.

Between the look and the write of a renewal there is a moment in which another process may take over.  It does so by
creating the file of the *next* generation, not by changing this one, so nothing is overwritten, and the next look shows
this process that its lease is lost.

All of this blocks, so it is called in threads only.  What the content means, and when a lease counts as abandoned, is
decided by `bioproxy.shared.leases`.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from bioproxy.shared.layout import LEASES, create_once


class LeaseFiles:
    """The folder with the leases of all processes.

    Invariant: no method changes a file that another process has written.  Methods raise `OSError`.
    """

    def __init__(self, path: Path) -> None:
        """Name the shared folder that the leases are in.  Nothing is touched."""
        self._path = path / LEASES

    def read(self) -> dict[str, bytes]:
        """Return the content of all leases, by the names of their files: a few small ones, read with each look."""
        found: dict[str, bytes] = {}
        for name in os.listdir(self._path):
            # Its holder may give it up between the two calls.
            with suppress(FileNotFoundError):
                found[name] = (self._path / name).read_bytes()
        return found

    def create(self, name: str, content: bytes) -> bool:
        """Create a lease that must not be there yet; return whether this call has created it.

        Of several processes that do so at the same moment, one gets true.
        """
        return create_once(self._path / name, content)

    def renew(self, name: str, content: bytes, mine: bytes) -> bool:
        """Replace a lease's content if it begins with `mine`; return whether it did."""
        # Opened once: a file that is removed between the look and the write does not come back.
        try:
            with open(self._path / name, "r+b") as opened:
                if not opened.read().startswith(mine):
                    return False
                # If this process dies between these lines, the content is longer than it should be, or has the new
                # beats and the old end.  Either is a change, and then no change any more: the others see a holder that
                # has died.
                opened.seek(0)
                opened.write(content)
                opened.truncate()
        except FileNotFoundError:
            return False
        return True

    def remove(self, names: Iterable[str]) -> None:
        """Remove leases; missing ones are no error.  The caller knows that they are its own, or of dead holders."""
        for name in names:
            with suppress(FileNotFoundError):
                os.unlink(self._path / name)
