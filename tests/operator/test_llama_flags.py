"""llama-server's flags, read from folders that look like ``/proc``, and a model's sliding window."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from bioproxy.demo import tiny_model
from bioproxy.operator.llama_flags import command_line, sliding_window, value
from tests.support.folders import FolderTest


class CommandLine(FolderTest):
    """`command_line`."""

    def runs(self, number: int, *words: str) -> None:
        """Have such a process run."""
        (self.folder / str(number)).mkdir()
        (self.folder / str(number) / "cmdline").write_bytes(b"".join(word.encode() + b"\0" for word in words))

    def find(self, port: int = 8080, model: str | None = "/models/x.gguf") -> tuple[str, ...] | None:
        """Look for the llama-server on a port."""
        return command_line(port, model, self.folder)

    def test_found(self) -> None:
        """It is found by its name, its port, and its model, among all sorts of processes."""
        self.runs(1, "init")
        self.runs(2, "/opt/bin/llama-server", "-m", "x.gguf", "-b", "4096")
        self.runs(3, "llama-server", "--port", "8090", "--model", "/models/x.gguf")
        self.runs(4, "vi", "llama-server", "--port", "8099")
        self.runs(5)
        (self.folder / "6").mkdir()  # one that ended just now
        (self.folder / "6" / "cmdline").mkdir()
        (self.folder / "sys").mkdir()
        self.assertEqual(("-m", "x.gguf", "-b", "4096"), self.find())
        self.assertEqual(("--port", "8090", "--model", "/models/x.gguf"), self.find(8090))
        self.assertIsNone(self.find(8099))
        self.assertIsNone(self.find(8080, "/models/y.gguf"))
        self.assertIsNotNone(self.find(8080, None))

    def test_no_guess(self) -> None:
        """Of two that look right none is taken; where there is no such folder, nothing is known."""
        self.runs(1, "llama-server", "-hf", "someone/model")
        self.assertEqual(("-hf", "someone/model"), self.find())
        self.runs(2, "llama-server", "-np", "2")
        self.assertIsNone(self.find())
        self.assertIsNone(command_line(8080, None, Path("/no/such/folder")))

    def test_value(self) -> None:
        """The last one counts, whatever it is called; one without a value has none."""
        words = ["-b", "1", "--batch-size", "2", "-np"]
        self.assertEqual("2", value(words, "-b", "--batch-size"))
        self.assertEqual("1", value(words, "-b"))
        self.assertIsNone(value(words, "-np"))
        self.assertIsNone(value([], "-b"))


class Window(FolderTest):
    """`sliding_window`."""

    def test_models(self) -> None:
        """A model with a sliding window says how long that is; others have none."""
        for size, expected in ((tiny_model.TINY, None), (tiny_model.SLIDING, 512)):
            model = self.folder / f"{expected}.gguf"
            tiny_model.write_model(model, size)
            self.assertEqual(expected, sliding_window(str(model)))

    def test_unreadable(self) -> None:
        """Of what cannot be read nothing is known."""
        for model in (None, "", "/no/such/file", str(self.folder), "a\0b", "x" * 100_000, "\ud800"):
            self.assertIsNone(sliding_window(model))

    def test_no_file(self) -> None:
        """llama-server may name anything as its model: what is no file is not opened, for that could take for ever."""
        pipe = self.folder / "pipe"
        os.mkfifo(pipe)
        # Were it opened for reading, this would wait for a writer; a writer that does not wait finds nobody there.
        with ThreadPoolExecutor() as pool:
            found = pool.submit(sliding_window, str(pipe))
            while not found.done():
                try:
                    os.close(os.open(pipe, os.O_WRONLY | os.O_NONBLOCK))
                except OSError:
                    continue
                self.fail("it was opened")
            self.assertIsNone(found.result())
        self.assertIsNone(sliding_window("/dev/zero"))
