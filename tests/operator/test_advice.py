"""What is advised on llama-server: a table of what is seen of it, and what is said."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from bioproxy.llama.answers import FIXED_MARKER, Props
from bioproxy.operator.advice import Advice, Seen, advice, of_trouble
from bioproxy.runtime.errors import LlamaError, TlsFailed, UpstreamError, UpstreamTimeout
from tests.support.folders import FolderTest

PROPS = Props("/models/x.gguf", "b11549", 16384, "<__media_one__>", "about", False)
"""All is well."""


class Saying(FolderTest):
    """`advice`."""

    def said(self, files: bool | None = True, arguments: str | None = None, **changes: Any) -> list[Advice]:
        """Return what is said of a llama-server on this machine that differs in this."""
        seen = {key: changes.pop(key) for key in ("folder", "near", "window") if key in changes}
        words = None if arguments is None else tuple(arguments.split())
        seen = {"folder": self.folder, "near": True, **seen}
        return list(advice(Seen(replace(PROPS, **changes), files, arguments=words, **seen)))

    def one(self, *words: str, serious: bool = True, **changes: Any) -> None:
        """Check that one thing is said, that it has these words, and how serious it is."""
        [found] = self.said(**changes)
        for word in words:
            self.assertIn(word, f"{found.what}; {found.fix}")
        self.assertEqual(serious, found.serious)
        self.assertTrue(found.fix)

    def test_nothing(self) -> None:
        """Where all is well, or not known, nothing is said."""
        self.assertEqual([], self.said())
        self.assertEqual([], self.said(files=None))
        self.assertEqual([], self.said(near=False, folder=None))
        good = f"-m /models/x.gguf -np 1 -b 2048 --slot-save-path {self.folder}/ --swa-full"
        self.assertEqual([], self.said(arguments=good))
        self.assertEqual([], self.said(arguments="--slot-save-path slots/ -b many -b"))

    def test_told(self) -> None:
        """What llama-server tells itself."""
        self.one("no slot files", "--slot-save-path", files=False)
        self.one("4 slots", "16384 tokens", "-np 1", slots=4)
        self.one("--no-slots", tells_slots=False)
        self.one("newer build", serious=False, marker=FIXED_MARKER)
        self.one("no llama-server", "llama_url", model=None, build=None, slots=3)

    def test_flags(self) -> None:
        """What its command line tells."""
        for batch in ("-b 4096", "--batch-size 2049", "-b 512 -b 8192"):
            self.one("batches of " + batch.split()[-1], "-b", arguments=batch)
        self.one("--no-cache-prompt", arguments="--no-cache-prompt")
        self.one("--cache-reuse", serious=False, arguments="--cache-reuse 256")
        self.assertEqual([], self.said(arguments="--cache-reuse 0"))
        self.one("slot_save_path is", "/other", arguments="--slot-save-path /other/")
        self.one("slot_save_path is", arguments="--slot-save-path /a/b", folder=self.folder / "nothing")

    def test_same_folder(self) -> None:
        """A folder may have several names."""
        link = self.folder / "link"
        link.symlink_to(self.folder)
        self.assertEqual([], self.said(arguments=f"--slot-save-path {link}/"))
        self.assertEqual([], self.said(arguments="--slot-save-path /no/such/", folder=self.folder / "/no/such"))

    def test_window(self) -> None:
        """A sliding window may be trouble, and is certainly if llama-server takes what it reads for all of the past."""
        self.one("512 tokens", "newer build", serious=False, window=512)
        self.one("newer build", serious=False, window=512, arguments="-np 1")
        self.one("512 tokens", "without --swa-full", window=512, arguments="--swa-full -np 1")

    def test_our_folder(self) -> None:
        """A folder that we could see should be named."""
        self.one("slot_save_path is not set", serious=False, folder=None)
        self.one("set slot_save_path to /s/", serious=False, folder=None, arguments="--slot-save-path /s/")

    def test_several(self) -> None:
        """Everything is said, not only the first."""
        self.assertEqual(3, len(self.said(files=False, slots=2, tells_slots=False)))

    def test_trouble(self) -> None:
        """A llama-server that cannot be asked: what helps depends on why."""
        for error, serious, words in (
            (LlamaError(503, "Loading model"), False, "wait until it is ready"),
            (LlamaError(401, "Invalid API Key"), True, "llama_api_key_file"),
            (LlamaError(404, "no reason given"), True, "llama_url"),
            (UpstreamError("llama-server refuses connections: is it running?"), True, "start llama-server"),
            (UpstreamTimeout("x"), True, "if it hangs, restart it"),
            (TlsFailed("x"), True, "llama_ca_file"),
        ):
            found = of_trouble(error)
            self.assertIn(str(error), found.what)
            self.assertIn(words, found.fix)
            self.assertEqual(serious, found.serious)
