"""The shared folder is kept in order: by one process for all, and also on a full disk."""

from __future__ import annotations

import errno
import os

from bioproxy.shared.removal import INTERVAL, PROTECTED, REMOVAL
from bioproxy.slot_files.snapshot import PREFIX
from tests.shared.sharing import LONG, SharingTest
from tests.shared.support import no_space


class Upkeep(SharingTest):
    """Once a minute."""

    def test_removal(self) -> None:
        """Too much is removed by one of them, and leftovers with it; what is used stays."""
        self.warm(self.a)
        self.a.chat(LONG)
        self.do(self.a, self.a.saver.save_if_due)
        self.round(self.a)
        self.warm(self.b)
        self.age(PROTECTED + 1)
        self.b.parts.shared.limits = type(self.b.parts.shared.limits)(0, 0)
        self.advance(INTERVAL)
        self.round(self.b)
        self.assertEqual({"template"}, set(self.told(self.b)["files"]))
        self.assertEqual(1, self.b.sample("shared_files_total", action="removed", result="ok"))
        self.assertEqual([], os.listdir(self.path / "leases"))

    def test_by_one(self) -> None:
        """While another process removes, this one does not."""
        self.warm(self.a)
        self.round(self.b)
        (self.path / "leases" / f"{REMOVAL}.1").write_bytes(b"somebody 0\n")
        self.advance(INTERVAL)
        self.round(self.a)
        self.assertEqual([f"{REMOVAL}.1"], os.listdir(self.path / "leases"))

    def test_uses(self) -> None:
        """A prompt that is used here is not removed elsewhere: the time of its entry is that of its last use."""
        self.warm(self.a)
        self.a.chat("@code why?")
        self.advance(INTERVAL)
        self.round(self.a)
        self.age(1000)
        [entry] = (self.path / "entries").iterdir()
        before = entry.stat().st_mtime
        self.advance(INTERVAL)
        self.round(self.a)
        self.assertEqual(before, entry.stat().st_mtime)
        self.use_later()
        self.advance(INTERVAL)
        self.round(self.a)
        self.assertGreater(entry.stat().st_mtime, before + 900)

    def use_later(self) -> None:
        """Use the prompt once more, at another time."""
        self.a.files.used("code", PREFIX, self.a.files.now() + 5)

    def test_full_disk(self) -> None:
        """On a full disk no lease can be written, and room is made all the same; other trouble ends it."""
        self.warm(self.a)
        create = self.a.parts.shared._view.folder.leases  # type: ignore[union-attr]
        self.patch(create, "create", lambda *args: (_ for _ in ()).throw(no_space()))
        self.age(40 * 86400)
        self.advance(INTERVAL)
        self.round(self.a)
        self.assertEqual({}, self.told(self.a)["files"])
        self.patch(create, "create", lambda *args: (_ for _ in ()).throw(OSError(errno.EIO, "broken")))
        self.advance(INTERVAL)
        self.round(self.a)
        self.assertFalse(self.told(self.a)["usable"])
