"""What is compared where a real llama-server computes: each contestant with a llama.cpp of its own.

A `Side` is one contestant: a llama.cpp, and a proxy in front of it or none.  Only one side is asked at a time, so the
others' llama.cpp stand still and cost memory only.  Both programs can be started again, as after an update or a crash.

A prompt that many questions share is a *document* here.  bioproxy has it as a template file, and a question names it
(``@notes why?``).  Without bioproxy the client sends the whole text each time, as clients do.

* `Alone` is llama.cpp with its own memory of prompts (``--cache-ram``, 8 GiB by default);
* `Hearth` is hearth-llm, a proxy from PyPI that saves the slot after each answer and restores it for the longest
  conversation that a request continues;
* `Bioproxy` watches template files, warms them up before anybody asks, and learns prompts that requests share.

Does not know what is measured.
"""

from __future__ import annotations

import time
import urllib.request
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from benchmarks.bench.asking import Message
from benchmarks.bench.contestants import environment
from benchmarks.servers import PATIENCE, Child, Children, free_ports, get, wait_for

CACHE_RAM = 8192
"""MiB of llama.cpp's memory of prompts: its own default."""

CONTEXT = 8192
"""Tokens of the context."""

READING = 0.3
"""Seconds after an answer, in which a proxy begins what it does then, such as saving the slot."""

WARMING = 600.0
"""Seconds that a warm-up may take."""

HEARTH = "hearth-llm"
"""The name of the package on PyPI."""

INSTALLING = 300
"""Seconds that the installation of hearth-llm may take."""


class Side:
    """llama.cpp alone, and what all contestants share.

    Invariant: between two calls both programs run, and `port` is where clients ask.
    """

    name = "llama.cpp alone"

    def __init__(self, children: Children, folder: Path, model: Path, threads: int, recorded: bool = False) -> None:
        """Start both programs; `recorded` puts a `benchmarks.bench.recorder` between them, where `llama_url` leads."""
        self._children = children
        self._folder = folder
        self._starts = 0
        self.slots = folder / "slots"
        self._documents: dict[str, str] = {}
        (self._llama_port,) = free_ports(1)
        paths = ("--model", model, "--port", self._llama_port, "--slot-save-path", self.slots)
        amounts = ("--ctx-size", CONTEXT, "--cache-ram", CACHE_RAM, "--threads", threads, "--threads-batch", threads)
        self._arguments = ("-m", "benchmarks.llama_child", *paths, *amounts)
        self._llama = self._start_llama()
        self.llama_url = f"http://127.0.0.1:{self._llama_port}"
        if recorded:
            (recorder,) = free_ports(1)
            children.start(
                f"recorder-{recorder}", ("-m", "benchmarks.bench.recorder", recorder, self.llama_url), recorder
            )
            self.llama_url = f"http://127.0.0.1:{recorder}"
        self.proxy = self._start_proxy()

    @property
    def port(self) -> int:
        """Where clients ask."""
        return self._llama_port if self.proxy is None else self.proxy.port

    def write(self, name: str, text: str) -> None:
        """Give a document this text."""
        self._documents[name] = text

    def question(self, name: str, text: str) -> Message:
        """Return a question about a document, as this side's clients send it."""
        return {"role": "user", "content": f"{self._documents[name]}\n{text}"}

    def settle(self) -> None:
        """Wait until this side has done what it does after an answer, or after a document was written."""
        # llama.cpp alone does nothing then: what it keeps of a prompt, it keeps when the next one comes.

    def restart_llama(self) -> None:
        """End llama.cpp and start it again; returns as soon as it is ready for questions."""
        self._llama.end()
        self._llama = self._start_llama()

    def restart_proxy(self) -> None:
        """End the proxy and start it again; returns as soon as it is ready for questions."""
        if self.proxy is not None:
            self.proxy.end()
            self.proxy = self._start_proxy()

    def _start_llama(self) -> Child:
        self._starts += 1
        name = f"llama-{self._llama_port}-{self._starts}"
        llama = self._children.start(name, self._arguments, self._llama_port, 120)
        wait_for("llama.cpp", lambda: get(self._llama_port, "/health") is not None, 120)
        return llama

    def _start_proxy(self) -> Child | None:
        return None


