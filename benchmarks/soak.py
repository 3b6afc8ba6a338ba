"""Is bioproxy right also when a thousand wait?  ``make soak`` finds out in about ten minutes.

Crowds come, one after the other: someone keeps llama-server busy while all of a crowd join the queue.  Then it moves,
and half of them leave, each at a moment of its own: still waiting, in the middle of an answer, or after it.  They are
real clients (`benchmarks.soak_clients`) of a bioproxy that was started as a user would, in front of a stand-in
(`benchmarks.soak_llama`) that takes notes.  The second part (`benchmarks.soak_preempt`) is about users who come in the
middle of a warm-up, the third (`benchmarks.soak_slow`) about clients that are slow on purpose.  Then come coding
agents: their days on each kind of model and in each dialect (`benchmarks.agents_day`), thousands of conversations in
little space, and kills at random moments (`benchmarks.soak_shelf`, `benchmarks.soak_shared`), also of the llama.cpp
that bioproxy starts itself (`benchmarks.soak_child`).  At last, real clients are installed and asked something
(`benchmarks.soak_real_clients`).

What can only go wrong with many at once is looked for here: an answer that goes to somebody else, a request that is
sent twice, an order that is not the one of arrival, memory or open files that are kept of clients who have gone.  Tests
with one client see none of that, and a test with a thousand takes too long for each commit.

The clients run in one event loop (asyncio), the servers in processes of their own.  bioproxy is measured from outside,
by what the operating system says of its process.

Whatever is not as it should be ends the run, with a line that says what.  ``python -m benchmarks.soak --help`` tells
what can be chosen; the same ``--seed`` makes the same crowds.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import random
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path

from benchmarks.agents_day import product
from benchmarks.servers import Children, free_ports, get, wait_for
from benchmarks.soak_child import own_llama
from benchmarks.soak_clients import PATIENCE, Visitor, look_for_trouble
from benchmarks.soak_preempt import preemptions
from benchmarks.soak_real_clients import real_clients
from benchmarks.soak_shared import shared_kills
from benchmarks.soak_shelf import kills, one_shots
from benchmarks.soak_slow import allow_files, open_files, slow

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


def main() -> int:
    """Run all parts; return the status to exit with: 0, or 1 if something is wrong."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.soak", description=__doc__.split("\n")[0])
    # 0 leaves a part out, so that a single one can be tried.
    parser.add_argument(
        "--seconds", type=float, default=40, help=f"for how long crowds come (default: 40); {CROWDS} at least"
    )
    parser.add_argument("--clients", type=int, default=1000, help="how many are a crowd (default: 1000)")
    parser.add_argument("--tries", type=int, default=100, help="users who come in a warm-up (default: 100)")
    parser.add_argument("--slow", type=float, default=20, help="seconds for each kind of slow clients (default: 20)")
    parser.add_argument(
        "--days", action=argparse.BooleanOptionalAction, default=True, help="agents' days (default: yes)"
    )
    parser.add_argument("--conversations", type=int, default=2000, help="conversations in little space (default: 2000)")
    parser.add_argument("--kills", type=int, default=20, help="kills at random moments (default: 20)")
    parser.add_argument(
        "--real-clients",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="install and run some (default: yes)",
    )
    parser.add_argument(
        "--shared-kills", type=int, default=30, help="kills of pairs with one shared shelf (default: 30)"
    )
    parser.add_argument("--seed", type=int, default=1, help="makes the same run again (default: 1)")
    options = parser.parse_args()
    # As an exception, so that on its way out all processes are ended.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    signal.signal(signal.SIGALRM, lambda *_: sys.exit("FAILED: it took too long"))
    # Time that is certainly enough, by what was asked for: a run that hangs must end, and say so.
    agents = 600 * options.days + options.conversations + 60 * (options.kills + options.shared_kills)
    agents += 3600 * options.real_clients
    signal.alarm(int(options.seconds + 3 * options.tries + 6 * options.slow + agents + 6 * PATIENCE))
    # From the quick parts to the slow ones.  The first failure ends all: what comes after it would only be confused by
    # it.
    with tempfile.TemporaryDirectory(prefix="bioproxy-soak-") as folder:
        try:
            crowds(Path(folder), options.seconds, options.clients, options.seed)
            if options.tries:
                preemptions(Path(folder), options.tries, options.seed)
            if options.slow:
                slow(Path(folder), options.slow, options.clients)
            if options.days:
                product(Path(folder) / "days")
            if options.conversations:
                one_shots(Path(folder) / "one-shots", options.conversations)
            if options.kills:
                kills(Path(folder) / "kills", options.kills, options.seed)
                own_llama(Path(folder) / "own-llama", (options.kills + 1) // 2, options.seed)
            if options.shared_kills:
                shared_kills(Path(folder) / "shared", options.shared_kills, options.seed)
            if options.real_clients:
                real_clients(Path(folder) / "real-clients")
        except (AssertionError, OSError, EOFError, asyncio.TimeoutError) as error:
            # With the seed, which makes the same crowds and the same moments again.
            print(f"FAILED (seed {options.seed}): {str(error) or repr(error)}")
            return 1
    print("all is well")
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
