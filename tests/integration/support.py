"""What the integration tests run: llama.cpp in a child process, bioproxy on the real reactor, twistd as people do.

pytest-twisted runs the reactor beside pytest, so a test can be a coroutine that waits for real sockets.  Waiting is
always for a condition (`until`), never for a time.
"""

from __future__ import annotations

import inspect
import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ParamSpec, TypeVar, cast

import pytest_twisted  # type: ignore[import-untyped]
from prometheus_client.parser import text_string_to_metric_families
from treq.client import HTTPClient
from twisted.internet import reactor as _reactor
from twisted.internet.defer import Deferred
from twisted.internet.protocol import Protocol, connectionDone
from twisted.internet.task import deferLater
from twisted.python.failure import Failure
from twisted.web.client import Agent, HTTPConnectionPool, ResponseDone
from twisted.web.http_headers import Headers

from benchmarks.servers import free_ports
from bioproxy.child.supervisor import LlamaChild
from bioproxy.demo.vocabulary import COMMON_WORDS
from bioproxy.service import Options, makeService
from bioproxy.warmup.progress import LEAST

T = TypeVar("T")
P = ParamSpec("P")

# The module `reactor` is whatever reactor was installed; to mypy it is just a module.
reactor: Any = _reactor

ROOT = Path(__file__).parent.parent.parent
"""The checkout."""

PATIENCE = 60.0
"""Seconds that something may take before a test gives up: the machine may be busy with other things."""


def async_test(test: Callable[P, Coroutine[Any, Any, None]]) -> Callable[P, Coroutine[Any, Any, None]]:
    """Mark a test that is a coroutine (pytest-twisted has no types)."""
    return cast("Callable[P, Coroutine[Any, Any, None]]", pytest_twisted.ensureDeferred(test))


def async_fixture(fixture: Callable[P, AsyncIterator[T]]) -> Callable[P, T]:
    """Mark a fixture that is an asynchronous generator."""
    return cast("Callable[P, T]", pytest_twisted.async_yield_fixture(fixture))


async def until(condition: Callable[[], T | None], seconds: float = PATIENCE) -> T:
    """Wait until `condition` gives something true, and return that; fail after so many seconds."""
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < deadline, f"not within {seconds:g} s: {inspect.getsource(condition).strip()}"
        await pause()
    return value


async def eventually(condition: Callable[[], Awaitable[bool]], seconds: float = PATIENCE) -> None:
    """Wait until `condition`, which is a coroutine, says true; fail after so many seconds."""
    deadline = time.monotonic() + seconds
    while not await condition():
        assert time.monotonic() < deadline, f"not within {seconds:g} s: {inspect.getsource(condition).strip()}"
        await pause(0.05)


async def pause(seconds: float = 0.02) -> None:
    """Let the reactor work for a moment before looking again."""
    await cast("Deferred[None]", deferLater(reactor, seconds, lambda: None))


def defer(work: Coroutine[Any, Any, T]) -> Deferred[T]:
    """Start a coroutine; it can then be awaited later, or cancelled."""
    return Deferred.fromCoroutine(work)


def free_port() -> int:
    """Return a TCP port of this machine that nobody listens on, another one each time; no other test gets it."""
    return free_ports(1)[0]


def environment(folder: Path, **more: str) -> dict[str, str]:
    """Return an environment for a process that knows the checkout; all folders of the user are in `folder`."""
    homes = {f"XDG_{name}_HOME": str(folder / name.lower()) for name in ("CONFIG", "STATE", "CACHE")}
    return {**os.environ, **homes, "HOME": str(folder), "PYTHONPATH": str(ROOT), **more}


# HTTP.


@dataclass(frozen=True)
class Answer:
    """An answer, whole."""

    status: int
    headers: Headers
    body: bytes

    def json(self) -> Any:
        """Return the body, decoded."""
        return json.loads(self.body)

    def header(self, name: str) -> str | None:
        """Return a header, or `None`."""
        values = self.headers.getRawHeaders(name)
        return values[-1] if values else None

    @property
    def cache(self) -> str | None:
        """Return how the slot came to hold the template."""
        return self.header("X-Bioproxy-Cache")

    @property
    def miss(self) -> str | None:
        """Return why it was cold."""
        return self.header("X-Bioproxy-Miss")

    def events(self) -> list[str]:
        """Return the data of an event stream's events."""
        return re.findall(r"^data: (.*)$", self.body.decode(), re.MULTILINE)

    @property
    def timings(self) -> Any:
        """Return what llama-server tells of its work, from a body or from the last JSON of a stream."""
        events = self.events()
        return json.loads(events[-2])["timings"] if events else self.json()["timings"]

    @property
    def text(self) -> str:
        """Return what the model said."""
        if not (events := self.events()):
            return str(self.json()["choices"][0]["message"]["content"])
        deltas = [json.loads(event)["choices"][0]["delta"] for event in events[:-1]]
        return "".join(delta.get("content") or "" for delta in deltas)


