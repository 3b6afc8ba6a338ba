"""``--demo``: settings with a model and two documents, and a question that shows what being warm is worth.

The demonstration is a bioproxy with the setting `model`, which starts llama.cpp itself (`bioproxy.child`).  `Demo` is a
`Service` that comes before all others: it changes the settings, makes the model and the templates when it starts, and
shows its question when all templates are warm.  That is asked by a `LoopingCall`, Twisted's timer that calls a function
again and again.

Everything that the demonstration writes is in one cache folder: a random model (made once, where no real one is
installed), the templates (copies, to be edited), the slot files and the records.  A user's own configuration and
records are not touched.

Does not know how the proxy works.  It changes some settings, asks `ready` whether all templates are warm, and asks its
question as any client would (`bioproxy.demo.tour`).
"""

from __future__ import annotations

import dataclasses
import importlib.util
import shutil
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from twisted.application.service import Service
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.task import LoopingCall

from bioproxy.demo import tiny_model, tour, words
from bioproxy.demo.demo_model import DemoModel, choose_model
from bioproxy.demo.question import Answer, ask
from bioproxy.demo.tour import ANSWER_TOKENS
from bioproxy.llama.connections import Agents
from bioproxy.prompts.templates import Template
from bioproxy.runtime.state_folder import StateFolder
from bioproxy.settings.configuration import Settings, xdg_folder

TEMPLATES = Path(__file__).parent / "templates"
"""The example templates in the package."""

CONTEXT = 8192
"""Tokens that a prompt and its answer may have together: all that SmolLM2 was trained with.

Halved, longer documents that a visitor tries do not fit, above all with the random model, which needs twice the tokens
for a text; doubled, the small model takes 190 MB more memory for a context that it does not understand.
"""

ARGUMENTS = ("--ctx-size", str(CONTEXT), "--predict", str(ANSWER_TOKENS), "--cache-ram", "256")
"""Flags for llama.cpp.

256 MiB of memory for prompts that are finished is enough here; llama.cpp's default of 8 GiB is more than a visitor
expects.
"""

LOOK = 0.2
"""Seconds between two looks whether all is ready: the most that the tour may begin late."""


class Demo(Service):
    """A model, templates and folders for a demonstration.

    `settings` are those to run with: the user's, with those of the demonstration in their place.
    """

    settings: Settings
    """The settings that the proxy is to use."""

    model: DemoModel
    """The model that llama.cpp runs."""

    size = tiny_model.SMALL
    """What random model is made; tests make a smaller one."""

    def __init__(self, settings: Settings, reactor: Any) -> None:
        """Choose folders; `reactor` is the clock.  Raises `SystemExit` if a package is missing.

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
        self._reactor = reactor
        self._folder = folder
        # `announce` says when all is ready.  A `LoopingCall` calls a function every so many seconds, by the clock that
        # it is given.
        self._ready: Callable[[], bool] = lambda: False
        self._looking = LoopingCall(self._look)
        self._looking.clock = reactor
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
            model=self.model.file,
            llama_args=(*ARGUMENTS, *settings.llama_args),
            # The examples come first, as the banner is about them.
            prefixes={**examples, **settings.prefixes},
            slot_save_path=self._folder / "slots",
            state_dir=self._folder / "state",
        )

    def announce(self, ready: Callable[[], bool]) -> None:
        """Show what there is to see as soon as `ready` returns true, which is asked while the service runs."""
        self._ready = ready

    def _look(self) -> None:
        """Begin the tour if all is ready.  Called by Twisted, every `LOOK` seconds."""
        # Once is enough, also if a template becomes cold again later.
        if self._ready():
            self._looking.stop()
            # From here on a coroutine goes on by itself, until it has shown all or is cancelled.
            tour = Deferred.fromCoroutine(self._show())
            # `stopService` would be too late: before it is called, bioproxy waits for requests in progress, and the
            # tour's own question is one.  A trigger is a function that the reactor calls when it is told to stop.
            self._reactor.addSystemEventTrigger("before", "shutdown", tour.cancel)
            # A cancelled tour fails with `CancelledError`, which Twisted would log as a bug if nobody took it.
            tour.addErrback(lambda failure: None if failure.check(CancelledError) else failure)

    def startService(self) -> None:
        """Make the model and the templates.  Called by the parent service, before it starts llama.cpp."""
        # Files are written here and not in the constructor, because a service that is made may never be started.
        super().startService()
        # Copies, so that they can be edited; those that were edited before stay.
        self._templates.mkdir(parents=True, exist_ok=True)
        for source in TEMPLATES.iterdir():
            if not (self._templates / source.name).exists():
                shutil.copyfile(source, self._templates / source.name)
        # A demonstration begins cold, because the warm-up is what there is to see.  Without records, no slot file of
        # an earlier demonstration is used.  Those of one that runs on other ports are in use, which the lock tells.
        state = StateFolder(self.settings.state_dir)
        state.open()
        shutil.rmtree(self.settings.state_dir, ignore_errors=True)
        state.close()
        # Some seconds in which nothing else runs; nothing has been started yet that could be kept waiting.
        if self.model.is_random and not self.model.file.exists():
            self._say(f"making a model, once: {self.model.file} (112 MB)")
            tiny_model.write_model(self.model.file, self.size)
        self._say("starting llama.cpp, which then reads two documents in advance: up to half a minute")
        # The first look comes at once.
        self._looking.start(LOOK)

    def stopService(self) -> None:
        """Announce nothing any more.  Called by the parent service."""
        super().stopService()
        # Not running if the tour has begun, or if the start failed before the loop began.
        if self._looking.running:
            self._looking.stop()

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
