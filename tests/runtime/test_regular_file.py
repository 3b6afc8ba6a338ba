"""Files whose names users give."""

from __future__ import annotations

import os
import signal
from pathlib import Path

from bioproxy.child.program import check_model
from bioproxy.llama.connections import check_ca_file
from bioproxy.prompts import templates
from bioproxy.runtime.regular_file import read_regular
from bioproxy.settings.api_keys import read_keys
from bioproxy.settings.configuration import read_file
from tests.support.folders import FolderTest


class RegularFile(FolderTest):
    """`read_regular`, and what reads by it."""

    def test_content(self) -> None:
        """All of a file is read, or as many bytes as are wanted; also behind a symbolic link."""
        path = self.template("file", "content")
        (self.folder / "link").symlink_to(path)
        self.assertEqual((b"content", b"con"), (read_regular(path), read_regular(self.folder / "link", 3)))

    def test_nothing_waits(self) -> None:
        """A named pipe without a writer, and a device, are refused at once with the same words, whatever they are for.

        No test would end without the alarm if one of them waited.
        """
        pipe = self.folder / "pipe"
        os.mkfifo(pipe)

        def give_up(*_: object) -> None:
            self.fail("it waits")

        self.addCleanup(signal.signal, signal.SIGALRM, signal.signal(signal.SIGALRM, give_up))
        self.addCleanup(signal.alarm, 0)
        readers = (
            read_regular,
            check_model,
            check_ca_file,
            read_file,
            templates.read_file,
            lambda path: read_keys("api_key_file", path),
        )
        for path in (pipe, Path("/dev/null")):
            for reader in readers:
                signal.alarm(10)
                with self.assertRaises(Exception) as caught:
                    reader(path)
                self.assertIn("not a regular file", str(caught.exception))
