"""What thousands of slot files cost: the record, and the shelf that keeps them within limits.

`shelf_costs` returns the milliseconds of one call each: the median and the worst of several.  The disk is the one of
the folder given.  What a change costs is mostly `fsync`, which depends on the disk; so it is also measured with `fsync`
left out, which is the only thing that is replaced here.

bioproxy's own `SnapshotRecord` and `Shelf` are called in this process.  No llama-server is needed: its files are a few
bytes here, and only their names and their recorded sizes matter.  Entries are like those of a coding agent's months:
one in twenty is a learned prompt, the others are conversations that begin with the same message.

Does not know how the costs are reported.
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from unittest.mock import patch

from bioproxy.llama.model_identity import Model
from bioproxy.prompts.conversation import ConversationChain
from bioproxy.prompts.digests import DigestedTokens, digest, prefix_digests
from bioproxy.prompts.prompt_ids import learned_id
from bioproxy.prompts.prompt_shape import Key
from bioproxy.runtime.metrics import Metrics
from bioproxy.runtime.state_folder import StateFolder
from bioproxy.slot_files.folder import MAGIC, SlotFolder
from bioproxy.slot_files.record import CHAT, PREFIX, Snapshot, SnapshotRecord
from bioproxy.slot_files.shelf import Shelf
from bioproxy.slot_files.snapshot import CONVERSATION, iso, names_of

MESSAGES, TOKENS = 60, 20_000
"""Messages of the longest conversation, and tokens of a prompt, as coding agents have them."""

SIZE = 100 << 20
"""Bytes that each file counts for."""

ROUNDS = 30
"""Calls for each line."""

MODEL = Model("f" * 64, tuple((token, -token / 10) for token in range(10)), "model.gguf", "b1")


def chain(number: int) -> ConversationChain:
    """Return a conversation; all of them begin with the same message, as those of an agent do."""
    return ConversationChain(("first", *(digest(str(number), str(turn)) for turn in range(MESSAGES))))


def entry(number: int, kind: str, age: float = 7200.0) -> tuple[str, Snapshot]:
    """Return id and entry of a file."""
    name = learned_id(digest(str(number)))
    conversation = chain(number).first_messages(2 + 2 * (number % (MESSAGES // 2))) if kind == CHAT else None
    marks = prefix_digests([*range(64 * (number % 200)), *[number] * 64 * 20]) if kind == PREFIX else ()
    saved_at = iso(time.time() - age)
    key = Key("", digest(str(number)))
    snapshot = Snapshot(names_of(name, kind)[0], key, len(marks) * 64, SIZE, MODEL, saved_at, marks, conversation)
    return name, snapshot


def shelf_costs(entries: int, path: Path) -> dict[str, tuple[float, float]]:
    """Return the median and the longest milliseconds of each kind of call, with so many files on the shelf."""
    costs: dict[str, tuple[float, float]] = {}

    def measure(what: str, work: Callable[[int], object], rounds: int = ROUNDS) -> None:
        times = []
        for number in range(rounds):
            began = time.perf_counter()
            work(number)
            times.append((time.perf_counter() - began) * 1000)
        costs[what] = statistics.median(times), max(times)

    (path / "slots").mkdir(0o700)
    state = StateFolder(path / "state")
    state.open()
    snapshots = SnapshotRecord(state)
    snapshots.load()
    with patch("os.fsync"):
        for number in range(entries):
            kind = CHAT if number % 20 else PREFIX
            name, snapshot = entry(number, kind)
            (path / "slots" / snapshot.filename).write_bytes(MAGIC)
            snapshots.put(name, kind, snapshot)
    loaded = SnapshotRecord(state)
    measure("load the record", lambda _: loaded.load(), 1)
    limit = loaded.totals(CONVERSATION).bytes
    shelf = Shelf(loaded, SlotFolder(path / "slots"), Metrics(), 1 << 60, limit)

    latest = [number for number in range(entries) if number % 20][-ROUNDS:]
    measure(
        "longest conversation, found",
        lambda n: next(loaded.continued_conversations(chain(latest[n % len(latest)])), None),
    )
    turns = [chain(entries + number) for number in range(ROUNDS)]
    measure("longest conversation, none", lambda n: next(loaded.continued_conversations(turns[n]), None))
    tokens = list(range(TOKENS))
    measure(f"digests of {TOKENS} tokens", lambda _: DigestedTokens(tokens))
    digested = DigestedTokens(tokens)
    measure(
        "compare them with all prompts",
        lambda _: [digested.shared_with(each.marks, each.tokens) for _, _, each in loaded.prompts()],
    )
    measure("used", lambda n: loaded.used(learned_id(digest(str(latest[n % len(latest)]))), CHAT))

    def flush(_: int) -> None:
        """Write the uses, of which one is new."""
        loaded.used(learned_id(digest(str(latest[0]))), CHAT)
        loaded.flush_uses()

    for number in range(entries):
        loaded.used(learned_id(digest(str(number))), CHAT)
    measure("flush_uses, all entries were used", flush)
    measure("tell", lambda _: shelf.tell())

    def put_and_evict(number: int) -> None:
        """Save a conversation to a full shelf."""
        name, snapshot = prepared[number]
        loaded.put(name, CHAT, snapshot)
        shelf.within_limits((name, CHAT))

    for what, without in (("put with eviction", False), ("put with eviction, without fsync", True)):
        prepared = [entry(entries * (2 + without) + number, CHAT, 0) for number in range(ROUNDS)]
        for _, snapshot in prepared:
            (path / "slots" / snapshot.filename).write_bytes(MAGIC)
        with patch("os.fsync") if without else patch.dict(os.environ):
            measure(what, put_and_evict)
    # The worst case: all others are protected, so all are looked at.
    with patch("os.fsync"):
        for number in range(entries):
            if number % 20:
                name, snapshot = entry(number, CHAT, 60)
                loaded.put(name, CHAT, snapshot)
        shelf.within_limits()
        prepared = [entry(entries * 5 + number, CHAT, 0) for number in range(ROUNDS)]
        measure("the same, where all files are new", put_and_evict)
    state.close()
    return costs
