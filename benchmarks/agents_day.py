"""What does an agent's day cost?  The tokens that llama-server computes, alone and with bioproxy in between.

    python -m benchmarks.agents_day

The agent (`tests.support.agents`) has 2,000 tokens of tools and system message, sessions of several turns, a sub-agent,
and requests for titles.  In the middle of the day llama-server is killed and started again.  No template is configured:
all that bioproxy knows is what it learned from the requests.

Both are real processes, and llama.cpp has a small generated model of each kind: dense, sliding window, hybrid.  What is
counted does not depend on how fast the machine is.  `run` is used by the tests and by ``make soak``, too: it fails
where more was computed after the restart than is promised.
"""

from __future__ import annotations

import argparse
import http.client
import json
import re
import sys
import tempfile
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.servers import PATIENCE, Child, Children, free_ports, get, wait_for
from benchmarks.soak_clients import look_for_trouble
from bioproxy.demo import tiny_model
from tests.support.agent_day import Day, Row, Step
from tests.support.agents import DIALECTS, TEMPLATE, Dialect

KINDS = {"dense": tiny_model.TINY, "sliding": tiny_model.SLIDING, "hybrid": tiny_model.HYBRID}
"""The kinds of models, by how much of what they hold they can go back to: any token, the window, or nothing."""

LEARNED = re.compile(r"auto-[0-9a-f]{12}")
"""What ``X-Bioproxy-Prompt`` says where nobody configured the prompt."""

AFTERNOON = 5
"""Requests after llama-server was started again.

They are what is promised: whoever comes after a crash finds what there was before.
"""


@dataclass(frozen=True)
class Answered:
    """A request of the afternoon: what it cost, and what bioproxy's headers say of it."""

    row: Row
    """What was asked, and what llama-server says that it computed and reused."""
    cache: str | None
    """``hot``, ``restored`` or ``cold``; `None` without bioproxy."""
    prompt: str | None
    """The id of the prompt that bioproxy has found, such as ``auto-0123456789ab``."""


