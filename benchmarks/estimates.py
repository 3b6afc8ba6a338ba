"""How good are the estimates of a waiting client's time?  A mixed run on a real llama.cpp, and its replay.

    python -m benchmarks.estimates [--record FILE]

Five clients ask at once, each in its own way, 100 requests in all: short questions and long ones, a conversation that
grows, titles, plain completions, OpenAI's and Anthropic's dialect, streamed or not.  All is seeded; the model is a
small generated one, on which a request takes a second or so.  Each request waits for about three others.

What is compared is what bioproxy noted when a request arrived (`estimate_ms`) with how long the request then waited
(`queue_ms`).  The error is the difference as a part of the real time.  The first requests have no estimate or a poor
one, since nothing is learned yet; they count.

The replay takes a recorded run and feeds it to `bioproxy.gate.estimate` again, with other ways to make one number of
the latest ones.  Nothing is measured there: `benchmarks/estimates.json` is such a record, and the tests replay it.
"""

from __future__ import annotations

import argparse
import http.client
import json
import random
import statistics
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from benchmarks.servers import Children, free_ports, get
from bioproxy.demo import tiny_model
from bioproxy.demo.vocabulary import COMMON_WORDS
from bioproxy.gate.estimate import Average, Experience, Served
from bioproxy.llama.speed import Speed
from bioproxy.llama.timings import Timings

RECORD = Path(__file__).with_suffix(".json")
"""A recorded run."""

SIZE = tiny_model.Size(blocks=6, width=256, heads=4, feed_forward=768)
"""A model that reads about 2,000 tokens a second and writes about 80."""

EACH = 20
"""Requests of each client."""


@dataclass(frozen=True)
class Visit:
    """One request of a run, in seconds from its beginning."""

    kind: tuple[str, ...]
    size: int
    arrived: float
    waited: float
    seconds: float
    reading: float
    prompt_tokens: int
    computed: int
    estimate: float | None

    @property
    def entered(self) -> float:
        """When it got the slot."""
        return self.arrived + self.waited


# The clients.  Each yields path, body, the way of asking, and how many words of answer it wants.


def text(dice: random.Random, words: int) -> str:
    """Return a text of so many words."""
    return " ".join(dice.choices(COMMON_WORDS, k=words))


def asker(dice: random.Random) -> Iterator[tuple[str, dict[str, Any]]]:
    """Ask questions of very different length, streamed."""
    while True:
        message = {"role": "user", "content": text(dice, dice.choice((20, 200, 1000)))}
        yield "/v1/chat/completions", {"messages": [message], "stream": True, "max_tokens": dice.randrange(20, 60)}


def talker(dice: random.Random) -> Iterator[tuple[str, dict[str, Any]]]:
    """Have a conversation that grows, streamed."""
    messages = [{"role": "system", "content": text(dice, 300)}]
    while True:
        messages.append({"role": "user", "content": text(dice, 60)})
        yield "/v1/chat/completions", {"messages": messages, "stream": True, "max_tokens": dice.randrange(50, 100)}
        messages.append({"role": "assistant", "content": text(dice, 50)})


def titler(dice: random.Random) -> Iterator[tuple[str, dict[str, Any]]]:
    """Ask for titles: not streamed, and short."""
    while True:
        message = {"role": "user", "content": "A title for: " + text(dice, dice.randrange(100, 300))}
        yield "/chat/completions", {"messages": [message], "max_tokens": dice.randrange(4, 10)}


def completer(dice: random.Random) -> Iterator[tuple[str, dict[str, Any]]]:
    """Complete texts."""
    while True:
        yield "/completion", {"prompt": text(dice, dice.randrange(300, 900)), "n_predict": dice.randrange(10, 30)}


def agent(dice: random.Random) -> Iterator[tuple[str, dict[str, Any]]]:
    """Send Anthropic's messages, streamed, with the same long beginning."""
    system = text(dice, 1200)
    while True:
        messages = [{"role": "user", "content": text(dice, dice.randrange(50, 150))}]
        yield "/v1/messages", {"system": system, "messages": messages, "stream": True, "max_tokens": 60}


CLIENTS = (asker, talker, titler, completer, agent)


# The run.


def client(port: int, number: int, told: dict[str, tuple[str, int, float]]) -> None:
    """Send the requests of one client; note body size and reading time by the id that bioproxy gives each."""
    dice = random.Random(number)
    requests = CLIENTS[number](dice)
    for _ in range(EACH):
        path, body = next(requests)
        sent = json.dumps(body).encode()
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
        connection.request("POST", path, sent, {"Content-Type": "application/json"})
        response = connection.getresponse()
        timings = Timings()
        timings.feed(response.read())
        connection.close()
        assert response.status == 200, (path, response.status)
        turn = "later" if any(each["role"] == "assistant" for each in body.get("messages", ())) else "first"
        reading = timings.values.get("prompt_ms", -1) / 1000
        told[str(response.headers["X-Bioproxy-Request-Id"])] = (turn, len(sent), reading)
        # A moment to read the answer.
        time.sleep(dice.uniform(0, 0.5))


