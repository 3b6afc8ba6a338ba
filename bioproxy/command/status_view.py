"""What ``bioproxy status`` prints: `/status` as lines for a terminal.

There are three parts: how bioproxy, llama-server and the slot are; a table of the prompts with how warm they are; and a
table of the latest requests.  The words are those of the live page (`bioproxy.operator.page`), so that one thing has
one name.

`/status` says since when something lasts and not for how long, so the present time is a parameter.  With it everything
here is a pure function: the same status, size and time give the same lines, and a test needs no bioproxy.

In `/status` a value that is not known is `None`, and here a hyphen.  Texts in it may come from outside, such as the
path of a request, whose sender chose it.  So every text goes through `plain` before it is shown.

Does not know where the status comes from, nor whether the lines are printed once or again and again
(`bioproxy.command.status`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from bioproxy.command.table import Cell, Column, coloured, cut, plain, table

Status = Mapping[str, Any]
"""`/status`, as JSON has it; `bioproxy.operator.status` says what is in it."""

KEYS = frozenset({"version", "uptime_s", "llama", "gate", "prompts", "requests"})
"""The keys of `/status` that are used here.  What lacks one of them is not bioproxy's."""

REQUESTS = 8
"""Requests that are shown, the latest ones.

Halved, a turn of an agent does not fit; doubled, the prompts are scrolled out of a terminal of 24 lines.
"""

BAR = 14
"""Cells of a progress bar, without its percentage.

Halved, it moves every 14 % only; doubled, a terminal of 40 columns has no room for it.
"""

GREEN, YELLOW, RED, CYAN, BOLD = 32, 33, 31, 36, 1
"""Colours and boldness, as numbers of terminals' escape sequences (ECMA-48)."""

COLOURS = {"warm": GREEN, "warming": CYAN, "error": RED, "hot": GREEN, "restored": GREEN, "cold": YELLOW}
"""The colours of a prompt's states, and of the ways in which the slot came to hold a prompt."""

CLIENT_GONE = 499
"""The status of a request whose client hung up (`bioproxy.proxy.request_log`)."""


@dataclass(frozen=True)
class Screen:
    """Where the lines go.

    Its height does not matter here: the code that replaces the lines in place has to cut them
    (`bioproxy.command.status.watch`).
    """

    width: int
    """Cells of a line, at most."""
    colours: bool
    """Whether escape sequences for colours are understood and wanted."""


def is_bioproxy(status: Any) -> bool:
    """Tell whether a value is a `/status` that can be shown."""
    # Only the outermost keys: inside of them, bioproxy's names do not change (`bioproxy.operator.status`).
    return isinstance(status, dict) and status.keys() >= KEYS


def is_busy(status: Status) -> bool:
    """Tell whether something warms up, runs or waits, so that the status will soon be another one.

    A warm-up that has to wait, for example until llama-server is up, does not count: nobody knows how long that takes.
    """
    # A request that waits for its turn, or a slot in use.
    gate = status["gate"]
    at_work = gate["busy"] is not None or gate["waiting"] > 0
    # A llama.cpp of bioproxy's own that is loading its model is up soon, or has failed.
    child = status["llama"].get("child")
    at_work = at_work or (child is not None and child["state"] == "starting")
    # Between two warm-ups nobody is at the gate, but the next prompt is due.
    return at_work or any(prompt["warmup"] is not None and prompt["warmup"]["due"] for prompt in status["prompts"])


def lines(status: Status, screen: Screen, now: datetime) -> list[str]:
    """Return the lines for a status.  None is wider than the screen.  `now` has a time zone; times are shown in it."""
    # Control characters first, then the width, then colours: each step would spoil the one before it otherwise.
    return [
        *(coloured(cut(plain(text), screen.width), colour, screen.colours) for text, colour in summary(status, now)),
        *prompts(status, screen),
        *requests(status, screen, now),
    ]


def summary(status: Status, now: datetime) -> Iterator[tuple[str, int | None]]:
    """Yield what there is to say in sentences, each with its colour."""
    # One line for each part of bioproxy that may be in trouble.  The most important line first: a small terminal shows
    # the beginning.
    llama = status["llama"]
    yield f"bioproxy {status['version']}, up for {duration(status['uptime_s'])}", BOLD
    if llama["up"]:
        # Only the file's name: the folder makes the line long, and the user knows it.
        model = str(llama["model"] or "a model").rpartition("/")[2]
        yield f"llama-server is up with {model} at {llama['url']}", None
    else:
        # The reason before the address, which may be cut off.
        yield f"llama-server is not ready: {llama['trouble'] or 'no answer'} ({llama['url']})", RED
    # Nothing failed, but something is slower than it could be.
    if llama["note"]:
        yield f"note: {llama['note']}", YELLOW
    yield slot(status["gate"], now), CYAN if status["gate"]["busy"] else None
    # On a line of its own, so that a narrow terminal does not cut it.
    if waiting := status["gate"]["waiting"]:
        yield f"{waiting} waiting", YELLOW
    # Last, because there may be many of them.
    # A word in the table says that there is an error, a sentence here which.
    for prompt in status["prompts"]:
        if prompt["error"]:
            yield f"{prompt['name']}: {prompt['error']}", RED


