"""From the settings to llama-server's command line."""

from __future__ import annotations

import os
import socket
import sys
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from bioproxy.child.command_line import (
    adapted,
    child_flags,
    command_line,
    environment,
    free_port,
    has_keys_of_users,
    port_wanted,
    refuse_taken,
)
from bioproxy.child.wheel_flags import KEY_VARIABLE
from bioproxy.runtime.errors import ConfigError
from bioproxy.settings.configuration import Settings

MODEL = Path("/m/a.gguf")


def settings(*words: str) -> Settings:
    """Return settings with a model and these `llama_args`."""
    return Settings(model=MODEL, llama_args=words, state_dir=Path("/state"))


class CommandLine(SynchronousTestCase):
    """The pure functions."""

    def test_adapted(self) -> None:
        """All other parts see an address and a slot folder; a folder that was configured stays."""
        made = adapted(settings(), 1234)
        self.assertEqual(("http://127.0.0.1:1234", Path("/state/slots")), (made.llama_url, made.slot_save_path))
        own = adapted(Settings(model=MODEL, slot_save_path=Path("/s")), 1)
        self.assertEqual(Path("/s"), own.slot_save_path)
        error = self.assertRaises(ConfigError, adapted, settings("--port", "1"), 2)
        self.assertEqual("llama_args: only a restart can change --port", str(error))

    def test_flags(self) -> None:
        """One slot, a folder, a port of this machine, no page of its own; more flags come last."""
        flags = child_flags(adapted(settings("-np", "2"), 7), 7)
        self.assertEqual(
            "--model /m/a.gguf --host 127.0.0.1 --port 7 --parallel 1 --slot-save-path /state/slots/ --no-webui"
            " --metrics -np 2",
            " ".join(flags),
        )

    def test_what_runs(self) -> None:
        """Both the wheel's server and a program are run by a Python that ends with bioproxy; the wheel logs little."""
        wheel = [sys.executable, "-m", "bioproxy.child.wheel_server", "--verbosity", "2", "-x"]
        self.assertEqual(wheel, command_line(None, ["-x"]))
        program = [sys.executable, "-m", "bioproxy.child.lifeline", "/b/llama-server", "-x"]
        self.assertEqual(program, command_line("/b/llama-server", ["-x"]))

    def test_key(self) -> None:
        """The key is in the environment, where other users cannot read it; one of the user's takes its place."""
        self.assertEqual("secret", environment("secret")[KEY_VARIABLE])
        self.assertNotIn(KEY_VARIABLE, environment(None))
        for words, expected in (((), False), (("--api-key", "k"), True), (("--api-key-file", "f"), True)):
            self.assertEqual(expected, has_keys_of_users(settings(*words)))
        self.assertTrue(has_keys_of_users(Settings(model=MODEL, llama_api_key_file=Path("/k"))))
        # A variable of the user's is for another llama-server, or for another program altogether.
        self.patch(os, "environ", {**os.environ, KEY_VARIABLE: "mine"})
        self.assertEqual("secret", environment("secret")[KEY_VARIABLE])

    def test_port(self) -> None:
        """The last port of `llama_args` is taken; other flags are none of its business."""
        self.assertIsNone(port_wanted(settings("-c", "1", "--override-kv", "a=int:1")))
        self.assertEqual(2, port_wanted(settings("--port", "1", "-c", "1", "--port", "2")))

    def test_refused(self) -> None:
        """What would hide llama-server from bioproxy is refused, with the reason."""
        for words, reason in (
            (["-m", "x"], "-m: the setting model names the file"),
            (["--slot-save-path", "x"], "--slot-save-path: the setting slot_save_path names the folder"),
            *(([flag, "a/b"], f"{flag}: the setting model names the file") for flag in ("-hf", "-hfr", "--hf-repo")),
            (["-c", "1", "--host=0.0.0.0"], "--host: bioproxy connects to 127.0.0.1"),
            (["--port=1"], "--port: its value must be the next word, without ="),
            (["--port", "x"], "--port: must be a number from 1 to 65535, not 'x'"),
            (["--port", "65536"], "--port: must be a number from 1 to 65535, not '65536'"),
            (["--port"], "--port: must be a number from 1 to 65535, not ''"),
        ):
            error = self.assertRaises(ConfigError, port_wanted, settings(*words))
            self.assertEqual(f"llama_args: {reason}", str(error))

    def test_free_port(self) -> None:
        """A free port can be listened on; one that somebody listens on is told as taken."""
        port = free_port()
        refuse_taken(port)
        with socket.create_server(("127.0.0.1", port)):
            error = self.assertRaises(ConfigError, refuse_taken, port)
        self.assertIn(f"port {port} is in use by another program", str(error))