def run(folder: Path) -> list[Visit]:
    """Have all clients ask at once; return what was noted of each request, in order of arrival."""
    model = folder / "model.gguf"
    tiny_model.write_model(model, SIZE)
    told: dict[str, tuple[str, int, float]] = {}
    with ExitStack() as stack:
        llama, ours, admin = free_ports(3)
        children = Children(stack, folder)
        options = ("--model", model, "--port", llama, "--threads", 1, "--slot-save-path", folder / "slots")
        children.start("llama", ["-m", "benchmarks.llama_child", *options], llama, 60)
        url = f"http://127.0.0.1:{llama}"
        # No comments, so that each answer has all its headers.
        children.bioproxy("bioproxy", ours, admin, url, "--ping-interval", 0, "--slot-save-path", folder / "slots")
        threads = [threading.Thread(target=client, args=(ours, number, told)) for number in range(len(CLIENTS))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        records: list[dict[str, Any]] = get(admin, "/status")["requests"]
    visits = [visit(each, *told[each["id"]]) for each in records]
    begun = min(each.arrived for each in visits)
    shifted = [Visit(**{**asdict(each), "arrived": round(each.arrived - begun, 3)}) for each in visits]
    return sorted(shifted, key=lambda each: each.arrived)


def visit(record: dict[str, Any], turn: str, size: int, reading: float) -> Visit:
    """Return what is known of a request; `reading` is negative where the API does not tell."""
    prompt, cached = record["prompt_tokens"] or 0, record["cached_tokens"] or 0
    waited, estimate = record["queue_ms"] / 1000, record["estimate_ms"]
    return Visit(
        (record["path"], record["prompt"], turn),
        size,
        datetime.fromisoformat(record["time"].replace("Z", "+00:00")).timestamp(),
        round(waited, 3),
        round(record["total_ms"] / 1000 - waited, 3),
        round(reading, 3),
        prompt,
        prompt - cached,
        None if estimate is None else round(estimate / 1000, 3),
    )


# The replay.


def exponential(values: Sequence[float]) -> float:
    """Return an average in which each value counts for 0.3, and all before it for the rest."""
    mean = values[0]
    for value in values[1:]:
        mean += 0.3 * (value - mean)
    return mean


AVERAGES: dict[str, Average] = {"mean": statistics.fmean, "median": statistics.median, "exponential": exponential}


def replay(visits: Sequence[Visit], average: Average = statistics.median) -> list[tuple[float, float]]:
    """Return estimate and real time of each request that had to wait, as they would have been in this run."""
    experience, speed = Experience(average), Speed()
    done: set[int] = set()
    found = []
    for visit in visits:
        now = visit.arrived
        ended = [(other.entered + other.seconds, n) for n, other in enumerate(visits) if n not in done]
        for end, number in sorted(ended):
            if end <= now:
                done.add(number)
                learn(experience, speed, visits[number])
        ahead = [other for n, other in enumerate(visits) if n not in done and other.arrived < now]
        rests = [rest(experience, other, now) for other in ahead]
        known = [each for each in rests if each is not None]
        if ahead and len(known) == len(rests):
            found.append((sum(known), visit.waited))
    return found


def learn(experience: Experience, speed: Speed, visit: Visit) -> None:
    """Learn from a request, as `bioproxy.proxy.waits` does."""
    reading = visit.reading if visit.reading >= 0 else visit.computed * speed.seconds_per_token
    if visit.reading >= 0:
        speed.measured(visit.computed, visit.reading * 1000)
    served = Served(visit.size, visit.size, visit.prompt_tokens, visit.seconds, reading)
    experience.learn(visit.kind, served)


def rest(experience: Experience, visit: Visit, now: float) -> float | None:
    """Return what is left of a request, as far as can be told then; whether its answer has begun is left out."""
    expected = experience.expected(visit.kind, visit.size)
    if expected is None:
        return None
    return expected.rest(max(0.0, now - visit.entered), None)


def errors(found: Sequence[tuple[float, float]]) -> list[float]:
    """Return the errors as parts of the real times, without requests that hardly waited."""
    return [abs(estimate - waited) / waited for estimate, waited in found if waited >= 0.1]


def load(path: Path = RECORD) -> list[Visit]:
    """Return a recorded run."""
    rows = json.loads(path.read_text())
    return [Visit(**{**row, "kind": tuple(row["kind"])}) for row in rows]


def report(what: str, found: Sequence[tuple[float, float]]) -> None:
    """Print how good estimates were."""
    parts = sorted(errors(found))
    within = sum(each <= 0.3 for each in parts) / len(parts)
    bias = sum(estimate for estimate, _ in found) / sum(waited for _, waited in found)
    print(
        f"{what:24} {len(parts):3} requests, median error {statistics.median(parts):4.0%}, {within:4.0%} within 30 %,"
        f" worst tenth {parts[int(0.9 * len(parts))]:4.0%} or more, sum of estimates {bias:4.0%} of the real time"
    )


def main() -> None:
    """Run, compare, and replay."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.estimates", description=__doc__.split("\n")[0])
    parser.add_argument("--record", type=Path, help="write the run to this file")
    parser.add_argument("--replay", type=Path, help="replay this file, and run nothing")
    options = parser.parse_args()
    if options.replay is None:
        with tempfile.TemporaryDirectory() as folder:
            visits = run(Path(folder))
        report("estimates of this run", [(each.estimate, each.waited) for each in visits if each.estimate is not None])
    else:
        visits = load(options.replay)
    if options.record is not None:
        rows = [json.dumps(asdict(each), separators=(",", ":")) for each in visits]
        options.record.write_text("[\n" + ",\n".join(rows) + "\n]\n")
    for name, average in AVERAGES.items():
        report(f"replayed with the {name}", replay(visits, average))


if __name__ == "__main__":
    main()
