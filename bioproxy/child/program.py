"""Finds the llama.cpp to run, and says at once what is missing.

There may be a program `llama-server` on this machine, built for its GPU, and there may be the wheel `xllamacpp`, which
a ``pip install`` brings.  The program that `llama_server` names is taken; without that setting the wheel; without the
wheel a `llama-server` on the path.

Mistakes that can be seen without starting anything are found here: a model file that is missing or is none, a program
that does not exist, a flag that the wheel does not know.  They end the start with one line, and a reload with such a
mistake changes nothing.  What shows only later is told by `bioproxy.child.failure_reasons`.

A check beforehand is a courtesy and no guarantee: a file may be gone a moment later.  So the start itself handles every
failure as well, and nothing relies on a check that has passed.

Plain functions that look at files for a moment, without Twisted.
"""

from __future__ import annotations

import importlib.util
import shutil
from collections.abc import Callable
from pathlib import Path

from bioproxy.child.command_line import adapted, child_flags, port_wanted
from bioproxy.child.wheel_flags import parsed
from bioproxy.runtime.errors import ConfigError
from bioproxy.runtime.regular_file import read_regular
from bioproxy.settings.configuration import Settings

GGUF = b"GGUF"
"""What each model file of llama.cpp begins with."""

USUAL_NAME = "llama-server"
"""What the program is called that llama.cpp's build makes."""


def find_program(settings: Settings) -> str | None:
    """Return the path of the program to run, or `None` for the wheel.  Raises `ConfigError` if there is neither.

    Called at the start, at each reload, and before each start of a process, since programs come and go.
    """
    # A user who names a program wants that one, and nothing else in its place.
    if settings.llama_server is not None:
        # A name without a slash is looked for on the path, as a shell does.  A path was made absolute by the setting's
        # check, so it means the same whatever folder a daemon works in.
        found = shutil.which(settings.llama_server)
        if found is None:
            raise ConfigError(f"llama_server: {settings.llama_server}: no such program")
        return found
    # Only looked for and not imported: that would load 100 MB of code into bioproxy's own process.
    if importlib.util.find_spec("xllamacpp") is not None:
        return None
    # Better than an error: a llama-server on the path is what the user would name now.  It comes last, because the path
    # often has a build that somebody tried once, and the wheel is of a version that bioproxy was tested with.
    found = shutil.which(USUAL_NAME)
    if found is None:
        raise ConfigError(
            "model: there is no llama.cpp to run it: pip install 'bioproxy[llama]', or name a program in llama_server"
        )
    return found


def check_child(settings: Settings) -> None:
    """Raise `ConfigError` if the settings' model cannot be run, as far as that can be seen before it is tried.

    Does nothing if the settings name no model.  Called at the start, at a reload, and by ``--check``.  Reads four bytes
    and some directories, so it may run in the reactor's thread.
    """
    if settings.model is None:
        return
    # In the order in which a user meets these settings: the first mistake is the one that is told.  Several at a time
    # would need a list of errors through all callers, and one line is what a start ends with.
    check_model(settings.model)
    port_wanted(settings)
    if find_program(settings) is None:
        # Only the wheel's flags can be checked here: a program may know more of them than this version of bioproxy.
        # The port makes no difference.
        try:
            parsed(child_flags(settings, 0))
        except (ValueError, OSError) as error:
            raise ConfigError(f"llama_args: {error}") from None


def reader(read: Callable[[], Settings], port: int) -> Callable[[], Settings]:
    """Return what reads the settings at a reload, while a llama.cpp of bioproxy's own runs on `port`.

    `read` reads them as they stand in the file.  Both raise `ConfigError`, and then the reload changes nothing: a
    reload is all or nothing, so a model that cannot be run must be found before anything else is changed.
    """

    # A function and not a subclass of what reads settings: the reload calls one or the other, and knows no child.
    def again() -> Settings:
        """Read the settings, and look whether they can be run."""
        settings = read()
        # All parts know one address of llama-server, and it is the child's.
        if settings.model is None:
            raise ConfigError("model: only a restart can change whether bioproxy starts llama.cpp itself")
        check_child(settings)
        return adapted(settings, port)

    return again


def check_model(model: Path) -> None:
    """Raise `ConfigError` unless this is a file that begins as model files do.

    The first bytes tell the usual mistakes: a page of an error that was downloaded in the place of the model, a model
    in another format, or an archive.  A download that broke off is not among them, as its first bytes are right; that
    only llama.cpp can tell.
    """
    try:
        begin = read_regular(model, len(GGUF))
    except OSError as error:
        raise ConfigError(f"model: {model}: {error.strerror}") from None
    if begin != GGUF:
        raise ConfigError(f"model: {model}: not a GGUF file, which llama.cpp needs")