REST = LEAST - 1
"""Tokens at the end of a prompt that each request computes itself, at most: see `docs/same-answer.md`."""

ODDS: dict[str, Any] = {"logprobs": True, "top_logprobs": 10}
"""Has a chat's answer tell the odds that `agree` compares."""


def agree(one: Answer, other: Answer) -> bool:
    """Tell whether two answers come from the same prompt on the same model, by the likeliest first tokens.

    Texts would not do: the last digits depend on how a prompt was cut into pieces and where in the cache it lies, and
    where two tokens of such a model are nearly as likely, the text becomes another one.  A wrong slot file makes a
    difference of 0.5 and more.
    """
    first, second = (
        {
            each["token"]: each["logprob"]
            for each in answer.json()["choices"][0]["logprobs"]["content"][0]["top_logprobs"]
        }
        for answer in (one, other)
    )
    common = first.keys() & second.keys()
    return len(common) >= 8 and all(abs(first[token] - second[token]) < 0.1 for token in common)


async def begin(method: str, url: str, body: Any = None, headers: Mapping[str, str] | None = None) -> Any:
    """Send a request over a connection of its own; fires with treq's response when its head is here."""
    pool = HTTPConnectionPool(reactor, persistent=False)
    client = HTTPClient(Agent(reactor, connectTimeout=5, pool=pool))
    more = {} if body is None else {"json": body}
    sent = Headers({name: [value] for name, value in (headers or {}).items()})
    call = client.request(method, url, headers=sent, unbuffered=True, allow_redirects=False, **more)
    return await cast("Deferred[Any]", call.addTimeout(60, reactor))


async def fetch(method: str, url: str, body: Any = None, headers: Mapping[str, str] | None = None) -> Answer:
    """Send a request over a connection of its own; fires with the whole answer."""
    response = await begin(method, url, body, headers)
    content = await cast("Deferred[bytes]", response.content().addTimeout(60, reactor))
    return Answer(response.code, response.headers, content)


class Call(Protocol):
    """A POST whose client can hang up at any moment.

    `status` is that of the answer once its head is here, `received` what came of its body, and `whole` tells whether
    that is all of it, by its length or its chunks.  `over` fires at the end, whatever the end is.
    """

    def __init__(self, url: str, body: Any, headers: Mapping[str, str] | None = None) -> None:
        self.status: int | None = None
        self.headers = Headers()
        self.received = b""
        self.whole = False
        self.over: Deferred[None] = Deferred()
        self._head = defer(begin("POST", url, body, headers))
        self._head.addCallbacks(self._begun, lambda _: self.over.callback(None))

    def hang_up(self) -> None:
        """Close the connection."""
        if self.status is None:
            self._head.cancel()
        elif self.transport is not None:
            self.transport.loseConnection()

    @property
    def answer(self) -> Answer:
        """What came so far."""
        return Answer(self.status or 0, self.headers, self.received)

    def _begun(self, response: Any) -> None:
        self.status, self.headers = response.code, response.headers
        response.deliverBody(self)

    def dataReceived(self, data: bytes) -> None:
        """Keep a piece of the body.  Called by Twisted."""
        self.received += data

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """Note the end.  Called by Twisted."""
        self.whole = reason.check(ResponseDone) is not None
        self.over.callback(None)


async def answers(url: str) -> bool:
    """Tell whether somebody answers 200 there."""
    try:
        return (await fetch("GET", url)).status == 200
    except Exception:
        return False


def conversation(*messages: str, **more: Any) -> dict[str, Any]:
    """Return a chat request; messages are the user's and assistant's in turn.  The answer is short, and repeatable."""
    roles = ("user", "assistant")
    chat = [{"role": roles[number % 2], "content": text} for number, text in enumerate(messages)]
    return {"messages": chat, "max_tokens": 8, "temperature": 0, **more}


def prose(words: int, seed: int) -> str:
    """Return a text of about so many tokens, another one for each seed."""
    return " ".join(random.Random(seed).choices(COMMON_WORDS, k=words)) + ". "


# llama.cpp.


