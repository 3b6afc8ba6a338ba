"""Makes the shared shelf, and connects it with the parts that it serves.

Two arrows go against the layers, so they are functions that are assigned here: the slot asks for files before a
request, and tells of each file that it has saved.  Neither knows where the files go to and come from.

Everything that one process knows of the others is in that folder: who has computed what, and who is computing what.  So
there is nothing to connect to, no order in which processes must start, and no port.  What has to be unique is the name
under which this process holds leases.

Making it touches nothing; the first look into the folder comes with the first round.
"""

from __future__ import annotations

import os
import secrets
import socket
from typing import Any

from bioproxy.assembly.outside import Outside
from bioproxy.assembly.parts import SlotParts
from bioproxy.settings.configuration import Settings
from bioproxy.shared.disk import Disk
from bioproxy.shared.folder import SharedFolder
from bioproxy.shared.leases import Leases
from bioproxy.shared.local_files import LocalFiles
from bioproxy.shared.removal import Limits
from bioproxy.shared.shelf import SharedShelf
from bioproxy.shared.view import SharedView


def assemble_sharing(settings: Settings, lower: SlotParts, reactor: Any, outside: Outside) -> SharedShelf:
    """Return the shared shelf.  Without `shared_shelf` in the settings it is one that shares nothing.

    `lower` are the parts that know slot and files; `outside` has the threads in which the folder is called.
    """
    # The parts are made from the bottom to the top, each from those that it needs.  This one knows the slot folder of
    # this process, and is of use with or without a shared folder.
    local = LocalFiles(lower.snapshots, lower.folder, lower.shelf)
    # The limits of the own files hold for the shared ones.  A reload hands in new ones (`bioproxy.assembly.takers`).
    limits = Limits(settings.prompts_limit, settings.conversations_limit)
    view = None
    if settings.shared_shelf is not None:
        # For people who look into a lease: host and process.  The random part makes it unique, whatever clocks and
        # process ids are.
        holder = f"{socket.gethostname()}:{os.getpid()}:{secrets.token_hex(4)}"
        # `reactor` is the clock here.  It measures durations only, and is never compared with another machine's clock.
        leases = Leases(holder, reactor)
        # All calls of the folder go through one `Disk`, so that trouble that one caller meets is known to all.
        view = SharedView(SharedFolder(settings.shared_shelf), Disk(outside.on_shared_disk, reactor), leases, reactor)
    shared = SharedShelf(view, local, lower.identity, lower.speed, lower.metrics, reactor, limits)
    # Only with a shared folder: without these two, the slot neither waits for anything nor tells anything.
    if view is not None:
        lower.slot.bring_files(shared.bring)
        lower.files.saver.saved = shared.saved
    return shared
