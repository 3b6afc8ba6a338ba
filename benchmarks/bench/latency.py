"""Theme "latency": what a proxy adds to a small request, and to each event of a stream.

Behind each proxy is the same `stand_in`, which answers at once.  The client is this process, with one kept connection
to each contestant, and asks them in turns:

* **small requests**: until the whole answer is there, for a path where bioproxy has its gate and for one that passes
  straight through;
* **streams at full speed**: milliseconds until the end of 500 events, which are written as fast as they are read;
* **streams at a pace**: the milliseconds between the moment at which the stand-in wrote an event and the moment at
  which the client has it, an event each millisecond, as a fast model writes.

*Added* is what a contestant takes beyond a client that talks to the stand-in directly.  On a machine that does other
things too, medians grow with whatever gets in between. So the tenth percentile is beside them, and the processor time
of a proxy for each request: these hardly grow.
"""

from __future__ import annotations

import http.client
import json
import os
import re
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.bench.contestants import KEY, PROXIES, Contestant, Missing, litellm
from benchmarks.bench.measuring import Amounts, in_turns, median, p10, p99
from benchmarks.bench.results import Cell, Found, Table
from benchmarks.bench.stand_in import CHUNKS
from benchmarks.servers import Child, Children, free_ports

CHAT, PLAIN = "/v1/chat/completions", "/tokenize"
"""A path where bioproxy has its gate, and one that passes straight through."""

FIGURES = (p10, median, p99)
"""What is told of a contestant's times: undisturbed, in the middle, and at its worst but for one in a hundred."""

PACE_US = 1000
"""Microseconds between two events of a stream at a pace."""

IDLE = 2.0
"""Seconds for which each server keeps an idle connection."""

STAMP = re.compile(rb'"content": ?" (\d+)"')
"""When the stand-in wrote an event, in nanoseconds.  LiteLLM writes events anew, with other white space."""

HEADERS = {"Content-Type": "application/json", "Authorization": f"Bearer {KEY}"}


@dataclass
class Way:
    """A client of one contestant, with one connection, which it keeps."""

    name: str
    child: Child
    connection: http.client.HTTPConnection = field(init=False)

    def __post_init__(self) -> None:
        self.connection = http.client.HTTPConnection("127.0.0.1", self.child.port, timeout=60)
        self._used = 0.0

    def _connect(self) -> None:
        """Connect anew if the server may have closed the connection; called before the clock is started."""
        # LiteLLM's server closes what is idle for 5 s, and may do so while others have their turns.
        if time.monotonic() - self._used > IDLE:
            self.connection.close()
            self.connection.connect()

    def post(self, path: str, body: bytes) -> float:
        """Send a request, which must succeed; return the milliseconds until the whole answer was there."""
        self._connect()
        began = time.perf_counter()
        self.connection.request("POST", path, body, HEADERS)
        response = self.connection.getresponse()
        answer = response.read()
        taken = time.perf_counter() - began
        self._used = time.monotonic()
        assert response.status == 200, (self.name, response.status, answer)
        return taken * 1000

    def delays(self, body: bytes) -> list[float]:
        """Read a stream; return for each event the milliseconds that it was under way."""
        self._connect()
        self.connection.request("POST", CHAT, body, HEADERS)
        response = self.connection.getresponse()
        assert response.status == 200, (self.name, response.status)
        delays = []
        for line in response:
            now = time.monotonic_ns()
            if stamp := STAMP.search(line):
                delays.append((now - int(stamp[1])) / 1e6)
        self._used = time.monotonic()
        assert len(delays) == CHUNKS, f"{self.name}: {len(delays)} events of {CHUNKS}"
        return delays


def question(text: str, stream: bool = False) -> bytes:
    """Return the body of a request."""
    message = {"role": "user", "content": text}
    return json.dumps({"model": "stand-in", "messages": [message], "max_tokens": 600, "stream": stream}).encode()


