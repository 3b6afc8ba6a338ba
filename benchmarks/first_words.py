"""How long does a user wait for the first word?  The part of `benchmarks.bench` with a real llama.cpp.

The prompt is a template of about 3,000 tokens and a short question, for the 112 MB model of the demonstration: words
without sense, but computed as those of any other model.  The answer is streamed, and the clock stops at the first
piece of text.  What is compared:

* *cold*: nobody has sent this text before; llama.cpp computes all of it;
* *hot*: the slot holds it still;
* *switched* (bioproxy only): the slot was used for another template since, and bioproxy gets it back from its file;
* *restarted* (bioproxy only): llama.cpp was ended and started again, and the question comes as soon as it is up;
* *edited* (bioproxy only): the template was changed, and warmed up again before the question;
* *warming* (bioproxy only): the question comes in the middle of another template's warm-up, which has to give way;
* *among* (bioproxy only): such questions come every two seconds, until the long template is warm all the same;

That a request was in the state that it is counted under is checked with what llama-server says of each.
"""

from __future__ import annotations

import http.client
import json
import random
import statistics
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.servers import Child, Children, free_ports
from bioproxy.demo.tiny_model import COMMON_WORDS
from bioproxy.settings.configuration import xdg_folder
from bioproxy.warmup.progress import PIECE_SECONDS

TEMPLATE_TOKENS = 3000
LONG_TOKENS = 6000
RUNS = 5
EVERY = 2.0
"""Seconds between questions in `Bench.among_users`."""

STATES = {
    "cold": ("cold",),
    "hot": ("hot",),
    "switched": ("restored",),
    "restarted": ("restored",),
    "edited": ("hot", "restored"),
    "warming": ("restored",),
    "among": ("restored", "hot"),
}
"""What `X-Bioproxy-Cache` may say in each state."""

GOALS = {"switched": 1.5, "restarted": 2.0, "edited": 1.5}
"""Times as long as when it is hot, at most."""


@dataclass
class FirstWords:
    """Asks the real llama.cpp, directly or through bioproxy, and measures the time to the first word.

    `taken` has the seconds by what was asked for; `wrong` what did not go as intended and was counted all the same.
    """

    taken: dict[str, list[float]] = field(default_factory=dict)
    wrong: list[str] = field(default_factory=list)
    prompt: int = 0

    def ask(self, label: str, port: int, message: str) -> None:
        """Ask with a fresh connection, as llama-server closes each after a stream; `label` is ``way, state``."""
        # A question of its own each time: with the very same prompt there would be less to compute.
        text = f"{message} {random.choice(COMMON_WORDS)} {random.choice(COMMON_WORDS)}?"
        question = {"messages": [{"role": "user", "content": text}], "stream": True, "max_tokens": 4}
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        began = time.perf_counter()
        connection.request("POST", "/v1/chat/completions", json.dumps(question), {"Content-Type": "application/json"})
        response = connection.getresponse()
        first = None
        timings: dict[str, int] = {}
        for line in response:
            if line.startswith(b"data: {"):
                event = json.loads(line[6:])
                if first is None and any(choice["delta"].get("content") for choice in event["choices"]):
                    first = time.perf_counter() - began
                timings = event.get("timings", timings)
        connection.close()
        assert response.status == 200 and first is not None, (label, response.status)
        self.taken.setdefault(label, []).append(first)
        self._check(label, response.headers.get("X-Bioproxy-Cache"), timings["cache_n"], timings["prompt_n"])

    def _check(self, label: str, told: str | None, reused: int, computed: int) -> None:
        """Was it really hot, restored or cold?  llama-server's own numbers say so, beside bioproxy's header."""
        self.prompt = reused + computed
        way, state = label.split(", ")
        cold = state == "cold"
        if (told not in STATES[state] and way == "bioproxy") or cold != (computed > self.prompt / 2):
            self.wrong.append(f"{label}: {told}, {reused} tokens reused, {computed} computed")

    def median(self, label: str) -> float:
        """Return the median of the seconds."""
        return statistics.median(self.taken[label])


def first_words(folder: Path, latest: float) -> None:
    """Part d: the time to the first word, with a template of about 3,000 tokens on a real llama.cpp.

    No run begins after `latest`, a time of `time.monotonic`.
    """
    with ExitStack() as stack:
        bench = Bench(Children(stack, folder), folder, FirstWords())
        for number in range(RUNS):
            if number and time.monotonic() > latest:
                print("  no time for more")
                break
            print(f"  run {number + 1} of {RUNS}", flush=True)
            bench.run()
        report(bench.words)
        among_users = bench.among_users()
        print(f"  with a question every {EVERY:g} s, {LONG_TOKENS} tokens were warm after {among_users:.0f} s")


