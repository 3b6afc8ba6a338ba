"""What a run found: tables, as JSON for programs, as Markdown for people; and the comparison of two runs.

A theme returns a `Found`: tables, the ratios that a second run should find again, and a line for each contestant that
could not be had.  `write` adds it to ``results.json`` in the results' folder, under the theme's name and beside the
machine and the versions that it was measured with; themes of earlier runs stay.  ``tables.md`` is made from that file.

    python -m benchmarks.bench.results ONE/results.json OTHER/results.json

compares the ratios of two runs, and ends with 1 if any differ by more than `ALLOWED`.

Does not know what the numbers mean.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

Cell = str | float | None
"""A value of a table: a label, a number, or nothing where there is nothing to measure."""

ALLOWED = 0.15
"""Part by which a ratio may differ between two runs of the same script."""


@dataclass(frozen=True)
class Table:
    """A table; its numbers have the units that `columns` names."""

    name: str
    """Of its anchor and of its plot; of the letters ``a-z`` and ``-``."""
    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    """Each as long as `columns`."""
    note: str = ""
    """How it was measured, in a sentence or two."""


@dataclass
class Found:
    """What a theme found."""

    tables: list[Table] = field(default_factory=list)
    ratios: dict[str, float] = field(default_factory=dict)
    """Relations between contestants, which do not depend on how fast the machine is."""
    remarks: list[str] = field(default_factory=list)
    """What was left out, or did not go as intended."""


def load(file: Path) -> dict[str, Any]:
    """Return the themes of a results file; none where there is no such file."""
    return dict(json.loads(file.read_text())) if file.exists() else {}


def write(folder: Path, theme: str, found: Found, machine: Mapping[str, Any]) -> None:
    """Add a theme to ``results.json`` in a folder, and write ``tables.md`` anew."""
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "results.json"
    results = {**load(file), theme: {"machine": dict(machine), **asdict(found)}}
    file.write_text(json.dumps(results, indent=1) + "\n")
    (folder / "tables.md").write_text(markdown(results))


def markdown(results: Mapping[str, Any]) -> str:
    """Return all themes as Markdown."""
    parts = []
    for theme, entry in results.items():
        parts.append(f"## {theme}\n\n{', '.join(f'{key}: {value}' for key, value in entry['machine'].items())}")
        parts += [as_markdown(Table(**table)) for table in entry["tables"]]
        if entry["ratios"]:
            parts.append("\n".join(f"* {name}: {number(value)}" for name, value in entry["ratios"].items()))
        if entry["remarks"]:
            parts.append("\n".join(f"* {remark}" for remark in entry["remarks"]))
    return "\n\n".join(parts) + "\n"


def as_markdown(table: Table) -> str:
    """Return one table as Markdown, with its title and its note."""
    lines = [f"**{table.title}**", "", f"| {' | '.join(table.columns)} |", "|---" * len(table.columns) + "|"]
    lines += [f"| {' | '.join(number(cell) for cell in row)} |" for row in table.rows]
    return "\n".join([*lines, *(["", table.note] if table.note else [])])


def number(cell: Cell) -> str:
    """Return a value as text: three significant digits, and whole numbers in full."""
    if cell is None:
        return "-"
    if isinstance(cell, str):
        return cell
    if isinstance(cell, int) or abs(cell) >= 100:
        return f"{cell:,.0f}"
    return f"{cell:.3g}" if abs(cell) >= 0.001 or cell == 0 else f"{cell:.5f}"


def differences(one: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, tuple[float, float, float]]:
    """Return each ratio that two runs have in common: both values, and the part by which the second differs."""
    found = {}
    for theme in one.keys() & other.keys():
        first, second = one[theme]["ratios"], other[theme]["ratios"]
        for name in first:
            if name in second:
                found[f"{theme}, {name}"] = (first[name], second[name], second[name] / first[name] - 1)
    return dict(sorted(found.items()))


def main(one: str, other: str) -> int:
    """Print how much the ratios of two results files differ; return the exit code."""
    found = differences(load(Path(one)), load(Path(other)))
    for name, (first, second, part) in found.items():
        print(f"{name:60}{first:10.3f}{second:10.3f}{part * 100:+8.1f} %{'  MORE' if abs(part) > ALLOWED else ''}")
    within = sum(abs(part) <= ALLOWED for _, _, part in found.values())
    print(f"{within} of {len(found)} ratios within {ALLOWED * 100:.0f} %")
    return 0 if within == len(found) else 1


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
