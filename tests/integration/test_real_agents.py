"""An agent's day on the real llama.cpp, without any template: what was learned survives llama-server.

`benchmarks.agents_day` has the requests, the processes and the checks.  ``make soak`` runs each kind of model with each
dialect; here each kind has one, and a last day has them all in turn.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from benchmarks import agents_day
from tests.support.agents import CHAT, DIALECTS, MESSAGES, RESPONSES, Dialect

NO_MEMORY = ("--cache-ram", 0)
"""Switches llama-server's own memory of finished prompts off."""


@pytest.mark.parametrize(
    ("kind", "dialects", "arguments"),
    [
        ("dense", (CHAT,), NO_MEMORY),
        ("sliding", (MESSAGES,), ()),
        ("sliding", (RESPONSES,), NO_MEMORY),
        ("hybrid", (RESPONSES,), ()),
        ("hybrid", (MESSAGES,), NO_MEMORY),
        ("dense", DIALECTS, ()),
    ],
    ids=lambda value: value if isinstance(value, str) else "-".join(getattr(each, "name", str(each)) for each in value),
)
def test_day(tmp_path: Path, kind: str, dialects: Sequence[Dialect], arguments: tuple[object, ...]) -> None:
    """After llama-server was killed, new sessions compute 120 tokens at most, and old ones 300, beside what is new.

    The first request after the start finds its prompt in the slot.
    """
    agents_day.run(tmp_path, kind, dialects, *arguments)


@pytest.mark.parametrize("kind", agents_day.KINDS)
def test_new_session_first(tmp_path: Path, kind: str) -> None:
    """The same where a new session is what comes first after the start."""
    agents_day.run(tmp_path, kind, (CHAT,), new_first=True)
