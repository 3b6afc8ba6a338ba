"""Five agents at the same time, in the order of their arrival and with a gate that plans ahead.

Each agent has a tool and a system message of its own, 2,000 tokens together, and a conversation of ten turns; between
two turns it works with the tool for a moment.  Each answer is a real tool call, so the gate lingers
(`tests.support.tool_callers`).  Both orders run one after the other on a real llama.cpp, each with empty folders.

    python -m benchmarks.parallel_agents [dense sliding hybrid] [--cache-ram MIB] [--agents 5] [--turns 10]
                                         [--width 64] [--blocks 0] [--each]

The simulation of the same question, over many more runs, is `benchmarks.scheduling`; this one shows that a real
llama.cpp behaves as it is simulated.

llama.cpp's own memory of prompts is off, unless ``--cache-ram`` says otherwise.  The default model computes thousands
of tokens a second, so switching costs nothing in time; ``--width 384 --blocks 6`` is slow enough to feel it.  Printed
are the prompt tokens that were computed, as a multiple of those that were new, and how long all of it took; with
``--each``, each request as well.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import threading
import time
from collections import Counter
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path

from benchmarks.agents_day import KINDS, Llama, metric, post
from benchmarks.servers import Children, free_ports, get, wait_for
from bioproxy.demo import tiny_model
from tests.support.agents import Session, prose
from tests.support.tool_callers import TEMPLATE, calling_agent, calls_a_tool

TOOL_SECONDS = 0.1
"""Seconds that an agent works between two turns.

Halved, the gate hardly lingers; with half a second and more it would linger in vain, which is another question.
"""

ORDERS = {
    "in order of arrival": ("--patience", "0", "--linger", "0", "--no-head-start"),
    "planned ahead": (),
}
"""What is compared, and bioproxy's options for it; the second one has the defaults."""


@dataclass(frozen=True)
class Answered:
    """One request, as it turned out; times are in seconds."""

    agent: int
    turn: int
    """0 for the agent's first one."""
    ended: str
    """Why the answer ended, as llama-server says."""
    cache: str | None
    """``hot``, ``restored`` or ``cold``, as bioproxy says."""
    prompt: int
    """Tokens of the prompt."""
    new: int
    """Those that no earlier prompt of this agent had."""
    computed: int
    """Those that llama-server computed."""
    seconds: float
    """Until the whole answer was there, waiting included."""


@dataclass
class Outcome:
    """What one order has cost."""

    seconds: float = 0.0
    answered: list[Answered] = field(default_factory=list)
    metrics: dict[str, float] = field(default_factory=dict)

    @property
    def multiple(self) -> float:
        """The computed tokens, as a multiple of the new ones."""
        return sum(each.computed for each in self.answered) / sum(each.new for each in self.answered)

    def __str__(self) -> str:
        new, computed = (sum(getattr(each, name) for each in self.answered) for name in ("new", "computed"))
        longest = max(each.seconds for each in self.answered)
        told = ", ".join(f"{name} {value:.3g}" for name, value in self.metrics.items())
        return (
            f"{computed:6} computed of {new} new ({self.multiple:.2f} times), {self.seconds:5.1f} s in all,"
            f" longest request {longest:.1f} s, {told},"
            f" ended with {dict(Counter(each.ended for each in self.answered))}"
        )


def converse(port: int, number: int, turns: int, outcome: Outcome) -> None:
    """Be one agent, for so many turns; note each answer in `outcome`.  Runs in a thread of its own."""
    session: Session = calling_agent(seed=f"agent {number}").session()
    session.ask(prose(60, f"{number} begins"))
    before = 0
    for turn in range(turns):
        began = time.monotonic()
        answer, headers = post(port, session.path, session.body(**calls_a_tool()))
        seconds = time.monotonic() - began
        reply, ended = session.hear(answer), json.loads(answer)["choices"][0]["finish_reason"]
        # What stands behind the last prompt is new: its answer, and the message after that.
        new, cache = reply.prompt - before, headers["X-Bioproxy-Cache"]
        outcome.answered.append(Answered(number, turn, ended, cache, reply.prompt, new, reply.computed, seconds))
        before = reply.prompt
        time.sleep(TOOL_SECONDS)
        session.use_tool(prose(150, f"{number} {turn}"))


def run(model: Path, folder: Path, agents: int, turns: int, cache_ram: int, *options: str) -> Outcome:
    """Let the agents work on a new llama.cpp and a new bioproxy in `folder`; return what that has cost.

    `cache_ram` is in MiB; `options` are bioproxy's.
    """
    with ExitStack() as stack:
        children = Children(stack, folder)
        llama = Llama(children, folder, model, "--cache-ram", cache_ram)
        port, admin = free_ports(2)
        url = f"http://127.0.0.1:{llama.port}"
        children.bioproxy("agents", port, admin, url, "--slot-save-path", llama.slots, *options)
        wait_for("bioproxy to see llama.cpp", lambda: get(admin, "/status")["llama"]["up"])
        outcome = Outcome()
        # All begin at the same moment, which is the worst for the order of arrival.
        threads = [threading.Thread(target=converse, args=(port, each, turns, outcome)) for each in range(agents)]
        began = time.monotonic()
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        outcome.seconds = time.monotonic() - began
        assert len(outcome.answered) == agents * turns, "an agent has failed"
        outcome.metrics = {
            "came while it lingered": metric(admin, "linger_total", result="came"),
            "lingered in vain": metric(admin, "linger_total", result="timeout"),
            "saves": metric(admin, "slot_saves_total", result="ok"),
            "restores": metric(admin, "slot_restores_total", result="ok"),
            "seconds passed over in all": metric(admin, "passed_over_seconds_sum"),
            "passed over for more than 10 s": metric(admin, "passed_over_seconds_count")
            - metric(admin, "passed_over_seconds_bucket", le="10.0"),
        }
        return outcome


def main() -> None:
    """Run both orders on each kind of model."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kinds", nargs="*", metavar="KIND", default=["dense"], help=", ".join(KINDS))
    parser.add_argument("--cache-ram", type=int, default=0, help="MiB of llama.cpp's own memory of prompts")
    parser.add_argument("--agents", type=int, default=5, help="agents at the same time")
    parser.add_argument("--turns", type=int, default=10, help="requests of each")
    parser.add_argument("--width", type=int, default=0, help="width of the model, a multiple of 64; 0: as in the tests")
    parser.add_argument("--blocks", type=int, default=0, help="layers of the model; 0: as in the tests")
    parser.add_argument("--each", action="store_true", help="print each request")
    given = parser.parse_args()
    for kind in given.kinds:
        size = KINDS[kind]
        if given.width:
            size = replace(size, width=given.width, heads=given.width // 64, feed_forward=3 * given.width)
        size = replace(size, blocks=given.blocks or size.blocks)
        with tempfile.TemporaryDirectory() as folder:
            model = Path(folder) / f"{kind}.gguf"
            tiny_model.write_model(model, size, chat_template=TEMPLATE)
            for name, options in ORDERS.items():
                place = Path(folder) / name.split()[0]
                place.mkdir()
                outcome = run(model, place, given.agents, given.turns, given.cache_ram, *options)
                for each in outcome.answered if given.each else ():
                    print(each)
                print(f"{kind:8}{name:20}{outcome}", flush=True)


if __name__ == "__main__":
    main()
