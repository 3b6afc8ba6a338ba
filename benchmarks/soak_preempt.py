"""How long does a user wait who comes in the middle of a warm-up?  The part of `benchmarks.soak` with a real llama.cpp.

A warm-up must give way at once, but llama-server stops computing only between pieces.  So the promise to users is a
time, that of one piece.  Whether it is kept shows only with a real llama.cpp, and only at random moments: the worst one
is just after a piece has begun.

Its model is made on the spot: small enough for a warm-up to take about a second, large enough for that to be work.  A
template is warmed up in pieces of `PIECE` tokens, and gets another text whenever it is warm.  Users with a short
question come at random moments meanwhile.  Two times are looked at:

* *gate*: from the user's arrival to the gate being free, as bioproxy tells it (``X-Bioproxy-Queue-Ms``);
* *answer*: how much longer the answer takes than just after a warm-up, when nobody is in the way.  llama-server stops
  between pieces only, so the rest of one is in it.

In 99 of 100 cases the first must be within a usual piece and `SLACK`, the second within the longest piece and `SLACK`.
"""

from __future__ import annotations

import http.client
import itertools
import json
import os
import random
import re
import statistics
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from benchmarks.servers import Children, free_ports, get, wait_for
from benchmarks.soak_clients import look_for_trouble
from bioproxy.demo import tiny_model
from bioproxy.demo.vocabulary import COMMON_WORDS

MODEL = tiny_model.Size(blocks=6, width=256, heads=4, feed_forward=768)
"""So small that a piece takes some hundredths of a second, and not so small that nothing is to be measured."""

PIECE = 128
"""Tokens of a piece of a warm-up at most (`warmup_chunk`).

Halved, pieces take less than what is measured around them; doubled, users meet fewer borders between pieces.
"""

WORDS = 640
"""Words of the template; each is a token, so a warm-up has five pieces."""

SLACK = 0.050
"""Seconds that something may take beyond a piece: HTTP, the event loop, and a machine that has other work."""

ENOUGH = 100
"""So many users must have come before the time to their answers is judged: one may be unlucky.

The short form of the tests has fewer, and judges only how soon the gate is free.
"""


class Users:
    """A llama.cpp, a bioproxy with one template in front of it, and users who come."""

    def __init__(self, stack: ExitStack, folder: Path, seed: int) -> None:
        """Start both, and wait until the template was warmed up once; `seed` decides the moments."""
        self._random = random.Random(seed)
        self._template = folder / "template.txt"
        self._llama, self._port, self._admin = free_ports(3)
        self._warmup_seconds = 0.0
        model, slots = folder / "model.gguf", folder / "slots"
        tiny_model.write_model(model, MODEL)
        self.filling()
        children = Children(stack, folder)
        # One thread: with more, llama.cpp's threads wait for each other in busy loops, slow where others work too.
        arguments = ("--model", model, "--port", self._llama, "--slot-save-path", slots, "--threads", 1)
        children.start("llama", ["-m", "benchmarks.llama_child", *arguments], self._llama)
        wait_for("llama.cpp", lambda: get(self._llama, "/health") is not None)
        settings = ("--prefix", f"@x={self._template}", "--slot-save-path", slots, "--poll-interval", 0.1)
        url = f"http://127.0.0.1:{self._llama}"
        children.bioproxy("warming", self._port, self._admin, url, "--warmup-chunk", PIECE, *settings)
        wait_for("the first warm-up", lambda: self._now()["state"] == "warm")

    def filling(self) -> None:
        """Give the template a text that nobody has seen before, so that it is due for a warm-up."""
        # Renamed into place: a poll, ten times a second here, must never see half of it.
        draft = self._template.with_suffix(".draft")
        draft.write_text(" ".join(self._random.choices(COMMON_WORDS, k=WORDS)) + "\n<{message}>")
        os.replace(draft, self._template)

    def watch(self) -> list[float]:
        """Watch a warm-up that nobody interrupts; return the seconds that its pieces took.

        How long the whole of it took is noted as well: `interrupt` chooses its moments within that.
        """
        self.filling()
        wait_for("a warm-up", lambda: self._now()["state"] == "warming")
        # When each progress was seen first; the differences are the pieces.
        seen: dict[float, float] = {}
        began = time.monotonic()
        while (now := self._now())["state"] != "warm":
            assert time.monotonic() < began + 30, f"not warm after 30 s: {now}"
            seen.setdefault(now["progress"], time.monotonic())
            time.sleep(0.01)  # looking costs the proxy time, too
        moments = list(seen.values())
        self._warmup_seconds = time.monotonic() - moments[0]
        # Some may be missed, because several may end between two looks.  If most are, the machine is too fast for this.
        pieces = WORDS / PIECE
        assert len(moments) > pieces / 2, f"a warm-up in {len(moments) - 1} pieces, not {pieces:.0f}"
        return [after - before for before, after in itertools.pairwise(moments)]

    def ask(self) -> tuple[float, float]:
        """Ask something short; return the seconds at the gate, and until the answer was whole.

        The first are bioproxy's own count, the others are the client's.
        """
        question = {"messages": [{"role": "user", "content": "hello"}], "max_tokens": 1}
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=60)
        began = time.perf_counter()
        connection.request("POST", "/v1/chat/completions", json.dumps(question), {"Content-Type": "application/json"})
        response = connection.getresponse()
        # To the end: the answer is one token, so this is the time to its first word.
        answer = response.read()
        took = time.perf_counter() - began
        connection.close()
        assert response.status == 200, answer
        return float(response.headers["X-Bioproxy-Queue-Ms"]) / 1000, took

    def interrupt(self) -> tuple[float, float] | None:
        """Ask at a random moment of a warm-up; return as `ask` does, or `None` if it was over just before."""
        # Whether the user met it is told by bioproxy's own counter: a warm-up may end between the look and the
        # question.
        wait_for("a warm-up", self._warms_up)
        met = self._met()
        time.sleep(self._random.uniform(0, self._warmup_seconds * (1 - self._now()["progress"])))
        times = self.ask()
        return times if self._met() > met else None

    def _warms_up(self) -> bool:
        """Tell whether a warm-up runs; if the template is warm, see to it that one will."""
        state = self._now()["state"]
        if state == "warm":
            self.filling()
        return bool(state == "warming")

    def _now(self) -> Any:
        """Return what bioproxy says of the template: its state, and how far its warm-up has come."""
        return get(self._admin, "/status")["templates"][0]

    def _met(self) -> float:
        """Return how many users have met a warm-up, by bioproxy's own count of preemptions."""
        # From the metrics, where it is the count of a histogram; `/status` does not have it.
        connection = http.client.HTTPConnection("127.0.0.1", self._admin, timeout=10)
        connection.request("GET", "/metrics")
        text = connection.getresponse().read().decode()
        connection.close()
        found = re.search(r"^bioproxy_preempt_seconds_count (\S+)$", text, re.MULTILINE)
        assert found is not None
        return float(found[1])


