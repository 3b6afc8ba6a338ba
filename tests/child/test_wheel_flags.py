"""llama-server's flags, for the wheel."""

from __future__ import annotations

import os
from types import SimpleNamespace
from typing import Any

from bioproxy.child import wheel_flags
from bioproxy.child.wheel_flags import FLAGS, assign, parsed, usable_cpus
from tests.support.folders import FolderTest

CASES: list[tuple[str, dict[str, Any]]] = [
    ("-m a.gguf", {"model.path": "a.gguf"}),
    ("--model a.gguf -m b.gguf", {"model.path": "b.gguf"}),
    ("-c 8192 -ngl 99", {"n_ctx": 8192, "n_gpu_layers": 99}),
    ("--ctx-size=4096", {"n_ctx": 4096}),
    ("-n -1", {"n_predict": -1}),
    ("--no-webui --metrics", {"ui": False, "endpoint_metrics": True}),
    ("--no-cache-prompt --cache-prompt", {"cache_prompt": True}),
    ("--slot-save-path /s", {"slot_save_path": "/s/"}),
    ("--slot-save-path /s/", {"slot_save_path": "/s/"}),
    ("--host 127.0.0.1 --port 1", {"hostnames": ["127.0.0.1"], "port": 1}),
    ("--api-key a,b --alias x", {"api_keys": ["a", "b"], "model_alias": {"x"}}),
    ("--temp 0.5", {"sampling.temp": 0.5}),
    ("", {}),
]

BAD = {
    "--no-such-flag": "does not know --no-such-flag",
    "--cache 1": "does not know --cache",
    "model.gguf": "does not know model.gguf",
    "-c many": "-c/--ctx-size: invalid int value: 'many'",
    "-c": "expected one argument",
}


class Flags(FolderTest):
    """`parsed` and `assign`."""

    def test_known(self) -> None:
        """Each flag sets its attribute, whichever name it has; the last one counts."""
        for line, values in CASES:
            self.assertEqual(values, parsed(line.split()), line)

    def test_files(self) -> None:
        """Keys and a chat template may stand in files."""
        file = self.folder / "file"
        file.write_text("one\ntwo\n")
        self.assertEqual({"api_keys": ["one", "two"]}, parsed(["--api-key-file", str(file)]))
        self.assertEqual({"chat_template": "one\ntwo\n"}, parsed(["--chat-template-file", str(file)]))
        self.assertRaises(OSError, parsed, ["--api-key-file", str(self.folder / "none")])

    def test_unknown(self) -> None:
        """An unknown flag, an abbreviation and a bad value are errors that name it."""
        for line, words in BAD.items():
            self.assertIn(words, str(self.assertRaises(ValueError, parsed, line.split())), line)

    def test_attributes_exist(self) -> None:
        """llama.cpp's parameters have every attribute of the table, and take the values."""
        import xllamacpp  # type: ignore[import-untyped]

        file = self.folder / "file"
        file.write_text("text")
        for flag in FLAGS:
            name = flag.names.split()[0]
            # A text that each kind of value can be made of.
            value = [] if isinstance(flag.takes, bool) else [str(file) if name.endswith("-file") else "1"]
            params = xllamacpp.CommonParams()
            values = parsed([name, *value])
            assign(params, values)
            found: Any = params
            for each in flag.attribute.split("."):
                found = getattr(found, each)
            self.assertEqual(values[flag.attribute], found, flag.names)

    def test_threads(self) -> None:
        """One core is left to others; of many CPUs half are taken; what was asked for wins, for both kinds of work."""
        for cpus, expected in ((1, 1), (2, 1), (4, 3), (16, 8)):
            self.patch(wheel_flags, "usable_cpus", lambda cpus=cpus: cpus)
            for values, threads, batch in (({}, expected, expected), ({"cpuparams.n_threads": 5}, 5, 5)):
                params = SimpleNamespace(cpuparams=SimpleNamespace(), cpuparams_batch=SimpleNamespace())
                assign(params, values)
                self.assertEqual((threads, batch), (params.cpuparams.n_threads, params.cpuparams_batch.n_threads))

    def test_cpus(self) -> None:
        """CPUs are those that the process may use, where the system tells that."""
        self.assertEqual(len(os.sched_getaffinity(0)), usable_cpus())
        self.patch(os, "sched_getaffinity", None)
        del os.sched_getaffinity
        self.assertEqual(os.cpu_count(), usable_cpus())