def slot(gate: Mapping[str, Any], now: datetime) -> str:
    """Return a sentence about who uses the slot."""
    inside = gate["inside"]
    if inside is None:
        return "the slot waits for the next request of a conversation" if gate["lingering"] else "the slot is free"
    # Somebody has the slot: a user's request, or a warm-up.  What is known depends on the request: the prompt once it
    # is inside, and nothing but its path without a template.
    name = inside["prompt"] or inside["template"] or inside["path"] or "a request"
    # Both times have a time zone, so the difference is right wherever this runs.
    since = duration((now - datetime.fromisoformat(inside["since"])).total_seconds())
    sentence = f"{'warming up' if gate['busy'] == 'warmup' else 'serving'} {name} for {since}"
    # Only of requests whose prompt llama-server is still reading, and whose client waits for a stream.
    if progress := inside["progress"]:
        sentence += f", {progress['reused']:,} tokens reused, {progress['computed']:,} computed"
    return sentence


def prompts(status: Status, screen: Screen) -> list[str]:
    """Return the table of prompts, templates first, with the number of conversations below it.

    `TOKENS` is how long a prompt is, and `USES` how many requests found it in the slot or in its file.
    """
    kept = [prompt for prompt in status["prompts"] if prompt["kind"] != "conversation"]
    # Conversations are many, and have names that say nothing to a person.
    # The list has the latest conversations only; the number of all of them is elsewhere.
    count = status.get("shelf", {}).get("conversation", {}).get("files", 0)
    below = [cut(f"and {count} conversation{'s' * (count != 1)} in files", screen.width)] if count else []
    # A table without rows would look as if something were missing.
    if not kept:
        return ["", cut("no prompts: no template is configured, and nothing was learned yet", screen.width), *below]
    # The ranks say what a narrow terminal loses first: how often something was used, then how long it is.
    columns = [
        Column("PROMPT", [Cell(plain(prompt["name"])) for prompt in kept]),
        Column("STATE", [Cell(prompt["state"], COLOURS.get(prompt["state"])) for prompt in kept], rank=1),
        Column("PROGRESS", [Cell(bar(prompt["progress"])) for prompt in kept], rank=2),
        Column("TOKENS", [Cell(number(prompt["tokens"])) for prompt in kept], rank=3, right=True),
        Column("USES", [Cell(number(prompt["hits"])) for prompt in kept], rank=4, right=True),
    ]
    return ["", *table(columns, screen.width, screen.colours), *below]


def requests(status: Status, screen: Screen, now: datetime) -> list[str]:
    """Return the table of the latest requests, newest first.

    `SECONDS` is how long a client waited in all, its time in the queue included; `FIRST` is until the first piece of
    the answer came, which is what a warm prompt makes short.
    """
    # They come newest first.
    latest: Sequence[Mapping[str, Any]] = status["requests"][:REQUESTS]
    if not latest:
        return ["", cut("no requests yet", screen.width)]
    # Whether something was reused, and what it took, is what people look for; both stay in 40 columns.
    columns = [
        Column("REQUEST", [Cell(plain(each["prompt"] or each["template"] or each["path"])) for each in latest]),
        Column("CACHE", [outcome(each) for each in latest], rank=1),
        Column("SECONDS", [Cell(seconds(each["total_ms"])) for each in latest], rank=2, right=True),
        Column("FIRST", [Cell(seconds(each["ttft_ms"])) for each in latest], rank=4, right=True),
        Column("TOKENS", [Cell(number(each["prompt_tokens"])) for each in latest], rank=5, right=True),
        Column("REUSED", [Cell(number(each["cached_tokens"])) for each in latest], rank=6, right=True),
        Column("TIME", [Cell(clock(each["time"], now)) for each in latest], rank=3, right=True),
    ]
    return ["", *table(columns, screen.width, screen.colours)]


def outcome(request: Mapping[str, Any]) -> Cell:
    """Return in one word how a request ended: an error, or else how the slot came to hold its prompt."""
    # An error says more than the cache does, since its answer needed none.
    status = request["status"]
    if status == CLIENT_GONE:
        return Cell("left", YELLOW)
    # 0: bioproxy had no answer to give, not even an error.
    if status >= 400 or status == 0:
        return Cell(f"error {status}" if status else "no answer", RED)
    # Requests without a template and without a learned prompt have no word for it.
    cache = request["cache"]
    return Cell(cache or "-", COLOURS.get(cache))


def bar(progress: float) -> str:
    """Return a progress bar for a number from 0 to 1, with its percentage.

    In ASCII, so it looks the same on every terminal.
    """
    # How many cells are filled.
    done = int(progress * BAR)
    # Rounded down, like the bar: 100 % are for what is finished.
    return f"{'#' * done}{'.' * (BAR - done)} {int(progress * 100):3} %"


def number(value: int | None) -> str:
    """Return a count with commas, ``-`` if it is not known."""
    # A 0 would be a statement, and a wrong one.
    return "-" if value is None else f"{value:,}"


def seconds(milliseconds: float | None) -> str:
    """Return milliseconds as seconds, ``-`` if they are not known."""
    return "-" if milliseconds is None else f"{milliseconds / 1000:.2f}"


def clock(time: str, now: datetime) -> str:
    """Return a time in ISO 8601 as a time of day in the time zone of `now`."""
    # `/status` has UTC.  A person compares with the clock on the wall.
    return datetime.fromisoformat(time).astimezone(now.tzinfo).strftime("%H:%M:%S")


def duration(seconds: float) -> str:
    """Return a number of seconds in the two largest units that it has, such as ``2 h 5 min``."""
    # bioproxy may run on another machine, whose clock is ahead, and clocks may be set.
    whole = max(int(seconds), 0)
    days, hours, minutes = whole // 86400, whole // 3600 % 24, whole // 60 % 60
    # Two units are exact enough for "how long?", and short enough for a narrow terminal.
    if days:
        return f"{days} d {hours} h"
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {whole % 60} s" if minutes else f"{whole} s"
