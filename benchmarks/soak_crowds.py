"""Is bioproxy right also when a thousand wait?  The part of `benchmarks.soak` about many clients at once.

Crowds come, one after the other: someone keeps llama-server busy while all of a crowd join the queue.  Then it moves,
and half of them leave, each at a moment of its own: still waiting, in the middle of an answer, or after it.  They are
real clients (`benchmarks.soak_clients`) of a bioproxy that was started as a user would, in front of a stand-in
(`benchmarks.soak_llama`) that takes notes.

The clients run in one event loop (asyncio), the servers in processes of their own.  bioproxy is measured from outside,
by what the operating system says of its process.
"""

from __future__ import annotations

import asyncio
import itertools
import random
import statistics
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path

from benchmarks.servers import Children, free_ports, get, wait_for
from benchmarks.soak_clients import PATIENCE, Visitor, look_for_trouble
from benchmarks.soak_slow import allow_files, open_files

CROWDS = 7
"""So many come at least: in the first three or four, memory still comes from the system by the megabyte.

Halved, a leak cannot be told from that; doubled, a run takes a minute longer.
"""

PING_INTERVAL = 0.5
"""Seconds between two comments to a stream that waits: so short that each of them is told something in a crowd's
time."""

KILOBYTES = 30
"""Memory (VmRSS, in 1000 bytes) that each waiting client may take at most.

Half of that is measured.  A body that were kept, or a timer more for each client, would show.
"""

KEPT_KILOBYTES = 1
"""Memory (as above) that may be left of each client after it has gone, at most, from the second crowd on.

A connection that is forgotten in some dictionary takes several times as much.
"""


