"""Tests with other versions of Python and of what bioproxy needs: ``nox``, from ``pip install -e '.[dev]'``.

`make test` runs everything, with one Python and the newest of everything.  Here the tests in memory, which take a
minute, run with each Python that is there, with the newest versions and with the oldest that pyproject.toml allows: so
its lower bounds are true.  A Python that is not on the path is skipped, and said to be; pyenv puts several there with
``PYENV_VERSION=3.10.13:3.13.0``.

    nox                             all of it
    nox -s lint                     the checks of `make test`
    nox -s tests-3.13               one Python
    nox -s tests -k oldest          every Python, with the oldest versions
    nox -s next                     the newest Twisted there is, whatever pyproject.toml allows
"""

from __future__ import annotations

import re

import nox

nox.needs_version = ">=2024.4"
nox.options.default_venv_backend = "virtualenv"
nox.options.error_on_missing_interpreters = False
nox.options.sessions = ["lint", "tests"]
nox.options.stop_on_first_error = False

PYTHONS = ["3.10", "3.11", "3.12", "3.13", "3.14"]
DEPENDENCIES = nox.project.load_toml("pyproject.toml")["project"]["dependencies"]

PINS = {
    # "twisted[tls]>=25.5,<27" becomes "twisted[tls]==25.5".
    "oldest": [re.sub(r">=([^,]+).*", r"==\1", each) for each in DEPENDENCIES],
    "newest": [],
}


def test(session: nox.Session) -> None:
    """Run the tests in memory."""
    session.run("python", "-m", "pytest", "--numprocesses", "2", "--dist", "worksteal", "--ignore=tests/integration")


@nox.session(python=PYTHONS)
@nox.parametrize("dependencies", list(PINS), ids=list(PINS))
def tests(session: nox.Session, dependencies: str) -> None:
    """Run the tests in memory with the oldest or the newest versions that are allowed."""
    session.install("--upgrade", "--upgrade-strategy=eager", "--editable", ".[unit]", *PINS[dependencies])
    test(session)


@nox.session
def next(session: nox.Session) -> None:
    """Run them with the newest Twisted, one before its release if there is one: what will the next bound be?"""
    session.install("--editable", ".[unit]")
    session.install("--upgrade", "--pre", "twisted[tls]")
    test(session)


@nox.session(venv_backend="none")
def lint(session: nox.Session) -> None:
    """Run the checks of `make test`."""
    session.run("make", "lint", external=True)
