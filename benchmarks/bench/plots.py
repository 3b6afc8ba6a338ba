"""Draws ``results.json``: one picture for each question that the figures answer.

* ``first-token.svg``: seconds to the first word, for each state of one document, each contestant beside the others;
* ``latency.svg``: what each proxy adds to a small request;
* ``scale.svg``: processor and memory for waiting streams;
* ``disk.svg``: bytes written in an agent's day, and the part that was read again.

SVG because it stays sharp and small, and because two drawings of the same figures are the same text.  matplotlib comes
with the extra ``bench``; without it nothing is drawn, and tables and ``results.json`` are there all the same.

Colours are those of Okabe and Ito, which people who cannot tell red from green can tell apart, and names stand beside
them.  Does not know how anything was measured.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

COLOURS = {
    "bioproxy": "#0072B2",
    "llama.cpp alone": "#999999",
    "hearth-llm": "#E69F00",
    "15 lines": "#56B4E9",
    "nginx": "#009E73",
    "HAProxy": "#CC79A7",
    "LiteLLM": "#D55E00",
}

"""The colour of each contestant, the same in all pictures."""

WIDTH, HEIGHT = 8.0, 4.2
"""Inches of a picture: the width of a page on GitHub, with letters of the size of its text."""

NO_METADATA = dict.fromkeys(("Date", "Creator", "Format", "Type"))
"""What would make two drawings differ, and what names other sites in the file."""

LIKED = ("first-token-smollm2-3000", "first-token-smollm2-1000")
"""The tables that are drawn where they were measured; else the first one."""

Tables = Mapping[str, Mapping[str, Any]]
"""The tables of all themes, by their names, as ``results.json`` has them."""


def draw(results: Mapping[str, Any], folder: Path) -> list[Path]:
    """Draw what there is in results; return the files, none without matplotlib.

    A picture whose theme was never measured is left out.
    """
    try:
        import matplotlib
    except ImportError:
        return []
    matplotlib.use("svg")
    # The same figures give the same bytes: ids from a fixed salt, and no date in the file.
    matplotlib.rcParams.update({"svg.hashsalt": "bioproxy", "svg.fonttype": "none", "font.size": 9})
    tables: dict[str, Any] = {table["name"]: table for entry in results.values() for table in entry["tables"]}
    drawn = []
    for name, picture in (("first-token", first_token), ("latency", latency), ("scale", scale), ("disk", disk)):
        figure = picture(tables)
        if figure is not None:
            file = folder / f"{name}.svg"
            figure.savefig(file, metadata=NO_METADATA, bbox_inches="tight")
            drawn.append(file)
    return drawn


def subplots(columns: int = 1) -> Any:
    """Return a figure and its axes, side by side, without lines where nothing is to be read."""
    # `Figure` itself and not `pyplot`, which keeps each figure until it is closed.
    from matplotlib.figure import Figure

    figure = Figure(figsize=(WIDTH, HEIGHT), layout="constrained")
    axes = figure.subplots(1, columns, squeeze=False)[0]
    for each in axes:
        each.spines[["top", "right"]].set_visible(False)
    return figure, axes


def first_token(tables: Tables) -> Any:
    """Draw the seconds to the first word, on a logarithmic scale: a hundredth and a minute are both in it."""
    names = [name for name in tables if name.startswith("first-token-")]
    if not names:
        return None
    table = tables[next((name for name in LIKED if name in tables), names[0])]
    contestants = [column.removesuffix(", s") for column in table["columns"][1:] if column.endswith(", s")]
    figure, (axes,) = subplots()
    # The first state stands at the top, so the rows go from the bottom up.
    states = list(reversed(table["rows"]))
    height = 0.8 / len(contestants)
    for index, contestant in enumerate(contestants):
        where = [
            place + (len(contestants) / 2 - index - 0.5) * height for place, row in enumerate(states) if row[1 + index]
        ]
        seconds = [row[1 + index] for row in states if row[1 + index]]
        bars = axes.barh(where, seconds, height, color=COLOURS[contestant], label=contestant)
        axes.bar_label(bars, [f" {value:.2g} s" for value in seconds], fontsize=6)
    axes.set_yticks(range(len(states)), [row[0] for row in states])
    axes.set_xscale("log")
    axes.set_xlim(left=min(row[place] for row in states for place in range(1, 1 + len(contestants)) if row[place]) / 3)
    axes.set_xlabel("seconds to the first word, shorter is better (logarithmic)")
    axes.set_title(table["title"].split(": ", 1)[1], fontsize=10)
    axes.legend(frameon=False, loc="upper left", bbox_to_anchor=(1, 1))
    figure.set_size_inches(WIDTH, 0.55 * len(states) + 1)
    return figure


def latency(tables: Tables) -> Any:
    """Draw the added milliseconds, and an event's delay in a stream."""
    if "post" not in tables:
        return None
    figure, (left, right) = subplots(2)
    bars(left, column(tables["post"], "added p50 ms"))
    left.set_xlabel("added to a small request, p50, ms")
    bars(right, column(tables["stream"], "an event's delay, p50 ms"))
    right.set_xlabel("delay of an event in a stream, p50, ms")
    # LiteLLM is slower by a factor of hundreds: on a linear scale all others would look alike.
    for axes in (left, right):
        axes.set_xscale("log")
        # Their labels would overlap; each bar has its value beside it.
        axes.minorticks_off()
        axes.set_xlim(left=0.01)
    return figure


def column(table: Mapping[str, Any], name: str) -> list[tuple[str, float]]:
    """Return the values of a column with the names of their rows, without the direct way."""
    place = list(table["columns"]).index(name)
    return [(row[0], row[place]) for row in table["rows"] if row[0] != "direct"]


def bars(axes: Any, values: Sequence[tuple[str, float]]) -> None:
    """Draw horizontal bars with their names and values."""
    names = [name for name, _ in reversed(values)]
    lengths = [max(value, 0.001) for _, value in reversed(values)]
    drawn = axes.barh(names, lengths, color=[COLOURS[name] for name in names])
    axes.bar_label(drawn, [f" {value:.3g}" for value in lengths], fontsize=8)


def scale(tables: Tables) -> Any:
    """Draw what waiting streams cost bioproxy: memory, and processor time while nothing happens."""
    if "waiting" not in tables:
        return None
    rows = tables["waiting"]["rows"]
    figure, (left, right) = subplots(2)
    for axes, column, label in ((left, 2, "memory, MB"), (right, 1, "processor while they wait, %")):
        axes.plot([row[0] for row in rows], [row[column] for row in rows], "o-", color=COLOURS["bioproxy"])
        axes.set_xscale("log")
        axes.set_ylim(bottom=0)
        axes.set_xlabel("streams that wait")
        axes.set_ylabel(label)
    return figure


def disk(tables: Tables) -> Any:
    """Draw the bytes that a day writes, and in full colour those that were read again."""
    days = [table for name, table in tables.items() if name.startswith("disk-")]
    if not days:
        return None
    figure, axes = subplots(len(days))
    for each, table in zip(axes, days, strict=True):
        rows = [row for row in table["rows"] if row[3]]
        names, colours = [row[0] for row in rows], [COLOURS[row[0]] for row in rows]
        each.bar(names, [row[3] for row in rows], color=colours, alpha=0.35)
        again = each.bar(names, [row[3] * (row[6] or 0) / 100 for row in rows], color=colours)
        each.bar_label(again, [f"{row[6] or 0:.0f} % read again" for row in rows], fontsize=7, padding=2)
        each.set_ylabel("MB written")
        each.set_title(table["title"].rsplit(": ", 1)[1], fontsize=10)
    return figure
