"""``make bench`` still works: each theme in a form that takes seconds, with real processes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks.bench.__main__ import THEMES, main

EXPECTED = {
    "latency": {"post", "plain-post", "stream"},
    "first-token": {"first-token-tiny-300"},
    "scale": {"start", "waiting", "large-template", "polls", "shelf"},
    "disk": {"disk-dense"},
}
"""The tables of each theme."""


def run(theme: str, folder: Path) -> dict[str, Any]:
    """Measure a theme, check what it wrote, and return its entry in ``results.json``."""
    assert main(["--amounts", "tiny", "--themes", theme, "--results", str(folder)]) == 0
    entry: dict[str, Any] = json.loads((folder / "results.json").read_text())[theme]
    assert {table["name"] for table in entry["tables"]} == EXPECTED[theme]
    for table in entry["tables"]:
        assert table["rows"] and all(len(row) == len(table["columns"]) for row in table["rows"])
        assert table["title"] in (folder / "tables.md").read_text()
    assert entry["ratios"] and all(value >= 0 for value in entry["ratios"].values())
    assert entry["machine"]["bioproxy"]
    assert "<svg" in (folder / f"{theme}.svg").read_text()
    return entry


@pytest.mark.parametrize("theme", sorted(THEMES.keys() - {"first-token"}))
def test_theme(theme: str, tmp_path: Path) -> None:
    """A theme measures bioproxy and others, and writes JSON, Markdown and a picture."""
    entry = run(theme, tmp_path)
    labels = {row[0] for table in entry["tables"] for row in table["rows"]}
    assert {"bioproxy", "llama.cpp alone" if theme == "disk" else "15 lines"} <= labels


def test_first_token(tmp_path: Path) -> None:
    """States are what they are called: a cold document is computed; a warm one is not, whatever happened before."""
    (table,) = run("first-token", tmp_path)["tables"]
    alone, ours = (table["columns"].index(f"{name}, computed tokens") for name in ("llama.cpp alone", "bioproxy"))
    rows = {row[0]: row for row in table["rows"]}
    assert rows["cold"][alone] > 250 and rows["cold"][ours] > 250
    assert rows["hot"][alone] < 60
    for state in ("hot", "after a switch", "after the proxy's restart", "after llama-server's restart"):
        assert rows[state][ours] < 150, rows[state]
    assert rows["after llama-server's restart"][alone] > 250
