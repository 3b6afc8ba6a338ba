"""The load test, short: see `benchmarks.soak`, which ``make soak`` runs for longer."""

from __future__ import annotations

import json
import signal
import socket
from contextlib import ExitStack
from pathlib import Path

import pytest

from benchmarks import soak_child, soak_crowds, soak_preempt, soak_shared, soak_shelf
from benchmarks.servers import Children, free_ports, get, wait_for


def test_crowds(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Of crowds that wait, everyone who stays gets the right answer in turn, and nothing is kept of those who left."""
    soak_crowds.crowds(tmp_path, seconds=0, size=150, seed=1)
    assert "crowd 4 of 150" in capsys.readouterr().out


@pytest.mark.parametrize(("leaves", "at_once"), [(True, 1), (False, 2)])
def test_notes(tmp_path: Path, leaves: bool, at_once: int) -> None:
    """The stand-in, which may have slept, can tell two requests at once from one after the other."""
    with ExitStack() as stack:
        (port,) = free_ports(1)
        llama = Children(stack, tmp_path).start("stand-in", ["-m", "benchmarks.soak_llama", port], port)
        llama.process.send_signal(signal.SIGSTOP)
        first = stack.enter_context(asked(port, "first"))
        if leaves:
            first.close()
        stack.enter_context(asked(port, "second"))
        llama.process.send_signal(signal.SIGCONT)
        seen: list[str] = []
        most: list[int] = []

        def both_seen() -> bool:
            notes = get(port, "/notes")
            seen.extend(notes["seen"])
            most.append(notes["most_at_once"])
            return len(seen) == 2

        wait_for("the stand-in to see both", both_seen)
        assert (seen, max(most)) == (["first", "second"], at_once)


def asked(port: int, name: str) -> socket.socket:
    """Return a connection on which something was asked of the stand-in that it will not answer."""
    body = json.dumps({"name": name, "stream": False, "hold": True}).encode()
    connection = socket.create_connection(("127.0.0.1", port))
    connection.sendall(b"POST /v1/chat/completions HTTP/1.1\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body))
    return connection


def test_preemptions(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Users who come in the middle of a warm-up have the gate to themselves within a piece."""
    soak_preempt.preemptions(tmp_path, tries=5, seed=1)
    assert "5 users" in capsys.readouterr().out


def test_one_shots(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Conversations of one question never take more than the limit and one file, and cost no learned prompt."""
    soak_shelf.one_shots(tmp_path, count=60)
    assert "60 conversations" in capsys.readouterr().out


def test_kills(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """After kills at random moments record and folder agree, and the answers are those of before."""
    soak_shelf.kills(tmp_path, count=3, seed=1)
    assert "3 kills" in capsys.readouterr().out


def test_shared_kills(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """After kills of pairs that share a shelf all agrees, nobody is blocked for a minute, and no answer is wrong."""
    soak_shared.shared_kills(tmp_path, count=2, seed=1)
    assert "2 kills of two pairs" in capsys.readouterr().out


def test_own_llama(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A llama.cpp of bioproxy's own answers from a file as it does without bioproxy; its kills have tests elsewhere."""
    soak_child.own_llama(tmp_path / "own-llama", kills=0, seed=1)
    assert "killed 0 times" in capsys.readouterr().out
