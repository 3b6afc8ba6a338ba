"""``--demo``: runs a real llama.cpp beside the proxy, with two templates, and shows what being warm is worth.

`Demo` is a `Service` that owns a child process.  Twisted starts a process with `reactor.spawnProcess` and reports to a
`ProcessProtocol` (`bioproxy.demo.llama_process`).  Nothing waits for the child: the reactor goes on with everything
else while llama.cpp loads its model.

Everything that the demonstration writes is in one cache folder: a random model (made once, where no real one is
installed), the templates (copies, to be edited), the slot files and the records.  A user's own configuration and
records are not touched.

The child needs no supervisor: it ends when its standard input is closed, and the operating system closes that when
bioproxy ends, also after ``kill -9`` (`bioproxy.demo.llama_child`).  A child that fails is not started again.

Does not know how the proxy works.  It changes some settings, asks `ready` whether all templates are warm, and asks its
question as any client would (`bioproxy.demo.tour`).
"""

from __future__ import annotations

import dataclasses
import importlib.util
import os
import shutil
import socket
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from twisted.application.service import Service
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.task import LoopingCall

from bioproxy.demo import tour, words
from bioproxy.demo.demo_model import DemoModel, choose_model
from bioproxy.demo.llama_process import LlamaProcess
from bioproxy.demo.question import Answer, ask
from bioproxy.demo.tour import ANSWER_TOKENS
from bioproxy.llama.connections import Agents
from bioproxy.prompts.templates import Template
from bioproxy.settings.configuration import Settings, xdg_folder

TEMPLATES = Path(__file__).parent / "templates"
"""The example templates in the package."""

CONTEXT = 8192
"""Tokens that a prompt and its answer may have together: all that SmolLM2 was trained with.

Halved, longer documents that a visitor tries do not fit, above all with the random model, which needs twice the tokens
for a text; doubled, the small model takes 190 MB more memory for a context that it does not understand.
"""

START_LIMIT = 120.0
"""Seconds that llama.cpp may take to start before the log warns that it does not answer.

Making the model takes some seconds, once, and loading it takes one or two.  With half of it a slow disk could bring
a warning without a reason; with twice as much the warning of a llama.cpp that hangs comes later.
"""

LOOK = 0.2
"""Seconds between two looks whether all is ready: the most that the tour may begin late."""


