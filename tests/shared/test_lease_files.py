"""The files of leases on a real disk: one of several gets a lease, and nobody writes another one's."""

from __future__ import annotations

import os

from tests.shared.support import SharedFolderTest, no_space


class Life(SharedFolderTest):
    """The files of leases."""

    def test_life(self) -> None:
        """Only one creates a file; only who has written it writes it again; removing twice is no error."""
        self.assertTrue(self.shelf.leases.create("key.1", b"me 0 and more"))
        self.assertFalse(self.shelf.leases.create("key.1", b"you 0"))
        self.assertFalse(self.shelf.leases.renew("key.1", b"you 1", b"you "))
        self.assertTrue(self.shelf.leases.renew("key.1", b"me 1", b"me "))
        self.assertEqual({"key.1": b"me 1"}, self.shelf.leases.read())
        self.shelf.leases.remove(["key.1", "key.1"])
        self.assertFalse(self.shelf.leases.renew("key.1", b"me 2", b"me "))
        self.assertEqual({}, self.shelf.leases.read())

    def test_given_up_meanwhile(self) -> None:
        """A lease that goes between listing and reading is none."""
        listdir = os.listdir
        self.patch(os, "listdir", lambda path: [*listdir(path), "gone.1"])
        self.assertEqual({}, self.shelf.leases.read())

    def test_full(self) -> None:
        """On a full disk no empty lease is left."""

        class Full:
            def __enter__(self) -> Full:
                return self

            def __exit__(self, *args: object) -> None:
                raise no_space()

            def write(self, content: bytes) -> None:
                pass

        def fdopen(descriptor: int, mode: str) -> Full:
            os.close(descriptor)
            return Full()

        self.patch(os, "fdopen", fdopen)
        self.assertRaises(OSError, self.shelf.leases.create, "key.1", b"me 0")
        self.assertEqual([], self.files())