class LlamaServer:
    """A llama.cpp in a child process.  It keeps its address, its model's path and its slot folder over restarts.

    `arguments` are for the next start, and so is `params`: values of llama.cpp's `CommonParams`.
    """

    def __init__(self, folder: Path, model: Path, *arguments: str, slots: bool = True) -> None:
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.model = model
        self.slots = folder / "slots"
        self._output = folder / f"llama-{self.port}.out"
        self.arguments = [*arguments, *(["--slot-save-path", str(self.slots)] if slots else [])]
        self.params: dict[str, Any] = {}
        self._environment = environment(folder)
        self._process: subprocess.Popen[bytes] | None = None

    async def start(self) -> None:
        """Start it; fires when it answers."""
        child = ["bioproxy.child.wheel_server"]
        if self.params:
            child = ["tests.integration.llama_with", json.dumps(self.params)]
        # With all of llama.cpp's interface, and little memory for prompts that are finished.
        usual = ["--metrics", "--props", "--cache-ram", "256"]
        command = [sys.executable, "-m", *child, "--model", str(self.model), *usual]
        self.slots.mkdir(exist_ok=True)
        with open(self._output, "wb") as output:
            # One thread: with more, llama.cpp's threads wait for each other in busy loops, slow where others work too.
            self._process = subprocess.Popen(
                [*command, "--port", str(self.port), "--threads", "1", *self.arguments],
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=subprocess.DEVNULL,
                env=self._environment,
                cwd=self.model.parent,
            )
        await until(lambda: b"listening on" in self._output.read_bytes() or not self.alive)
        assert self.alive, "llama.cpp ended at once"

    @property
    def log(self) -> str:
        """What it has logged since its start."""
        return self._output.read_text(errors="replace")

    @property
    def alive(self) -> bool:
        """Tell whether the process runs."""
        return self._process is not None and self._process.poll() is None

    def signal(self, number: signal.Signals) -> None:
        """Send it a signal."""
        assert self._process is not None
        self._process.send_signal(number)

    @property
    def unread(self) -> int:
        """Return how many bytes were sent to it that it has not read."""
        rows = [row.split() for row in Path("/proc/net/tcp").read_text().splitlines()[1:]]
        return sum(int(row[4].partition(":")[2], 16) for row in rows if row[1].endswith(f":{self.port:04X}"))

    def kill(self) -> None:
        """End it the hard way."""
        if self._process is not None:
            self._process.kill()
            self._process.communicate(timeout=10)

    async def restart(self) -> None:
        """Be killed and start again."""
        self.kill()
        await self.start()

    async def call(self, method: str, path: str, body: Any = None) -> Answer:
        """Ask it, past the proxy."""
        return await fetch(method, self.url + path, body)

    async def cold(self, *messages: str, **more: Any) -> Answer:
        """Return its answer to a chat when it computes all of it."""
        question = conversation(*messages, cache_prompt=False, **more)
        return await self.call("POST", "/v1/chat/completions", question)

    async def slot(self) -> Any:
        """Return what it says of its slot."""
        return (await self.call("GET", "/slots")).json()[0]

    async def idle(self) -> bool:
        """Tell whether its slot is idle."""
        return not (await self.slot())["is_processing"]

    async def decoding(self) -> bool:
        """Tell whether it is in the middle of an answer."""
        slot = await self.slot()
        return bool(slot["is_processing"] and slot["next_token"][0]["n_decoded"] > 3)


# bioproxy.


class ConfiguredProxy:
    """A bioproxy that is asked over the network, and its configuration `file`; whoever makes one has it run.

    Without `llama_url` it needs the setting `model`, and starts llama.cpp itself.
    """

    def __init__(self, folder: Path, llama_url: str | None, templates: Mapping[str, str], **settings: Any) -> None:
        self.folder = folder
        self.url = f"http://127.0.0.1:{free_port()}"
        self.admin_url = f"http://127.0.0.1:{free_port()}"
        for name, text in templates.items():
            self.path(name).write_text(text)
        configuration = {
            "port": int(self.url.rpartition(":")[2]),
            "admin_port": int(self.admin_url.rpartition(":")[2]),
            **({} if llama_url is None else {"llama_url": llama_url}),
            "prefixes": {f"@{name}": f"{name}.txt" for name in templates},
            "poll_interval": 0.1,
            "state_dir": "state",
            **settings,
        }
        self.file = folder / "conf.json"
        self.file.write_text(json.dumps(configuration))

    def path(self, name: str) -> Path:
        """Return a template's file."""
        return self.folder / f"{name}.txt"

    async def chat(self, *messages: str, **more: Any) -> Answer:
        """Send a chat; see `conversation`."""
        return await self.call("POST", "/v1/chat/completions", conversation(*messages, **more))

    async def call(self, method: str, path: str, body: Any = None) -> Answer:
        """Send any request."""
        return await fetch(method, self.url + path, body)

    def ring(self, *messages: str, headers: Mapping[str, str] | None = None, **more: Any) -> Call:
        """Send a chat with a client that may hang up; see `conversation`."""
        return Call(self.url + "/v1/chat/completions", conversation(*messages, **more), headers)

    async def gate(self, busy: str | None, waiting: int) -> bool:
        """Tell whether the gate is like this."""
        gate = (await self.status())["gate"]
        return bool((gate["busy"], gate["waiting"]) == (busy, waiting))

    async def status(self) -> Any:
        """Return `/status`."""
        return (await fetch("GET", self.admin_url + "/status")).json()

    async def template(self, name: str) -> Any:
        """Return what `/status` says of a template."""
        return next(each for each in (await self.status())["templates"] if each["name"] == name)

    async def look(self, *names: str) -> None:
        """Have templates' files looked at now; what was edited is not taken for warm from here on."""
        for name in names:
            assert (await fetch("GET", f"{self.admin_url}/templates/{name}/render")).status == 200

    async def warm(self, *names: str) -> int:
        """Wait until they are warm, in files where there can be some; fires with the tokens of the last one."""

        async def all_warm() -> bool:
            status = await self.status()
            found = [each for each in status["templates"] if each["name"] in names and each["state"] == "warm"]
            return len(found) == len(names) and all(
                each["warmed_at"] or not status["llama"]["slot_save"] for each in found
            )

        await eventually(all_warm)
        return int((await self.template(names[-1]))["tokens"])

    async def sample(self, metric: str, **labels: str) -> float:
        """Return the sum of a metric's values that have these labels; 0 if nothing was counted."""
        text = (await fetch("GET", self.admin_url + "/metrics")).body.decode()
        return sum(
            sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
            if sample.name == f"bioproxy_{metric}" and labels.items() <= sample.labels.items()
        )

    async def rounds(self, seconds: float = 1.1) -> None:
        """Wait until warm-ups would have been tried twice more."""
        began = float((await self.status())["uptime_s"])

        async def passed() -> bool:
            return float((await self.status())["uptime_s"]) >= began + seconds

        await eventually(passed)


