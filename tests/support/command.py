"""The command `bioproxy` within the test's own process: quick, and with what it printed."""

from __future__ import annotations

import io
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from typing import NamedTuple

from bioproxy.command.main import main


class Done(NamedTuple):
    """What a command left: its exit code, and what it wrote to standard output and standard error."""

    code: int
    out: str
    err: str


@contextmanager
def no_terminal() -> Iterator[None]:
    """Have an empty standard input that is no terminal."""
    before = sys.stdin
    sys.stdin = io.StringIO()
    try:
        yield
    finally:
        sys.stdin = before


def command(*words: str) -> Done:
    """Run ``bioproxy WORDS`` without a terminal."""
    with redirect_stdout(io.StringIO()) as out, redirect_stderr(io.StringIO()) as err, no_terminal():
        try:
            main(words)
            code = 0
        except SystemExit as end:
            # As Python does it: a text goes to standard error, with the exit code 1.
            if isinstance(end.code, str):
                print(end.code, file=err)
            code = 1 if isinstance(end.code, str) else int(end.code or 0)
    return Done(code, out.getvalue(), err.getvalue())