class Soak:
    """A bioproxy with the stand-in behind it, and the crowds that come."""

    def __init__(self, stack: ExitStack, folder: Path, seed: int) -> None:
        """Start both, in processes of their own that end with `stack`; `seed` decides who leaves, and when."""
        self._random = random.Random(seed)
        self._crowds = 0
        children = Children(stack, folder)
        self._llama, self._port, self._admin = free_ports(3)
        children.start("stand-in", ["-m", "benchmarks.soak_llama", self._llama], self._llama)
        self._log = folder / "bioproxy.log"
        options = ("--queue-limit", 2000, "--ping-interval", PING_INTERVAL, "--no-warmup")
        url = f"http://127.0.0.1:{self._llama}"
        self.proxy = children.bioproxy("bioproxy", self._port, self._admin, url, *options)
        wait_for("bioproxy to see the stand-in", lambda: get(self._admin, "/status")["llama"]["up"])
        # Connections of the start are still closing.  What is open at rest is what must be open after each crowd.
        self._files = 0
        wait_for("bioproxy to be at rest", self._note_files)

    def _note_files(self) -> bool:
        """Note how many files are open, and tell whether that is as before: then nothing opens or closes any more."""
        # Called again and again until two counts in a row are the same.
        before, self._files = self._files, open_files(self.proxy)
        return before == self._files

    async def limits(self, size: int) -> float:
        """Let a crowd of visitors come, and check all there is to check; return the kilobytes that each took.

        `size` is how many of them wait.  Raises `AssertionError` with what is wrong.
        """
        self._crowds += 1
        # Half of them want a stream, by chance; each has a name that no other request ever had.
        visitors = [
            Visitor(
                f"crowd{self._crowds}-visitor{number}",
                stream=self._random.random() < 0.5,
                leaves=leaves,
                hasty=leaves == PATIENCE,
            )
            for number, leaves in enumerate(self._leaving(size))
        ]
        # The first one is held inside by the stand-in, until it is told to go on.  So all others wait at the same time.
        opener = Visitor(f"crowd{self._crowds}-opener", stream=False, hold=True)
        # Measured while they wait, when nothing else has taken memory since they began to come.
        before = self.proxy.memory()
        await self._come_in_order([opener, *visitors])
        wait_for(f"one to be inside and {size} to wait", lambda: self._gate() == ("user", size))
        # Long enough that each stream has got a comment: that takes memory, too.
        await asyncio.sleep(1.5 * PING_INTERVAL)
        grown = (self.proxy.memory() - before) * 1000 / size
        assert grown < KILOBYTES, f"{grown:.1f} kB for each waiting client, at most {KILOBYTES} are all right"

        # From here on all goes on by itself: some leave, the others are answered one after the other.
        ends = asyncio.gather(*(visitor.end() for visitor in [opener, *visitors]))
        await asyncio.sleep(PING_INTERVAL)  # some leave while nothing moves
        # The one inside is answered now, and all others have their turns.
        get(self._llama, "/release")
        await ends
        self._check([opener, *visitors])
        return grown

    def _leaving(self, size: int) -> Iterator[float | None]:
        """Yield after how many seconds each one leaves, or `None` for the half that stays.

        The moments are spread over the whole time: while nothing moves, while the queue gets shorter, and while they
        are answered.
        """
        span = 0.5 + size * 0.006  # about as long as the queue will move
        for _ in range(size):
            moments = [self._random.uniform(0, span)] * 2 + [PATIENCE]  # the last: in the middle of an answer
            yield self._random.choice([None, None, None, *moments])

    async def _come_in_order(self, visitors: Sequence[Visitor]) -> None:
        """Let them come one after the other.

        bioproxy does one thing at a time: when it has answered a question to its other port that was asked after a
        visitor came, it has at least accepted that visitor, and so will read it before it reads the next one.
        """
        # Without this the order in which bioproxy reads a thousand connections would be that of the operating system,
        # and "in the order of arrival" could not be checked.
        reader, writer = await asyncio.open_connection("127.0.0.1", self._admin)
        for visitor in visitors:
            await visitor.come(self._port)
            writer.write(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
            await asyncio.wait_for(reader.readuntil(b"ok\n"), PATIENCE)
        writer.transport.abort()

    def _check(self, visitors: Sequence[Visitor]) -> None:
        """Check what this crowd got, what the stand-in saw, and that nothing is left of it.

        From three sides: a proxy can be wrong in a way that clients do not see, and in one that llama-server does not.
        """
        for visitor in visitors:
            visitor.check()
        # A client that hears nothing for minutes gives up, so streams that wait are told their place.
        waited = [visitor for visitor in visitors if visitor.stream and visitor.leaves is None]
        assert all(visitor.places() for visitor in waited), "a stream that waited was told nothing meanwhile"
        # The stand-in begins new notes whenever it is asked for them, so these are of this crowd.
        notes = get(self._llama, "/notes")
        assert notes["most_at_once"] == 1, f"{notes['most_at_once']} requests at once"
        assert len(set(notes["seen"])) == len(notes["seen"]), "a request was sent twice"
        # Of those who left nobody can say whether they were still served: that depends on the moment.
        stayed = [visitor.name for visitor in visitors if visitor.leaves is None]
        served = [name for name in notes["seen"] if name in set(stayed)]
        assert served == stayed, f"not served in the order of arrival: {first_difference(stayed, served)}"
        # Nothing may be left: nobody in the queue, and no connection that its client has closed.
        wait_for("the gate to be empty", lambda: self._gate() == (None, 0))
        wait_for(f"bioproxy to have {self._files} open files again", lambda: open_files(self.proxy) == self._files)
        look_for_trouble(self._log)

    def _gate(self) -> tuple[str | None, int]:
        """Return who is inside (``user`` or `None`), and how many wait, as `/status` has it."""
        gate = get(self._admin, "/status")["gate"]
        return gate["busy"], gate["waiting"]


def first_difference(expected: Sequence[str], seen: Sequence[str]) -> str:
    """Say where two lists of names part: two lists of a thousand names tell nothing."""
    for one, other in zip(expected, seen, strict=False):
        if one != other:
            return f"{one} was due, {other} came"
    return f"{len(expected)} were due, {len(seen)} came"


def crowds(folder: Path, seconds: float, size: int, seed: int) -> None:
    """Let crowds of this size come for so many seconds, `CROWDS` at least.  `AssertionError` says what is wrong.

    `folder` gets the logs; `seed` makes the same crowds again.
    """
    # Each visitor is an open file here and one more there.
    allow_files(size + 200)
    latest = time.monotonic() + seconds
    with ExitStack() as stack:
        soak = Soak(stack, folder, seed)
        # The memory at rest, before the first crowd and after each.
        resting = [soak.proxy.memory()]
        print(f"bioproxy in front of a stand-in: {resting[0]:.1f} MB in memory (VmRSS)", flush=True)
        while len(resting) <= CROWDS or time.monotonic() < latest:
            began = time.monotonic()
            grown = asyncio.run(soak.limits(size))
            resting.append(soak.proxy.memory())
            took = time.monotonic() - began
            print(
                f"  crowd {len(resting) - 1} of {size}: {grown:5.1f} kB for each while they wait,"
                f" {resting[-1]:.1f} MB afterwards, {took:.1f} s",
                flush=True,
            )
    # The median of the steps between crowds, and not the whole growth.  A leak grows with each crowd.  But memory comes
    # from the system by the megabyte, so a step of less tells nothing.
    # From the second crowd on: the first one makes whatever is made once.
    steps = [(after - before) * 1000 / size for before, after in itertools.pairwise(resting[2:])]
    kept = statistics.median_low(steps)
    print(f"  kept of each client since the second crowd: {kept:.2f} kB (median of crowds)", flush=True)
    # With few clients a single page of memory would be more than the limit for each.
    most = max(KEPT_KILOBYTES, 1000 / size)
    assert kept < most, f"{kept:.2f} kB are kept of each client, at most {most:.2f} are all right"