class Bench:
    """A llama.cpp and a bioproxy with two short templates and a long one, all of them warm."""

    def __init__(self, children: Children, folder: Path, words: FirstWords) -> None:
        self.words = words
        self._children = children
        self._folder = folder
        self._llama, self._ours, self._admin = free_ports(3)
        # The demonstration's model: 112 MB that are made once.
        self._model = xdg_folder("XDG_CACHE_HOME", ".cache") / "demo" / "model.gguf"
        print(
            f"\nStarting llama.cpp with {self._model}", "" if self._model.exists() else "(made now, once)", flush=True
        )
        self._server = self._start_llama()
        for name in ("one", "two", "long"):
            self._write(name)
        prefixes = [f"--prefix=@{name}={folder / f'{name}.txt'}" for name in ("one", "two", "long")]
        options = [*prefixes, "--poll-interval", "0.2", "--slot-save-path", folder / "slots"]
        children.bioproxy("bioproxy-llama", self._ours, self._admin, f"http://127.0.0.1:{self._llama}", *options)
        self._wait_warm("one", "two", "long")

    def run(self) -> None:
        """Have each state once or more, llama-server's own and bioproxy's."""
        text = invented(TEMPLATE_TOKENS)
        self.words.ask("direct, cold", self._llama, text)
        self.words.ask("direct, hot", self._llama, text)
        self._ask("switched", "one")
        self._ask("hot", "one")
        self._ask("switched", "two")
        self._ask("hot", "two")

        self._server.end()
        self._server = self._start_llama()
        self._ask("restarted", "one")
        self._ask("hot", "one")

        self._write("one")
        self._wait_warm("one")
        self._ask("edited", "one")

        self._write("long")
        wait_for("a warm-up", lambda: 0 < self._template("long")["progress"] < 1)
        self._ask("warming", "two")
        self._write("one")
        # At once, before anybody else can have noticed.
        self._ask("cold", "one")
        self._wait_warm("one", "long")

    def among_users(self) -> float:
        """Have the long template warmed up while somebody asks all the time; return how many seconds that took."""
        self._write("long")
        began = time.monotonic()
        time.sleep(EVERY)
        while self._template("long")["state"] != "warm":
            if time.monotonic() > began + 200:
                self.words.wrong.append(f"the long template is not warm after {time.monotonic() - began:.0f} s")
                break
            self._ask("among", "one")
            time.sleep(EVERY)
        return time.monotonic() - began

    def _start_llama(self) -> Child:
        slots = self._folder / "slots"
        arguments = ["--model", self._model, "--generate", "small", "--port", self._llama, "--slot-save-path", slots]
        server = self._children.start("llama", ["-m", "benchmarks.llama_child", *arguments], self._llama, 60)
        wait_for("llama.cpp", lambda: get(self._llama, "/health") is not None)
        return server

    def _write(self, name: str) -> None:
        """Write a template anew."""
        words = LONG_TOKENS if name == "long" else TEMPLATE_TOKENS
        (self._folder / f"{name}.txt").write_text(invented(words) + "\n<{message}>")

    def _ask(self, state: str, name: str) -> None:
        self.words.ask(f"bioproxy, {state}", self._ours, f"@{name}")

    def _template(self, name: str) -> Any:
        status = get(self._admin, "/status") or {"templates": []}
        return next((each for each in status["templates"] if each["name"] == name), {"progress": 0, "state": None})

    def _wait_warm(self, *names: str) -> None:
        """Wait until the current texts are warm, and nothing is going on any more."""

        def warm() -> bool:
            states = {self._template(name)["state"] for name in names}
            return states == {"warm"} and get(self._admin, "/status")["gate"]["busy"] is None

        # An edit must have been noticed first.
        time.sleep(0.5)
        wait_for(f"the warm-up of {', '.join(names)}", warm, 90)


def invented(words: int) -> str:
    """Return a text that nobody has seen before.  The generated model has one token for each of its words."""
    return " ".join(random.choices(COMMON_WORDS, k=words))


def get(port: int, path: str) -> Any:
    """Return the JSON answer of a GET request, `None` unless it is a success."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    try:
        connection.request("GET", path)
        response = connection.getresponse()
        return json.loads(response.read()) if response.status == 200 else None
    finally:
        connection.close()


def wait_for(what: str, ready: Callable[[], Any], patience: float = 30.0) -> None:
    """Wait until `ready` says so."""
    deadline = time.monotonic() + patience
    while not ready():
        if time.monotonic() > deadline:
            raise SystemExit(f"waited {patience:.0f} s for {what}")
        time.sleep(0.05)


def report(words: FirstWords) -> None:
    """Print part d."""
    print(f"Time to the first word with {words.prompt} prompt tokens, streaming, in milliseconds")
    print(f"  {'':20}{'p50':>9}{'best':>9}{'worst':>9}{'times':>7}")
    for label, values in sorted(words.taken.items()):
        middle = statistics.median(values) * 1000
        print(f"  {label:20}{middle:9.1f}{min(values) * 1000:9.1f}{max(values) * 1000:9.1f}{len(values):7}")
    hot = words.median("bioproxy, hot")
    for state, goal in GOALS.items():
        ratio = words.median(f"bioproxy, {state}") / hot
        print(f"  {state} / hot: {ratio:.2f}, goal {goal:g}: {'reached' if ratio <= goal else 'MISSED'}")
    switched = words.median("bioproxy, switched")
    print(f"  cold / switched: {words.median('bioproxy, cold') / switched:.1f}")
    more = words.median("bioproxy, warming") - switched
    print(f"  warming - switched: {more:.2f} s; a piece of a warm-up aims at {PIECE_SECONDS:g} s")
    for text in words.wrong:
        print(f"  NOT AS INTENDED  {text}")