class Demo(Service):
    """A llama.cpp in a child process.

    `settings` are those to run with: the user's, with those that point to the child and its folders in their place.
    There is at most one child, from `startService` until `stopService`.
    """

    settings: Settings
    """The settings that the proxy is to use."""

    model: DemoModel
    """The model that llama.cpp runs."""

    def __init__(self, settings: Settings, reactor: Any) -> None:
        """Choose folders and a port; `reactor` starts the child.  Raises `SystemExit` if a package is missing.

        Nothing is started or written yet: with a port in use, for example, bioproxy ends before it starts anything.
        """
        self.setName("demo")
        # The packages come with the extra `demo`, which not every installation has.
        missing = [name for name in ("xllamacpp", "gguf") if importlib.util.find_spec(name) is None]
        if missing:
            raise SystemExit(f"bioproxy: --demo needs {' and '.join(missing)}: pip install 'bioproxy[demo]'")
        # A cache, because all of it can be made again: a user who removes it loses only edits of the templates.
        folder = xdg_folder("XDG_CACHE_HOME", ".cache") / "demo"
        self.model = choose_model(folder)
        self._templates = folder / "templates"
        # Any free port: a llama-server of the user's may have the usual one.
        self._port = free_port()
        self._reactor = reactor
        self._protocol: LlamaProcess | None = None
        self._started_at = 0.0
        self._announcement: LoopingCall | None = None
        self._tour: Deferred[None] | None = None
        self._folder = folder
        # The user's settings go in, for ports, limits and templates of the user's own.
        self.settings = self.adapted(settings)

    def adapted(self, settings: Settings) -> Settings:
        """Return settings with the demonstration's own in their place; called again for each reload.

        A template of the user's replaces the example of the same name.
        """
        # Compared by name, since ``@code`` and ``/code`` would have the same slot files.
        own = {Template.of(prefix, file).name for prefix, file in settings.prefixes.items()}
        examples = {f"@{name}": self._templates / f"{name}.txt" for name in ("manual", "island") if name not in own}
        return dataclasses.replace(
            settings,
            llama_url=f"http://127.0.0.1:{self._port}",
            # The examples come first, as the banner is about them.
            prefixes={**examples, **settings.prefixes},
            slot_save_path=self._folder / "slots",
            state_dir=self._folder / "state",
        )

    def announce(self, ready: Callable[[], bool]) -> None:
        """Show what there is to see as soon as `ready` returns true.  To be called before the service starts."""

        def look() -> None:
            """Ask once more.  Called by the loop."""
            assert self._announcement is not None
            # Once is enough, also if a template becomes cold again later.
            if ready():
                self._announcement.stop()
                # From here on a coroutine goes on by itself, until it has shown all or is cancelled.
                self._tour = Deferred.fromCoroutine(self._show())
                # `stopService` would be too late: before it is called, bioproxy waits for requests in progress, and the
                # tour's own question is one.  A trigger is a function that the reactor calls when it is told to stop.
                self._reactor.addSystemEventTrigger("before", "shutdown", self._tour.cancel)
                # A cancelled tour fails with `CancelledError`, which Twisted would log as a bug if nobody took it.
                self._tour.addErrback(lambda failure: None if failure.check(CancelledError) else failure)

        # A `LoopingCall` calls a function every so many seconds, by the clock that it is given.
        self._announcement = LoopingCall(look)
        self._announcement.clock = self._reactor

    def starting(self) -> bool:
        """Tell whether llama.cpp is still starting, so that it is no trouble that it does not answer.

        It starts until it says that it listens, ends, or has taken `START_LIMIT` seconds.
        """
        # The watch over llama-server asks this before each of its looks, every two seconds.
        within_limit = bool(self._reactor.seconds() - self._started_at < START_LIMIT)
        return self._protocol is not None and self._protocol.starting and within_limit

    def startService(self) -> None:
        """Start llama.cpp.  Called by the parent service, before it starts the services that ask llama.cpp."""
        # Files are written here and not in the constructor, because a service that is made may never be started.
        super().startService()
        # Copies, so that they can be edited; those that were edited before stay.
        self._templates.mkdir(parents=True, exist_ok=True)
        for source in TEMPLATES.iterdir():
            if not (self._templates / source.name).exists():
                shutil.copyfile(source, self._templates / source.name)
        # A demonstration begins cold, because the warm-up is what there is to see.  Without records, no slot file of
        # an earlier demonstration is used.
        shutil.rmtree(self.settings.state_dir, ignore_errors=True)
        # The child makes it, so that bioproxy is not blocked for those seconds; here the user is only told why it takes
        # longer this time.
        if self.model.is_random and not self.model.file.exists():
            self._say(f"making a model, once: {self.model.file} (112 MB)")
        assert self.settings.slot_save_path is not None
        self.settings.slot_save_path.mkdir(mode=0o700, exist_ok=True)
        self._say("starting llama.cpp, which then reads two documents in advance: up to half a minute")
        # By the reactor's clock, so that a machine that stands still meanwhile does not use up the time.
        self._protocol = LlamaProcess()
        self._started_at = self._reactor.seconds()
        # The size is chosen by name, and only if the model has to be made.
        arguments = ["--model", self.model.file, "--generate", "small", "--port", self._port, "--ctx-size", CONTEXT]
        arguments += ["--slot-save-path", self.settings.slot_save_path, "--predict", ANSWER_TOKENS]
        # Returns at once: the protocol is told what becomes of the process.  `sys.path` goes along so that the child
        # finds bioproxy in a checkout that is not installed, too.
        self._reactor.spawnProcess(
            self._protocol,
            sys.executable,
            [sys.executable, "-m", "bioproxy.demo.llama_child", *map(str, arguments)],
            env=dict(os.environ, PYTHONPATH=os.pathsep.join(filter(None, sys.path))),
        )
        # The first look comes at once.
        if self._announcement is not None:
            self._announcement.start(LOOK)

    def stopService(self) -> Deferred[None] | None:
        """End llama.cpp.  Called by the parent service, after everything that asks llama.cpp has stopped.

        Fires when the child is gone, so that no process outlives bioproxy.
        """
        super().stopService()
        # Not running if the tour has begun, or if the start failed before the loop began.
        if self._announcement is not None and self._announcement.running:
            self._announcement.stop()
        if self._protocol is None:
            return None
        return self._protocol.end()

    def _say(self, text: str) -> None:
        """Print a text as it is.

        twistd has put the log in the place of `sys.stdout`, so `print` alone would make log lines of it.
        """
        # `None` where the process was started without standard output.
        if sys.__stdout__ is not None:
            print(text, file=sys.__stdout__, flush=True)

    async def _show(self) -> None:
        """Ask the tour's question cold and warm, print what came of it, and then what to try.

        Fires when all is printed, and does not fail.  Cancelling closes the connection of the question in progress, and
        nothing more is printed.
        """
        url = words.chat_url(self.settings)
        # Each request gets a connection of its own, to bioproxy's own port, as from a new client.
        agent = Agents.over_network(self._reactor, url).own_fresh

        # What the tour needs to know of all that: a function that answers a question.
        async def send(request: Mapping[str, Any]) -> Answer:
            return await ask(agent, url, request, self._reactor)

        await tour.show(send, self._say, self.model)
        self._say(words.banner(self.settings, self._templates))


def free_port() -> int:
    """Return a TCP port of this machine that nobody listens on now.

    Another program could take it before llama.cpp does; for a demonstration that is good enough.
    """
    # Port 0 asks the operating system to choose one.  It is free again when the socket is closed.
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
