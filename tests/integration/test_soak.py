"""The load test, short: see `tests.soak`, which ``make soak`` runs for longer."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests import soak, soak_preempt


def test_crowds(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Of crowds that wait, everyone who stays gets the right answer in turn, and nothing is kept of those who left."""
    soak.crowds(tmp_path, seconds=0, size=150, seed=1)
    assert "crowd 4 of 150" in capsys.readouterr().out


def test_preemptions(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Users who come in the middle of a warm-up have the gate to themselves within a piece."""
    soak_preempt.preemptions(tmp_path, tries=5, seed=1)
    assert "5 users" in capsys.readouterr().out
