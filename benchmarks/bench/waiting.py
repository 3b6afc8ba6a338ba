"""Streams that wait at bioproxy's gate: what a thousand of them cost, and whether others notice.

llama-server's one slot is in use (the stand-in holds the first request), and all others wait. A waiting client of a
stream gets a comment every ten seconds, so that neither it nor a proxy in between gives up. The comment has its place
and the time until its turn, which is estimated from earlier requests. Measured are, while they wait, bioproxy's
processor time and memory, and how long a request takes that need not wait; and at the end how long each takes when the
slot is free again.

The clients are coroutines of one asyncio loop, which read to the end and check that the answer is whole.
"""

from __future__ import annotations

import asyncio
import resource
import time
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from benchmarks.bench.latency import CHAT, PLAIN, Way, question
from benchmarks.bench.measuring import median
from benchmarks.servers import Children, free_ports, get, wait_for

WATCHED = 10.0
"""Seconds for which the processor time of waiting is measured: by default each client gets one comment in them."""

INTERVAL = 10.0
"""Seconds between two comments to a client: the default of ``ping_interval``."""

LEARNED = 5
"""Requests before, from which bioproxy learns how long such requests take."""

ASKED = 50
"""Requests that pass the waiting ones."""

PATIENCE = 300.0
"""Seconds that all streams may take."""

HEAD = (
    b"POST %b HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
)


@dataclass(frozen=True)
class Waited:
    """What so many waiting streams cost."""

    streams: int
    processor_part: float
    """Of one processor, while they wait."""
    memory: float
    """Megabytes of bioproxy while they wait."""
    passing_ms: float
    """Median of a small request that passes them."""
    each_ms: float
    """From the slot's release to the end of the last answer, for each stream."""


async def stream(port: int, body: bytes, connected: asyncio.Semaphore) -> None:
    """Ask for a stream, and read it to its end."""
    async with connected:  # a few hundred connection attempts at once would overflow the listen queue
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(HEAD % (CHAT.encode(), len(body)) + body)
    end = b""
    while data := await reader.read(65536):
        end = (end + data)[-40:]
    writer.close()
    assert b"data: [DONE]" in end, f"the stream ended with {end!r}"


def waiting(streams: int, folder: Path, interval: float = INTERVAL) -> Waited:
    """Measure with so many streams, one of which has the slot, and a comment to each in each interval, in seconds."""
    needed = 2 * streams + 200
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < needed:
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(needed, hard), hard))
    with ExitStack() as stack:
        children = Children(stack, folder)
        llama, port, admin = free_ports(3)
        server = Way("stand-in", children.start("stand-in", ("-m", "benchmarks.bench.stand_in", llama), llama))
        options = ("--queue-limit", streams + 10, "--no-warmup", "--ping-interval", interval)
        url = f"http://127.0.0.1:{llama}"
        way = Way("bioproxy", children.bioproxy(f"waiting-{streams}", port, admin, url, *options))
        wait_for("bioproxy to see the stand-in", lambda: get(admin, "/status")["llama"]["up"])
        for _ in range(LEARNED):
            way.post(CHAT, question("why?"))
        return asyncio.run(held(streams, server, way, admin))


async def held(streams: int, server: Way, way: Way, admin: int) -> Waited:
    """Have the streams wait, look at bioproxy, and let them go."""
    connected = asyncio.Semaphore(50)
    body = question("hold", stream=True)
    clients = [asyncio.ensure_future(stream(way.child.port, body, connected)) for _ in range(streams)]
    deadline = time.monotonic() + PATIENCE
    while (await asyncio.to_thread(get, admin, "/status"))["gate"]["waiting"] < streams - 1:
        assert time.monotonic() < deadline, "not all streams are waiting"
        await asyncio.sleep(0.1)
    began, cpu = time.monotonic(), way.child.cpu()
    await asyncio.sleep(WATCHED)
    part = (way.child.cpu() - cpu) / (time.monotonic() - began)
    # In a thread: the clients go on reading meanwhile.
    passing = await asyncio.to_thread(lambda: [way.post(PLAIN, question("why?")) for _ in range(ASKED)])
    memory = way.child.memory()
    began = time.monotonic()
    await asyncio.to_thread(server.post, "/release", b"{}")
    await asyncio.wait_for(asyncio.gather(*clients), PATIENCE)
    each = (time.monotonic() - began) * 1000 / streams
    return Waited(streams, part, memory, median(passing), each)