def post(port: int, path: str, body: Any) -> tuple[bytes, http.client.HTTPMessage]:
    """Send a request over a connection of its own; return the body and the headers of the answer."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=300)
    connection.request("POST", path, json.dumps(body), {"Content-Type": "application/json"})
    response = connection.getresponse()
    answer = response.read()
    connection.close()
    assert response.status == 200, f"{path}: {response.status} {answer[:500]!r}"
    return answer, response.headers


def metric(port: int, name: str, prefix: str = "bioproxy", **labels: str) -> float:
    """Return the sum of a metric's samples that have these labels.

    `port` is where the metrics are, and `prefix` the program's name, with which its metrics begin.  0 if there is none.
    """
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE)
    connection.request("GET", "/metrics")
    text = connection.getresponse().read().decode()
    connection.close()
    found = re.findall(rf"^{prefix}_{name}(?:\{{(.*)\}})? (\S+)$", text, re.MULTILINE)
    wanted = [f'{key}="{value}"' for key, value in labels.items()]
    return sum(float(value) for said, value in found if all(each in said for each in wanted))


class Llama:
    """A real llama.cpp that can be killed and started again: port, model and slot folder stay."""

    def __init__(self, children: Children, folder: Path, model: Path, *arguments: object) -> None:
        """Start it with a model; `arguments` are further flags of llama-server."""
        self.slots = folder / "slots"
        (self.port,) = free_ports(1)
        self._children = children
        self._starts = 0
        # One thread: with more, llama.cpp's threads wait for each other in busy loops, slow where others work too.
        paths = ("--model", model, "--port", self.port, "--slot-save-path", self.slots, "--threads", 1)
        self._arguments = ["-m", "benchmarks.llama_child", *paths, *arguments]
        self.start()

    def start(self) -> None:
        """Start it; returns when it answers."""
        self._starts += 1
        self.child: Child = self._children.start(f"llama-{self.port}-{self._starts}", self._arguments, self.port)
        wait_for("llama.cpp", lambda: get(self.port, "/health") == {"status": "ok"})

    def kill(self) -> None:
        """End it the hard way: it has no time to close a file that it writes."""
        self.child.process.kill()
        self.child.process.wait()

    def held(self) -> int:
        """Return how many tokens its slot holds, by its own word."""
        return int(get(self.port, "/slots")[0].get("n_prompt_tokens") or 0)

    @property
    def alive(self) -> bool:
        """Whether it runs."""
        return self.child.process.poll() is None


def send(steps: Iterable[Step], port: int) -> list[Answered]:
    """Send requests one after the other; return what each has cost.

    Each step adds to its session first, because a turn contains the answer before it.
    """
    answered = []
    for step in steps:
        step.add()
        answer, headers = post(port, step.session.path, step.session.body(step.stream))
        row = step.hear(answer)
        answered.append(Answered(row, headers["X-Bioproxy-Cache"], headers["X-Bioproxy-Prompt"]))
    return answered


def alone(folder: Path, model: Path, dialects: Sequence[Dialect], *arguments: object) -> list[Answered]:
    """Run a day with llama-server alone; return what each request of the morning and the afternoon computed."""
    day = Day(dialects)
    with ExitStack() as stack:
        llama = Llama(Children(stack, folder), folder, model, *arguments)
        morning = send(day.morning(), llama.port)
        llama.kill()
        llama.start()
        return morning + send(day.afternoon(), llama.port)


def proxied(
    folder: Path, model: Path, dialects: Sequence[Dialect], *arguments: object, new_first: bool = False
) -> list[Answered]:
    """Run the same day with bioproxy in between; with `new_first` the afternoon begins with a new session."""
    day = Day(dialects)
    with ExitStack() as stack:
        children = Children(stack, folder)
        llama = Llama(children, folder, model, *arguments)
        port, admin = free_ports(2)
        options = ("--slot-save-path", llama.slots)
        children.bioproxy("agents", port, admin, f"http://127.0.0.1:{llama.port}", *options)
        wait_for("bioproxy to see llama.cpp", lambda: get(admin, "/status")["llama"]["up"])
        morning = send(day.morning(), port)
        # The agent's and the sub-agent's prompts, and the three conversations that went on.
        wait_for("the learned prompts to be warm", lambda: len(shelf(admin, "learned")) >= 2 and all_warm(admin))
        wait_for(
            "the last conversation to be saved",
            lambda: any(each["tokens"] >= day.first.whole for each in shelf(admin, "conversation")),
        )
        # A file is given up if llama-server dies while reading it, so the kill comes when all is at rest.
        # Warm-ups restore files, too, so that it is in the slot says nothing while one may be running.
        back = "the last conversation to be back after the warm-ups"
        wait_for(back, lambda: at_rest(admin) and llama.held() >= day.first.whole)
        llama.kill()
        llama.start()
        # Before anybody asks, the slot gets what will probably be asked next: the last conversation.
        wait_for("the last conversation to be in the slot", lambda: llama.held() >= day.first.whole)
        first, *rest = day.afternoon()
        afternoon = send([*rest[:2], first, *rest[2:]] if new_first else [first, *rest], port)
        assert llama.alive
        look_for_trouble(folder / "agents.log")
    return morning + afternoon


def shelf(admin: int, kind: str) -> list[Any]:
    """Return the entries of a kind in `/status` that have a file."""
    return [each for each in get(admin, "/status")["prompts"] if each["kind"] == kind and each["bytes"]]


def all_warm(admin: int) -> bool:
    """Tell whether all learned prompts are warm."""
    prompts = [each for each in get(admin, "/status")["prompts"] if each["kind"] == "learned"]
    return all(each["state"] == "warm" for each in prompts)


def at_rest(admin: int) -> bool:
    """Tell whether the gate is free and no prompt is due, so that no warm-up runs or will start by itself."""
    status = get(admin, "/status")
    due = any(each["warmup"]["due"] for each in status["prompts"] if each["warmup"] is not None)
    return status["gate"]["busy"] is None and not due


def check(answered: Sequence[Answered], new_first: bool = False) -> None:
    """Check the promises for the requests after the restart, which are the last ones."""
    late = answered[-AFTERNOON:]
    table = "\n".join(line(each) for each in answered)
    assert all(each.row.is_fine for each in late), f"too much was computed:\n{table}"
    # What is probably asked next is in the slot.  Where it is the last conversation, a new session may need another
    # state, if the model cannot go back to the end of the prompt.
    fine = ("hot", "restored") if new_first else ("hot",)
    assert late[0].cache in fine, f"the first request was {late[0].cache}:\n{table}"
    for each in late:
        assert LEARNED.fullmatch(each.prompt or ""), f"X-Bioproxy-Prompt is {each.prompt}:\n{table}"


def line(answered: Answered) -> str:
    """Return a request as a line of text."""
    row = answered.row
    counts = f"{row.reply.prompt:6} tokens, {row.new:5} new, {row.reply.computed:5} computed"
    return f"  {row.what:20}{row.dialect:11}{counts}  {answered.cache or '-':9}{answered.prompt or ''}"


def write_model(folder: Path, kind: str) -> Path:
    """Write a model of this kind whose chat template shows tools."""
    model = folder / f"{kind}.gguf"
    if not model.exists():
        tiny_model.write_model(model, KINDS[kind], chat_template=TEMPLATE)
    return model


def run(
    folder: Path, kind: str, dialects: Sequence[Dialect], *arguments: object, new_first: bool = False
) -> list[Answered]:
    """Run a day through bioproxy in a folder of its own, and check it.  `AssertionError` says what is wrong."""
    folder.mkdir(parents=True, exist_ok=True)
    answered = proxied(folder, write_model(folder, kind), dialects, *arguments, new_first=new_first)
    check(answered, new_first)
    return answered


def product(folder: Path) -> None:
    """Run each kind of model with each dialect, with llama-server's memory of prompts and without: 18 days."""
    for kind in KINDS:
        for dialect in DIALECTS:
            for arguments in ((), ("--cache-ram", 0)):
                where = folder / f"{kind}-{dialect.name}-{len(arguments)}"
                late = run(where, kind, (dialect,), *arguments)[-AFTERNOON:]
                beyond = ", ".join(f"{each.row.what} {each.row.beyond}" for each in late)
                print(f"  {kind:8} {dialect.name:10}{'--cache-ram 0' if arguments else '':15}{beyond}", flush=True)


def main() -> int:
    """Print, for each kind of model, what both computed for each request."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.agents_day", description=__doc__.split("\n")[0])
    parser.add_argument("--kinds", nargs="*", choices=KINDS, default=list(KINDS), help="models (default: all)")
    parser.add_argument("--cache-ram", type=int, default=256, help="llama-server's own memory, in MiB (default: 256)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="bioproxy-agents-") as name:
        for kind in options.kinds:
            folder = Path(name) / kind
            (folder / "alone").mkdir(parents=True)
            model, more = write_model(folder, kind), ("--cache-ram", options.cache_ram)
            bare = alone(folder / "alone", model, DIALECTS, *more)
            ours = proxied(folder, model, DIALECTS, *more)
            print(f"\n{kind}: prompt tokens computed, llama-server alone and with bioproxy")
            for one, other in zip(bare, ours, strict=True):
                print(f"{line(other)}  (alone {one.row.reply.computed})")
            sums = [sum(each.row.reply.computed for each in answered[-AFTERNOON:]) for answered in (bare, ours)]
            print(f"  after the restart: {sums[0]} alone, {sums[1]} with bioproxy", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
