"""``--demo``: a real llama.cpp, two templates, and a word on what to try.

A `Service` that owns a child process.  Twisted starts processes with `reactor.spawnProcess` and tells a
`ProcessProtocol` what happens to them: `outReceived` for what they print, `processEnded` when they are gone.  Nothing
waits: the rest of the program runs on while the child loads its model.

Everything that the demonstration writes is in one cache folder: the model (made once), the templates (to be edited),
the slot files and the records.  A user's own configuration and records are left alone.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import os
import shutil
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from twisted.application.service import Service
from twisted.internet.defer import Deferred
from twisted.internet.error import ProcessDone
from twisted.internet.protocol import ProcessProtocol
from twisted.internet.task import LoopingCall
from twisted.logger import Logger
from twisted.python.failure import Failure

from bioproxy.prompts.templates import Template
from bioproxy.settings.configuration import Settings, xdg_folder

TEMPLATES = Path(__file__).parent / "templates"

ANSWER_TOKENS = 48
"""How long an answer is that names no limit: the model knows no end by itself."""

BANNER = """
bioproxy is ready, with a real llama.cpp behind it.  Its model is random and talks nonsense; all else is real.

Ask about the notes.  The slot holds the other template, so this one comes back from its file: "restored".
  {ask_code}
Once more.  Now the slot holds it: "hot".
  {ask_code}
The other template, restored in turn:
  {ask_story}

cache_n in the answer says how many prompt tokens were not computed again.  Edit a template, wait a moment, ask again:
  {templates}
Watch all of it in a browser:
  {admin}/
What is warm, and all numbers:
  curl -s {admin}/status
  curl -s {admin}/metrics
"""


class Demo(Service):
    """A llama.cpp in a child process.  `settings` are those to run with."""

    log = Logger()

    def __init__(self, settings: Settings, reactor: Any) -> None:
        self.setName("demo")
        missing = [name for name in ("xllamacpp", "gguf") if importlib.util.find_spec(name) is None]
        if missing:
            raise SystemExit(f"bioproxy: --demo needs {' and '.join(missing)}: pip install 'bioproxy[demo]'")
        folder = xdg_folder("XDG_CACHE_HOME", ".cache") / "demo"
        self._model = folder / "model.gguf"
        self._templates = folder / "templates"
        self._port = free_port()
        self._reactor = reactor
        self._child: Any = None
        self._protocol: LlamaProcess | None = None
        self._announcement: LoopingCall | None = None
        self._folder = folder
        self.settings = self.adapted(settings)

    def adapted(self, settings: Settings) -> Settings:
        """Return settings with those of the demonstration above them."""
        own = {Template.of(prefix, file).name for prefix, file in settings.prefixes.items()}
        examples = {f"@{name}": self._templates / f"{name}.txt" for name in ("code", "story") if name not in own}
        return dataclasses.replace(
            settings,
            llama_url=f"http://127.0.0.1:{self._port}",
            prefixes={**examples, **settings.prefixes},
            slot_save_path=self._folder / "slots",
            state_dir=self._folder / "state",
        )

    def announce(self, ready: Callable[[], bool]) -> None:
        """Print what to try, once `ready` says so."""

        def look() -> None:
            assert self._announcement is not None
            if ready():
                self._announcement.stop()
                self._say(self._banner())

        self._announcement = LoopingCall(look)
        self._announcement.clock = self._reactor

    def startService(self) -> None:
        """Start llama.cpp."""
        super().startService()
        # Copies, so that they can be edited; those that were edited before stay.
        self._templates.mkdir(parents=True, exist_ok=True)
        for source in TEMPLATES.iterdir():
            if not (self._templates / source.name).exists():
                shutil.copyfile(source, self._templates / source.name)
        # A demonstration begins cold: it is the warm-up that there is to see.
        shutil.rmtree(self.settings.state_dir, ignore_errors=True)
        if not self._model.exists():
            self._say(f"making a model, once: {self._model} (112 MB)")
        assert self.settings.slot_save_path is not None
        self.settings.slot_save_path.mkdir(mode=0o700, exist_ok=True)
        self._say("starting llama.cpp, and warming the templates up: some seconds")
        self._protocol = LlamaProcess()
        arguments = ["--model", self._model, "--generate", "small", "--port", self._port]
        arguments += ["--slot-save-path", self.settings.slot_save_path, "--predict", ANSWER_TOKENS]
        self._child = self._reactor.spawnProcess(
            self._protocol,
            sys.executable,
            [sys.executable, "-m", "bioproxy.demo.llama_child", *map(str, arguments)],
            env=dict(os.environ, PYTHONPATH=os.pathsep.join(filter(None, sys.path))),
        )
        if self._announcement is not None:
            self._announcement.start(0.2)

    def stopService(self) -> Deferred[None] | None:
        """End llama.cpp; fires when it has gone."""
        super().stopService()
        if self._announcement is not None and self._announcement.running:
            self._announcement.stop()
        if self._protocol is None:
            return None
        return self._protocol.end()

    def _say(self, text: str) -> None:
        """Print for the person at the terminal.  `sys.stdout` is the log's by now, which puts times before lines."""
        if sys.__stdout__ is not None:
            print(text, file=sys.__stdout__, flush=True)

    def _banner(self) -> str:
        url = f"http://{self.settings.host}:{self.settings.port}/v1/chat/completions"

        def ask(message: str) -> str:
            body = f'{{"messages": [{{"role": "user", "content": "{message}"}}]}}'
            return f"curl -si {url} -d '{body}' | grep -iE 'x-bioproxy|cache_n'"

        return BANNER.format(
            ask_code=ask("@code where is the line in front of the server?"),
            ask_story=ask("@story a chair that nobody needs"),
            templates=self._templates,
            admin=f"http://{self.settings.admin_host}:{self.settings.admin_port}",
        )


class LlamaProcess(ProcessProtocol):
    """The child, as Twisted tells of it.  Its log is kept back unless it fails: it is long."""

    log = Logger()

    def __init__(self) -> None:
        self._errors = b""
        self._gone: Deferred[None] | None = None
        self._ended = False

    def errReceived(self, data: bytes) -> None:
        """Keep the latest of what llama.cpp logs.  Called by Twisted."""
        self._errors = (self._errors + data)[-4000:]

    def end(self) -> Deferred[None] | None:
        """Ask the child to go; fires when it has.  Its standard input is what it holds on to."""
        if self._ended:
            return None
        assert self.transport is not None
        self._gone = Deferred()
        self.transport.closeStdin()
        return self._gone

    def processEnded(self, reason: Failure) -> None:
        """Say why, if nobody asked for it.  Called by Twisted."""
        self._ended = True
        if self._gone is not None:
            self._gone.callback(None)
        elif not reason.check(ProcessDone):
            self.log.error(
                "llama.cpp ended: {reason}\n{errors}",
                reason=reason.getErrorMessage(),
                errors=self._errors.decode("utf-8", "replace"),
            )


def free_port() -> int:
    """Return a TCP port of this machine that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
