"""Theme "disk": what an agent's day writes to the disk and reads from it, and how much of that was of any use.

A coding agent (`tests.support.agents`) works through sessions: in each it asks for a title, and goes on with results of
tools; in the middle a sub-agent has a few turns.  Halfway through the day llama-server is started again.  The same day
is lived by llama.cpp alone, hearth-llm and bioproxy, request by request in turns.

A recorder between proxy and llama-server (`benchmarks.bench.recorder`) notes each slot file that is saved or restored.
A saved file was *read again* if it was restored before it was written anew.  What is written and never read again is
what safety against a restart costs; what is read is computing that was avoided, or, after a switch, a cheaper way than
llama-server's own memory.

The models are tiny, so bytes are small; their parts are those of any model.  Computed tokens are beside them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from benchmarks.agents_day import KINDS, send, write_model
from benchmarks.bench.contestants import Missing
from benchmarks.bench.llama_side import Alone, Side, kinds
from benchmarks.bench.measuring import Amounts
from benchmarks.bench.results import Cell, Found, Table
from benchmarks.servers import Children, get
from tests.support.agent_day import Step
from tests.support.agents import DIALECTS, agent, sub_agent, title_writer

TURNS = 12
"""Requests of a session behind the first.  Real ones have dozens; more would be more of the same."""

HELPER_TURNS = 4
"""Requests of a sub-agent, which interrupts the session: that is what makes a slot change hands."""

RESULT = 150
"""Words of a tool's result, some hundred tokens: so much is new in each turn."""

CHAT = DIALECTS[0]
"""The API that all contestants know: OpenAI's chat completions."""


def day(requests: int) -> Iterator[Step]:
    """Yield so many requests, in sessions one after the other."""
    count = 0
    while True:
        for step in session(count):
            if count == requests:
                return
            count += 1
            yield step


def session(seed: int) -> Iterator[Step]:
    """Yield the requests of one session; the tools and the system message are the same each time."""
    client = agent(CHAT, 1)
    own = client.session()
    yield Step(f"session {seed}", own, 60, stream=True)
    yield Step("its title", title_writer(CHAT).session(), 60)
    for turn in range(TURNS):
        if turn == TURNS // 2:
            helper = sub_agent(client, 1).session()
            yield Step(f"sub-agent {seed}", helper, 60, stream=True)
            for _ in range(HELPER_TURNS - 1):
                yield Step("its tool", helper, RESULT, result=True, stream=True)
        yield Step("tool", own, RESULT, result=True, stream=True)


@dataclass(frozen=True)
class Files:
    """What was saved and restored, in files and in bytes; `again` is what was saved and restored afterwards."""

    saved: int
    """Files."""
    saved_bytes: int
    restored: int
    """Files; the same one may be restored several times."""
    restored_bytes: int
    again: int
    """Saved files, each counted once."""
    again_bytes: int


def counted(noted: Sequence[tuple[str, str, int]]) -> Files:
    """Count what a recorder noted: action, file name and bytes of each call, in their order."""
    latest: dict[str, int] = {}
    sizes: list[int] = []
    again: set[int] = set()
    restores = []
    for action, filename, size in noted:
        # bioproxy never overwrites a good file: it saves under a second name, and renames that file when it is whole.
        name = filename.replace(".new.bin", ".bin")
        if action == "save":
            latest[name] = len(sizes)
            sizes.append(size)
        else:
            restores.append(size)
            if name in latest:
                again.add(latest[name])
    return Files(
        *(len(sizes), sum(sizes), len(restores), sum(restores)), len(again), sum(sizes[number] for number in again)
    )


def run(amounts: Amounts, folder: Path) -> Found:
    """Measure the theme."""
    found = Found()
    for kind in amounts.kinds:
        scratch = folder / kind
        scratch.mkdir()
        with ExitStack() as stack:
            live(found, stack, kind, amounts, write_model(scratch, kind), scratch)
        print(f"  {kind}: done", flush=True)
    found.remarks = list(dict.fromkeys(found.remarks))
    return found


def live(found: Found, stack: ExitStack, kind: str, amounts: Amounts, model: Path, folder: Path) -> None:
    """Have each contestant live the day on one model, and add to `found` what that has cost.

    `kind` is the model's, for the titles; `folder` is empty before.
    """
    assert kind in KINDS
    sides: list[Side] = []
    for contestant in kinds(amounts.from_pypi):
        place = folder / contestant.__name__
        place.mkdir()
        try:
            sides.append(contestant(Children(stack, place), place, model, 1, contestant is not Alone))
        except Missing as missing:
            found.remarks.append(str(missing))
    computed = dict.fromkeys((side.name for side in sides), 0)
    # Request by request in turns, so that whatever else the machine does harms all alike.
    for number, steps in enumerate(zip(*(day(amounts.day) for _ in sides), strict=True)):
        for side, step in zip(sides, steps, strict=True):
            if number == amounts.day // 2:
                side.restart_llama()
            (answered,) = send([step], side.port)
            computed[side.name] += answered.row.reply.computed
    rows: list[list[Cell]] = []
    for side in sides:
        # What is still being written counts, too.
        side.settle()
        noted = get(urlsplit(side.llama_url).port or 0, "/recorded") if side.proxy is not None else []
        files = counted(noted)
        part = 100 * files.again_bytes / files.saved_bytes if files.saved_bytes else None
        megabytes = (files.saved_bytes / 1e6, files.restored_bytes / 1e6)
        rows.append([side.name, computed[side.name], files.saved, megabytes[0], files.restored, megabytes[1], part])
        if side.proxy is not None and files.saved_bytes:
            found.ratios[f"{kind}: part of the written bytes that was read again, {side.name}"] = (part or 0) / 100
    found.ratios[f"{kind}: computed tokens, bioproxy / llama.cpp alone"] = (
        computed["bioproxy"] / computed["llama.cpp alone"]
    )
    columns = (
        *("", "computed tokens", "files saved", "written, MB", "files restored", "read, MB"),
        "part of the written bytes that was read again, %",
    )
    size = model.stat().st_size / 1e6
    note = f"A {kind} model of {size:.1f} MB. llama-server was started again after {amounts.day // 2} requests."
    found.tables.append(Table(f"disk-{kind}", f"An agent's day of {amounts.day} requests: {kind}", columns, rows, note))
