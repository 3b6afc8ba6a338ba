"""Five agents at the same time, in the order of their arrival and with a gate that plans ahead.

Each agent has tools and a system message of 2,000 tokens of its own, and a conversation of ten turns; between two turns
it works with a tool for a moment.  Both orders run one after the other on a real llama.cpp with a generated model,
without its own memory of prompts (``--cache-ram 0``), each with empty folders.

    python -m benchmarks.parallel_agents [dense|sliding|hybrid|MODEL.gguf [AGENTS [TURNS]]]

With a real model each answer is a tool call (``tool_choice: required``), after which the gate lingers; a generated
model's random words are none.  It prints the prompt tokens that were computed, as a multiple of those that were new,
and how long all of it took.
"""

from __future__ import annotations

import json
import sys
import tempfile
import threading
import time
from collections import Counter
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from benchmarks.agents_day import Llama, metric, post, write_model
from benchmarks.first_words import get, wait_for
from benchmarks.servers import Children, free_ports
from tests.support.agents import CHAT, Session, agent, prose

AGENTS, TURNS = 5, 10
"""How many agents there are, and how many turns each has."""

TOOL_SECONDS = 0.1
"""How long an agent works between two turns."""

ORDERS = {
    "in order of arrival": ("--patience", "0", "--linger", "0", "--no-head-start"),
    "planned ahead": (),
}


class Agent:
    """One agent: it counts what is new in its prompts, and what llama-server computes for them."""

    def __init__(self, number: int, **more: Any) -> None:
        self.more = more
        self.ended: Counter[str] = Counter()
        self.session: Session = agent(CHAT, seed=f"agent {number}").session()
        self.number, self.new, self.computed, self.prompt = number, 0, 0, 0
        self.waits: list[float] = []

    def work(self, port: int, turns: int) -> None:
        """Run the conversation."""
        self.session.ask(prose(60, f"{self.number} begins"))
        for turn in range(turns):
            began = time.monotonic()
            answer, _ = post(port, self.session.path, self.session.body(temperature=0, **self.more))
            self.ended[json.loads(answer)["choices"][0]["finish_reason"]] += 1
            self.waits.append(time.monotonic() - began)
            reply = self.session.hear(answer)
            # What stands behind the last prompt is new: its answer, and the message after that.
            self.new += reply.prompt - self.prompt
            self.computed += reply.computed
            self.prompt = reply.prompt
            time.sleep(TOOL_SECONDS)
            self.session.use_tool(prose(150, f"{self.number} {turn}"))


def run(model: Path, folder: Path, agents_count: int, turns: int, more: dict[str, Any], *options: str) -> str:
    """Let the agents work; return a line of the table."""
    with ExitStack() as stack:
        children = Children(stack, folder)
        llama = Llama(children, folder, model, "--cache-ram", 0)
        port, admin = free_ports(2)
        url = f"http://127.0.0.1:{llama.port}"
        children.bioproxy("agents", port, admin, url, "--slot-save-path", llama.slots, *options)
        wait_for("bioproxy to see llama.cpp", lambda: get(admin, "/status")["llama"]["up"])
        agents = [Agent(number, **more) for number in range(agents_count)]
        threads = [threading.Thread(target=each.work, args=(port, turns)) for each in agents]
        began = time.monotonic()
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        seconds = time.monotonic() - began
        new, computed = (sum(getattr(each, name) for each in agents) for name in ("new", "computed"))
        longest = max(wait for each in agents for wait in each.waits)
        passed, lingered = metric(admin, "passed_over_seconds_sum"), metric(admin, "linger_total", result="came")
        ended = sum((each.ended for each in agents), Counter[str]())
        return (
            f"{computed:7} computed of {new} new ({computed / new:.2f} times), {seconds:5.1f} s in all,"
            f" the longest request {longest:.1f} s, passed over {passed:.1f} s in all,"
            f" {lingered:.0f} came while the gate lingered; answers ended with {dict(ended)}"
        )


def main(kind: str, agents_count: int, turns: int) -> None:
    """Run both orders."""
    with tempfile.TemporaryDirectory() as folder:
        real = Path(kind).suffix == ".gguf"
        model = Path(kind).resolve() if real else write_model(Path(folder), kind)
        more: dict[str, Any] = {"tool_choice": "required", "max_tokens": 200} if real else {"max_tokens": 30}
        for name, options in ORDERS.items():
            place = Path(folder) / name.split()[0]
            place.mkdir()
            print(f"{kind}, {name:20}{run(model, place, agents_count, turns, more, *options)}", flush=True)


if __name__ == "__main__":
    given = sys.argv[1:]
    counts = [*map(int, given[1:]), *(AGENTS, TURNS)[len(given[1:]) :]]
    main(given[0] if given else "dense", counts[0], counts[1])