class Alone(Side):
    """llama.cpp alone."""


class Hearth(Side):
    """hearth-llm in front of llama.cpp."""

    name = HEARTH

    def settle(self) -> None:
        """Wait until the slot is saved: the list of files is then newer than each of them."""
        time.sleep(READING)
        wait_for("hearth-llm to save the slot", self._is_saved, WARMING)

    def _is_saved(self) -> bool:
        listed = self.slots / "manifest.json"
        written = [file.stat().st_mtime for file in self.slots.glob("*.kv")]
        return not written or (listed.exists() and listed.stat().st_mtime >= max(written))

    def _start_proxy(self) -> Child:
        command = environment("hearth", HEARTH, INSTALLING) / "hearth"
        (port,) = free_ports(1)
        arguments = ("serve", "--upstream", self.llama_url, "--cache-dir", self.slots, "--port", port)
        return self._children.start(f"hearth-{port}", arguments, port, program=command)


class Bioproxy(Side):
    """bioproxy in front of llama.cpp."""

    name = "bioproxy"

    def __init__(
        self,
        children: Children,
        folder: Path,
        model: Path,
        threads: int,
        recorded: bool = False,
        names: Sequence[str] = (),
    ) -> None:
        """Start both, with templates of these names, which are all short at first."""
        self._names = names
        for name in names:
            self._path(folder, name).write_text(f"Notes about {name}. <{{message}}>")
        super().__init__(children, folder, model, threads, recorded)

    @staticmethod
    def _path(folder: Path, name: str) -> Path:
        return folder / f"{name}.txt"

    def write(self, name: str, text: str) -> None:
        """Write the template file."""
        self._path(self._folder, name).write_text(f"{text}\n<{{message}}>")

    def question(self, name: str, text: str) -> Message:
        """Return a question that names the template."""
        return {"role": "user", "content": f"@{name} {text}"}

    def settle(self) -> None:
        """Wait until all that bioproxy knows is warm, and nothing goes on any more."""
        # An edit must have been noticed first: whoever asks for a template's text has its files looked at.
        for name in self._names:
            address = f"http://127.0.0.1:{self._admin}/templates/{name}/render"
            urllib.request.urlopen(address, timeout=PATIENCE).close()
        # And what follows an answer must have begun.
        time.sleep(READING)
        wait_for("all warm-ups", self._is_quiet, WARMING)

    def _is_quiet(self) -> bool:
        status = self.status()
        states = {each["state"] for each in status["prompts"] if each["kind"] in ("template", "learned")}
        return states <= {"warm", "error"} and status["gate"]["busy"] is None

    def template(self, name: str) -> Any:
        """Return what `/status` says of a template."""
        return next(each for each in self.status()["templates"] if each["name"] == name)

    def status(self) -> Any:
        """Return `/status`."""
        return get(self._admin, "/status")

    def _start_proxy(self) -> Child:
        port, self._admin = free_ports(2)
        prefixes = [f"--prefix=@{name}={self._path(self._folder, name)}" for name in self._names]
        # What was edited is noticed ten times as soon as by default, so that less of the run is spent with waiting.
        options = (*prefixes, "--poll-interval", "0.2", "--slot-save-path", self.slots)
        name = f"bioproxy-{self._folder.name}"
        proxy = self._children.bioproxy(name, port, self._admin, self.llama_url, *options)
        wait_for("bioproxy to see llama.cpp", lambda: self.status()["llama"]["up"])
        return proxy


def kinds(from_pypi: Collection[str]) -> list[type[Side]]:
    """Return the contestants, if only these programs may be installed from PyPI."""
    return [Alone, *([Hearth] if HEARTH in from_pypi else []), Bioproxy]
