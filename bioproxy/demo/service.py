"""``--demo``: settings with a model and two templates, and what to try with them.

The demonstration is a bioproxy with the setting `model`, which starts llama.cpp itself (`bioproxy.child`).  `Demo` is a
`Service` that comes before all others: it changes the settings, makes the model and the templates when it starts, and
prints what to try when all templates are warm.  That is asked by a `LoopingCall`, Twisted's timer that calls a function
again and again.

Everything that the demonstration writes is in one cache folder: the model (made once), the templates (copies, to be
edited), the slot files and the records.  A user's own configuration and records are not touched.

Does not know how the proxy works.  It changes some settings, and asks `ready` whether all templates are warm.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from twisted.application.service import Service
from twisted.internet.task import LoopingCall

from bioproxy.demo import tiny_model
from bioproxy.prompts.templates import Template
from bioproxy.settings.configuration import Settings, xdg_folder

TEMPLATES = Path(__file__).parent / "templates"
"""The example templates in the package."""

ANSWER_TOKENS = 48
"""Tokens of an answer to a request that names no limit.

A random model never decides to stop, so without a limit an answer would fill the whole context.  Half as many would
show too little of a stream; twice as many only let a user wait longer.
"""

ARGUMENTS = ("--predict", str(ANSWER_TOKENS), "--cache-ram", "256", "--verbosity", "2")
"""Flags for llama.cpp.

256 MiB of memory for prompts that are finished is enough here; llama.cpp's default of 8 GiB is more than a visitor
expects.  The verbosity leaves warnings and errors in the log: what is to be seen here is what bioproxy does.
"""

LOOK = 0.2
"""Seconds between two questions whether all is ready: the most that the banner may come late."""

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
"""What is printed when all templates are warm.  The commands are run as they stand by an integration test."""


class Demo(Service):
    """A model, templates and folders for a demonstration.

    `settings` are those to run with: the user's, with those of the demonstration in their place.
    """

    settings: Settings
    """The settings that the proxy is to use."""

    size = tiny_model.SMALL
    """What model is made; tests make a smaller one."""

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
        self._model = folder / "model.gguf"
        self._templates = folder / "templates"
        self._reactor = reactor
        self._announcement: LoopingCall | None = None
        self._folder = folder
        # The user's settings go in, for ports, limits and templates of the user's own.
        self.settings = self.adapted(settings)

    def adapted(self, settings: Settings) -> Settings:
        """Return settings with the demonstration's own in their place; called again for each reload.

        A template of the user's replaces the example of the same name.
        """
        # Compared by name, since ``@code`` and ``/code`` would have the same slot files.
        own = {Template.of(prefix, file).name for prefix, file in settings.prefixes.items()}
        examples = {f"@{name}": self._templates / f"{name}.txt" for name in ("code", "story") if name not in own}
        return dataclasses.replace(
            settings,
            model=self._model,
            llama_args=(*ARGUMENTS, *settings.llama_args),
            # The examples come first, as the banner is about them.
            prefixes={**examples, **settings.prefixes},
            slot_save_path=self._folder / "slots",
            state_dir=self._folder / "state",
        )

    def announce(self, ready: Callable[[], bool]) -> None:
        """Print the banner as soon as `ready` returns true.  To be called before the service starts."""

        def look() -> None:
            """Ask once more.  Called by the loop."""
            assert self._announcement is not None
            # Once is enough, also if a template becomes cold again later.
            if ready():
                self._announcement.stop()
                self._say(self._banner())

        # A `LoopingCall` calls a function every so many seconds, by the clock that it is given.
        self._announcement = LoopingCall(look)
        self._announcement.clock = self._reactor

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
        # an earlier demonstration is used.
        shutil.rmtree(self.settings.state_dir, ignore_errors=True)
        # Some seconds in which nothing else runs; nothing has been started yet that could be kept waiting.
        if not self._model.exists():
            self._say(f"making a model, once: {self._model} (112 MB)")
            tiny_model.write_model(self._model, self.size)
        self._say("starting llama.cpp, and warming the templates up: some seconds")
        # The first look comes at once.
        if self._announcement is not None:
            self._announcement.start(LOOK)

    def stopService(self) -> None:
        """Announce nothing any more.  Called by the parent service."""
        super().stopService()
        # Not running if the banner has been printed, or if the start failed before the loop began.
        if self._announcement is not None and self._announcement.running:
            self._announcement.stop()

    def _say(self, text: str) -> None:
        """Print a text as it is.

        twistd has put the log in the place of `sys.stdout`, so `print` alone would make log lines of it.
        """
        # `None` where the process was started without standard output.
        if sys.__stdout__ is not None:
            print(text, file=sys.__stdout__, flush=True)

    def _banner(self) -> str:
        """Return the banner, with commands that work for this demonstration's ports and folders."""
        # The address of `host` and `port`: with `listen` the commands have to be adapted by the user.
        url = f"http://{self.settings.host}:{self.settings.port}/v1/chat/completions"

        def ask(message: str) -> str:
            """Return a command that asks this, and shows only what bioproxy adds to the answer."""
            body = f'{{"messages": [{{"role": "user", "content": "{message}"}}]}}'
            return f"curl -si {url} -d '{body}' | grep -iE 'x-bioproxy|cache_n'"

        # The same question twice: the first answer shows "restored", the second one "hot".
        return BANNER.format(
            ask_code=ask("@code where is the line in front of the server?"),
            ask_story=ask("@story a chair that nobody needs"),
            templates=self._templates,
            admin=f"http://{self.settings.admin_host}:{self.settings.admin_port}",
        )
