"""What the tests of the shared shelf have in common: entries, folders, and disks that hang."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from twisted.internet.defer import Deferred, maybeDeferred
from twisted.internet.task import Clock

from bioproxy.llama.model_identity import Model
from bioproxy.prompts.conversation import Conversation
from bioproxy.prompts.digests import digest
from bioproxy.prompts.prompt_ids import learned_id
from bioproxy.prompts.prompt_shape import Key
from bioproxy.shared.disk import Disk
from bioproxy.shared.entry import SharedEntry, stem_for
from bioproxy.shared.folder import SharedFolder
from bioproxy.shared.leases import Leases
from bioproxy.shared.view import SharedView
from bioproxy.slot_files.snapshot import CHAT, PREFIX, Snapshot, names_of
from tests.support.folders import FolderTest

MODEL = Model("facts", ((1, -0.5), (2, -1.5)))
OTHER = Model("facts", ((1, -3.5), (3, -4.5)))
"""Two models that llama-server describes alike, and that answer differently."""

CONTENT = b"qsgg and some tokens"


def snapshot(
    name: str = "code",
    kind: str = PREFIX,
    text: str = "text",
    model: Model = MODEL,
    conversation: Conversation | None = None,
    size: int = len(CONTENT),
    earlier: tuple[Conversation, ...] = (),
) -> Snapshot:
    """Return what the record has of a slot file."""
    key = Key("", digest(text))
    saved_at = "2026-01-01T00:00:00.000+00:00"
    filename = names_of(name, kind)[0]
    return Snapshot(filename, key, 100, size, model, saved_at, ("mark",), conversation, None, False, earlier)


def entry(modified: int = 1, name: str = "code", kind: str = PREFIX, **more: Any) -> SharedEntry:
    """Return an entry of the shared shelf."""
    about = snapshot(name, kind, **more)
    return SharedEntry(stem_for(name, kind, about.model), name, kind, about, modified)


def chat(*lengths: int, modified: int = 1, talk: str = "talk", **more: Any) -> SharedEntry:
    """Return the entry of a conversation of so many messages, with its beginnings of the other lengths."""
    whole, *earlier = (Conversation(length, digest(talk, str(length))) for length in lengths)
    name = learned_id(whole.digest)
    return entry(modified, name, CHAT, conversation=whole, earlier=tuple(earlier), **more)


class Threads:
    """Stands for the threads: calls at once, or holds calls back as a disk that hangs does."""

    def __init__(self) -> None:
        self.hangs = False
        self.error: OSError | None = None
        self.held: list[tuple[Callable[[], Any], Deferred[Any]]] = []

    def __call__(self, work: Callable[[], Any]) -> Deferred[Any]:
        """Call a function, now or with `go_on`."""
        if self.hangs:
            self.held.append((work, Deferred()))
            return self.held[-1][1]
        return maybeDeferred(self._run, work)

    def _run(self, work: Callable[[], Any]) -> Any:
        """Call a function unless the disk is in trouble."""
        if self.error is not None:
            raise self.error
        return work()

    def go_on(self) -> None:
        """Let all that hangs come to its end, from the first to the last."""
        self.hangs = False
        while self.held:
            work, result = self.held.pop(0)
            maybeDeferred(self._run, work).chainDeferred(result)


def no_space() -> OSError:
    """Return the error of a disk that is full."""
    return OSError(errno.ENOSPC, "No space left on device")


def view_of(path: Path, clock: Clock, threads: Threads, holder: str = "me") -> SharedView:
    """Return one process's view of a folder."""
    return SharedView(SharedFolder(path), Disk(threads, clock), Leases(holder, clock), clock)


class SharedFolderTest(FolderTest):
    """A shared folder and a slot folder."""

    def setUp(self) -> None:
        """Make them."""
        super().setUp()
        self.path, self.slots = self.folder / "shelf", self.folder / "slots"
        self.slots.mkdir()
        self.shelf = SharedFolder(self.path)
        self.shelf.check()

    def slot_file(self, name: str = "code.bin", content: bytes = CONTENT) -> Path:
        """Write a slot file."""
        path = self.slots / name
        path.write_bytes(content)
        return path

    def publish(self, **more: Any) -> Any:
        """Publish a slot file."""
        return self.shelf.publish(self.slot_file(), "code", PREFIX, snapshot(**more))

    def files(self) -> list[str]:
        """Return all files on the shelf."""
        return sorted(each.name for each in self.path.rglob("*") if each.is_file())

    def without_links(self) -> None:
        """Stand for two disks."""

        def link(source: Any, target: Any) -> None:
            raise OSError(errno.EXDEV, "Invalid cross-device link")

        self.patch(os, "link", link)
