"""Switches the record to a slot file that was just written: from here on it is the file of its prompt.

llama-server has written a file, or a thread has copied one from the shared shelf.  It has the second name of its kind
(``code.new.bin``), and the record still names the older file.  Three changes make it the file of its prompt: the record
names it, it gets the usual name (``code.bin``), and the record names that.  Each change is atomic by itself, the three
together are not, and bioproxy may be killed between any two of them.  The order is chosen so that the worst case is a
record that names a file which is not there.  That is found out by a look at the disk before the file would be used, and
costs a warm-up.  In any other order the record could name a file with other content, and nobody would find out.

The Twisted idea is an absence: there is no ``await`` in here.  Only an ``await`` lets other code run, and only there
can a coroutine be cancelled, so these steps happen as a whole as long as the process lives.  That is worth more than
the milliseconds of a small write, for which the event loop stands still.

Does not know who wrote the file, nor whether the slot held what it should (`bioproxy.slot_files.saving`).
"""

from __future__ import annotations

from dataclasses import replace

from bioproxy.slot_files.folder import SlotFolder
from bioproxy.slot_files.record import Snapshot, SnapshotRecord, names_of
from bioproxy.slot_files.save_failures import SaveFailed


def switch_record(snapshots: SnapshotRecord, folder: SlotFolder, name: str, kind: str, entry: Snapshot) -> Snapshot:
    """Switch the record to a file that was just written, and give it its usual name; return the entry.

    Raises `SaveFailed` if the file is not there as the entry says, and `OSError` if the record cannot be written.
    """
    # The numbers are those of the steps of a save, in `bioproxy.slot_files.saving`.  First the end of step 4.
    # llama-server has said how many bytes it wrote; if the folder can be seen, the disk must say the same.  A missing
    # file is the most frequent mistake of operators, so the message names the two settings that must agree.
    entry = replace(entry, written_at=folder.written_at(entry.filename))
    if not folder.is_intact(entry):
        raise SaveFailed(
            f"there is no such file of {entry.size} bytes in {folder.path}:"
            " is slot_save_path the folder that llama-server was given as --slot-save-path?"
        )
    # Step 5.  Before the rename, not after: the old file still has the usual name, and the
    # record must not name it any more when it is replaced.
    snapshots.put(name, kind, entry)
    # From here on the save has succeeded, whatever happens.  Step 6 gives people who look into
    # the folder the expected name, and limits the names of a kind to two.  If bioproxy cannot
    # see the folder, the file keeps its second name, and the next save uses the first one.
    usual = names_of(name, kind)[0]
    if entry.filename != usual and folder.rename(entry.filename, usual):
        # Step 7.  Until this is on the disk, the record names a file that no longer exists, and
        # not the file that replaced the old one.
        entry = replace(entry, filename=usual)
        snapshots.put(name, kind, entry)
    return entry