def run(amounts: Amounts, folder: Path) -> Found:
    """Measure the theme."""
    found = Found()
    with ExitStack() as stack:
        children = Children(stack, folder)
        (port,) = free_ports(1)
        server = children.start("stand-in", ("-m", "benchmarks.bench.stand_in", port), port)
        ways = [Way("direct", server)]
        # LiteLLM is kept out of the other contestants' turns: it takes ten times as long as all of them together.
        slow = [Contestant("LiteLLM", litellm)] if "litellm" in amounts.from_pypi else []
        for contestant in [*PROXIES, *slow]:
            scratch = folder / contestant.name.replace(" ", "-")
            scratch.mkdir()
            try:
                ways.append(Way(contestant.name, contestant.start(children, scratch, port)))
            except Missing as missing:
                found.remarks.append(str(missing))
        small(found, ways, amounts.posts)
        streams(found, ways, amounts.streams)
    return found


def small(found: Found, ways: Sequence[Way], rounds: int) -> None:
    """Measure small requests."""
    for name, path, what in (
        ("post", CHAT, "a chat, which waits at bioproxy's gate"),
        ("plain-post", PLAIN, "a path that passes straight through"),
    ):
        # LiteLLM knows only the chat.
        asked = [way for way in ways if path == CHAT or way.name != "LiteLLM"]
        body = question("How are you?")
        before = [way.child.cpu() for way in asked]
        taken = in_turns(asked, rounds, lambda way, path=path, body=body: way.post(path, body))  # type: ignore[misc]
        used = [(way.child.cpu() - cpu) * 1000 / rounds for way, cpu in zip(asked, before, strict=True)]
        rows: list[list[Cell]] = []
        for way, values, cpu in zip(asked, taken, used, strict=True):
            figures = [figure(values) for figure in FIGURES]
            direct = [figure(taken[0]) for figure in FIGURES]
            added = [
                mine - theirs if way is not asked[0] else None for mine, theirs in zip(figures, direct, strict=True)
            ]
            rows.append([way.name, *figures, *added, cpu])
        columns = (
            *("", "p10 ms", "p50 ms", "p99 ms"),
            *("added p10 ms", "added p50 ms", "added p99 ms", "processor ms"),
        )
        note = f"{rounds} requests of {len(body)} bytes to each, in turns, over kept connections."
        found.tables.append(Table(name, f"Small POST: {what}", columns, rows, note))
        by_name = {row[0]: row for row in rows}
        for column in ("added p10 ms", "added p50 ms", "processor ms"):
            mine, plain = (by_name[contestant][columns.index(column)] for contestant in ("bioproxy", "15 lines"))
            # A processor time of 0 is one that was too short for the clock.
            if isinstance(mine, float) and isinstance(plain, float) and plain > 0:
                found.ratios[f"{name}: {column[:-3]}, bioproxy / 15 lines"] = mine / plain


def streams(found: Found, ways: Sequence[Way], rounds: int) -> None:
    """Measure streams."""
    fast, paced = question("go on", stream=True), question(f"pace_us={PACE_US}", stream=True)
    totals = in_turns(ways, rounds, lambda way: way.post(CHAT, fast))
    delays = in_turns(ways, rounds, lambda way: way.delays(paced))
    rows: list[list[Cell]] = [
        [way.name, p10(total), median(total), max(total), median(delay), p99(delay)]
        for way, total, delay in zip(ways, totals, delays, strict=True)
    ]
    columns = ("", "all at full speed, p10 ms", "p50 ms", "worst ms", "an event's delay, p50 ms", "p99 ms")
    note = (
        f"{rounds} streams of each kind from each, in turns. The delay is that of each event in streams with an event "
        f"each millisecond, from the server's write to the client's read ({os.cpu_count()} processors for all of them)."
    )
    found.tables.append(Table("stream", f"Streams of {CHUNKS} events", columns, rows, note))
    # Not of the medians: a stream has a thousand steps in three processes, and its median is that of the disturbances.
    whole = {way.name: p10(total) for way, total in zip(ways, totals, strict=True)}
    found.ratios["stream: whole, p10, bioproxy / 15 lines"] = whole["bioproxy"] / whole["15 lines"]
    late = {way.name: median(delay) for way, delay in zip(ways, delays, strict=True)}
    found.ratios["stream: an event's delay, bioproxy / 15 lines"] = late["bioproxy"] / late["15 lines"]