class RunningProxy(ConfiguredProxy):
    """A bioproxy in this process, on the real reactor, with what `makeService` makes of a configuration file."""

    def __init__(self, folder: Path, llama_url: str | None, templates: Mapping[str, str], **settings: Any) -> None:
        super().__init__(folder, llama_url, templates, **settings)
        options = Options()
        options.parseOptions(["--config", str(self.file)])
        self._service = makeService(options)
        self._running = False

    def start(self) -> None:
        """Start it the way twistd does."""
        self._running = True
        self._service.privilegedStartService()
        self._service.startService()

    @property
    def child(self) -> LlamaChild:
        """The llama.cpp that it starts itself."""
        service = self._service.getServiceNamed("llama.cpp")
        assert isinstance(service, LlamaChild)
        return service

    async def stop(self) -> None:
        """Stop it; fires when everything is over."""
        if self._running:
            self._running = False
            await cast("Deferred[None]", self._service.stopService())


# twistd.

TWISTD = str(Path(sys.executable).with_name("twistd"))
FOREGROUND = [TWISTD, "--pidfile=", "-n", "bioproxy"]


class Twistd:
    """A twistd process in the foreground, or any other command, whose output goes to files."""

    def __init__(self, folder: Path, command: list[str], env: Mapping[str, str]) -> None:
        self._out, self._err = folder / f"{time.monotonic_ns()}.out", folder / f"{time.monotonic_ns()}.err"
        with open(self._out, "wb") as out, open(self._err, "wb") as err:
            self.process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=out, stderr=err, env=dict(env), cwd=folder
            )

    @property
    def output(self) -> str:
        """Return what it wrote so far, to standard output and standard error."""
        return self._out.read_text() + self._err.read_text()

    async def ended(self, seconds: float = PATIENCE) -> int:
        """Wait for its end; fires with the exit code, that of a shell for signals."""
        await until(lambda: self.process.poll() is not None, seconds)
        code = self.process.returncode
        return code if code >= 0 else 128 - code

    async def terminate(self) -> int:
        """Send SIGTERM; see `ended`."""
        self.process.send_signal(signal.SIGTERM)
        return await self.ended()

    @property
    def waited_in_vain(self) -> bool:
        """Tell whether a bioproxy said at its end that it had to give up waiting for something.

        How long an end takes, the machine has a say in; whether it is done at once, it has not: each step that waits
        for something that does not come is given up at last, and that is logged.
        """
        return bool(re.search("stopping before an answer was finished|and is killed", self.output))

    def kill(self) -> None:
        """End it the hard way, if it still runs."""
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait(timeout=10)


def is_running(pid: int) -> bool:
    """Tell whether a process exists and is more than an entry that nobody has collected yet."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def children(pid: int) -> list[int]:
    """Return the processes that a process started."""
    found = []
    for entry in Path("/proc").glob("[0-9]*/stat"):
        try:
            parent = int(entry.read_text().rpartition(")")[2].split()[1])
        except (FileNotFoundError, ProcessLookupError):
            continue
        if parent == pid:
            found.append(int(entry.parent.name))
    return found