def preemptions(folder: Path, tries: int, seed: int) -> None:
    """Have so many users come in the middle of a warm-up.  `AssertionError` says what is wrong.

    `seed` decides the moments; `folder` gets the model, the template and the logs.
    """
    with ExitStack() as stack:
        users = Users(stack, folder, seed)
        pieces: list[float] = []
        quiet: list[float] = []
        # First what is usual here and now: how long pieces take, and answers that nothing is in the way of.
        for _ in range(3):
            pieces += users.watch()
            quiet.append(users.ask()[1])
        met: list[tuple[float, float]] = []
        # Of three tries one meets a warm-up, at least; a loop without an end would hide that none does.
        for _ in range(3 * tries):
            if len(met) < tries and (times := users.interrupt()) is not None:
                met.append(times)
        # A warm-up that is interrupted a hundred times must not leave an error, nor end for good.
        look_for_trouble(folder / "warming.log")
        assert len(met) == tries, f"only {len(met)} users met a warm-up"
    usual, longest, undisturbed = statistics.median(pieces), max(pieces), statistics.median(quiet)
    print(f"{tries} users in the middle of a warm-up, in milliseconds", end="; ")
    print(f"its pieces take {usual * 1000:.0f}, {longest * 1000:.0f} at most")
    print(f"  {'':8}{'p50':>8}{'p99':>8}{'worst':>8}")
    gate = report("gate", [waited for waited, _ in met])
    answer = report("answer", [took - undisturbed for _, took in met])
    # The gate only needs the warm-up to leave.  An answer has to wait for the piece that llama-server still computes,
    # and the unlucky one meets the longest.
    assert gate <= usual + SLACK, f"it took {gate * 1000:.0f} ms until the gate was free"
    if tries >= ENOUGH:
        assert answer <= longest + SLACK, f"an answer came {answer * 1000:.0f} ms later for a warm-up"


def report(what: str, values: Sequence[float]) -> float:
    """Print these seconds, in milliseconds; return what 99 of 100 do not exceed."""
    # Rounded up: of a hundred values it is the last but one.
    high = sorted(values)[(len(values) * 99 - 1) // 100]
    print(f"  {what:8}" + "".join(f"{value * 1000:8.1f}" for value in (statistics.median(values), high, max(values))))
    return high
