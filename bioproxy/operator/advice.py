"""What is wrong or not ideal with the setup of llama-server, and how to correct it.

``--check`` prints this advice, and the running proxy logs it when it first sees a llama-server.  Advice is given only
on what is known.  llama-server reports some of its setup over HTTP (`/props`).  The rest is known only where its
command line can be read (`bioproxy.operator.llama_flags`); where it cannot, there is no advice on it.  What cannot be
known beforehand, for example whether restored files are of any use with a model, is found out while requests run
(`bioproxy.slot_files.reuse_check`).

Each advice has two parts, what was found and what to do, because a finding alone does not help an operator who does not
know llama-server's flags.

Pure functions over values, without Twisted.  `bioproxy.operator.inspection` collects the values.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from bioproxy.llama.answers import FIXED_MARKER, Props
from bioproxy.operator.llama_flags import value
from bioproxy.runtime.errors import LlamaError, TlsFailed, UpstreamTimeout

USUAL_BATCH = 2048
"""Tokens of llama-server's logical batch unless ``-b`` sets another number.

llama-server notices that a connection was closed only between two batches.  A larger batch makes a user wait longer for
a warm-up to stop; the default is accepted, because bioproxy's own pieces are smaller.
"""


@dataclass(frozen=True)
class Advice:
    """A finding about llama-server."""

    what: str
    """What was found, as a sentence whose subject "it" is llama-server."""

    fix: str
    """What to do about it, as an imperative."""

    serious: bool = True
    """Whether something works badly or not at all: a warning.  Otherwise the finding is a note."""


@dataclass(frozen=True)
class Seen:
    """What is known of a llama-server at one moment."""

    props: Props
    """What it reports of itself at `/props`."""

    files: bool | None
    """Whether it saves slot files; `None` if it was not asked."""

    folder: Path | None
    """The setting `slot_save_path`."""

    near: bool
    """Whether it runs on this machine."""

    arguments: tuple[str, ...] | None = None
    """Its command line without the program's name; `None` where that cannot be read."""

    window: int | None = None
    """Tokens of its model's sliding window; `None` if the model has none or its file cannot be read."""


# Two situations: llama-server does not answer (`of_trouble`), or it answers and could be set up better (`advice`).


def of_trouble(error: Exception) -> Advice:
    """Return the advice on a call of llama-server that failed with this error."""
    # Only a `LlamaError` has a status: it is an answer.  The other errors mean that no HTTP server answered.
    status = error.status if isinstance(error, LlamaError) else None
    if status == 503:  # llama-server loads its model
        return Advice(str(error), "wait until it is ready", serious=False)
    # llama-server's answer to a wrong key or to none; a proxy in front of it may send 403.
    if status in (401, 403):
        return Advice(str(error), "set llama_api_key_file to a file with its key")
    # Any other error of `/health` or `/props`, such as 404: llama-server has both.
    if status is not None:
        return Advice(f"the server there seems to be no llama-server: {error}", "correct llama_url")
    # Something listens there in both cases, so starting llama-server would not help.
    if isinstance(error, UpstreamTimeout):
        return Advice(str(error), "if it hangs, restart it")
    if isinstance(error, TlsFailed):
        return Advice(str(error), "correct llama_url, or set llama_ca_file to the file with its CA's certificate")
    # Nobody listens, the name does not resolve, or the connection breaks off: the error says which.
    return Advice(str(error), "start llama-server there, or correct llama_url")


def advice(seen: Seen) -> Iterator[Advice]:
    """Yield the advice on a llama-server that answers, what matters most first."""
    props = seen.props
    # Many servers answer any path with some JSON.  If this is no llama-server, all other advice would be nonsense.
    if props.model is None and props.build is None:
        yield Advice("the server there seems to be no llama-server: it reports no model", "correct llama_url")
        return
    # `None` means that it was not asked, and then nothing is said.  Without slot files the only place for a warm
    # template is the slot itself, which the next prompt overwrites.
    if seen.files is False:
        yield Advice(
            "it keeps no slot files: only one template can be kept warm, and a restart makes it cold",
            # Of its own, because slot files hold what users said, and nobody else should be able to read them.
            "start it with --slot-save-path and a folder of its own",
        )
    # Several slots share the context: with two of them, each has half of what -c gave.
    if props.slots > 1:
        yield Advice(
            f"it has {props.slots} slots with {props.context} tokens of context each, and bioproxy uses one of them",
            "start it with -np 1",
        )
    # `GET /slots` is how bioproxy sees that nobody else has used the slot, so that its content is still what it was.
    if not props.tells_slots:
        yield Advice(
            "it does not report what its slot holds, so bioproxy has to restore files more often",
            "start it without --no-slots",
        )
    # Newer builds report a marker that each process makes up at random; a restart is recognised by it.
    if props.marker == FIXED_MARKER:
        yield Advice(
            "this build does not report when it was restarted, so bioproxy checks more often which model runs",
            "use a newer build",
            serious=False,
        )
    # Layers with a sliding window drop the keys and values of tokens outside it.  With --swa-full they keep all, but
    # what llama-server writes to a file, or to its memory of prompts, has the last window only.  It does not know that
    # when it has read it again and goes back: a token before the end then misses a part of its window.
    if seen.window and "--swa-full" in (seen.arguments or ()):
        yield Advice(
            f"it runs with --swa-full, and its model has a sliding window of {seen.window} tokens: once it has read a"
            " slot file, or a prompt from its memory (--cache-ram), an edited question may get a wrong answer",
            "start it without --swa-full, and remove its slot files, which it could not use then",
        )
    # Newer builds save states to go back to, so this is a note and no warning.
    elif seen.window:
        yield Advice(
            f"its model has a sliding window of {seen.window} tokens: older builds of llama-server cannot reuse the"
            " slot files of such a model",
            "if bioproxy reports that restoring does not help, use a newer build",
            serious=False,
        )
    # Warnings come before the last note, which only offers a bit more safety.
    yield from _of_arguments(seen)
    # On another machine the folder is usually out of reach, so the setting is missing for a reason.
    if seen.files and seen.folder is None and seen.near:
        theirs = value(seen.arguments or (), "--slot-save-path")
        yield Advice(
            "slot_save_path is not set, although llama-server runs on this machine: bioproxy cannot check slot files"
            " before they are used",
            f"set slot_save_path to {theirs or 'the folder of its --slot-save-path'}",
            serious=False,
        )


def _of_arguments(seen: Seen) -> Iterator[Advice]:
    """Yield the advice on the command line, where that is known."""
    # Unknown is not the same as empty: without a command line, nothing is known about any flag.
    if seen.arguments is None:
        return
    # What is no number would have kept llama-server from starting, so it belongs to another option and is ignored.
    batch = value(seen.arguments, "-b", "--batch-size")
    if batch is not None and batch.isdecimal() and int(batch) > USUAL_BATCH:
        yield Advice(
            f"it runs with batches of {batch} tokens, and notices only between two batches that a client has hung up",
            f"start it without -b (the default is {USUAL_BATCH}), or with a smaller number",
        )
    # A request may ask for the cache by itself (`cache_prompt`), but clients do not do that.
    if "--no-cache-prompt" in seen.arguments:
        yield Advice(
            "it runs with --no-cache-prompt, so it computes each prompt from the start", "start it without that flag"
        )
    # Of requests that are not bioproxy's own: those of clients leave such a slot behind, and it may be saved.
    if value(seen.arguments, "--cache-reuse") not in (None, "0"):
        yield Advice(
            "it runs with --cache-reuse, which moves computed text to other places of a prompt: answers are not those"
            " of a cold run, also later ones, from files",
            "start it without that flag",
            serious=False,
        )
    theirs = value(seen.arguments, "--slot-save-path")
    # A relative path starts at llama-server's working folder, which is not known here.
    if theirs and os.path.isabs(theirs) and seen.folder is not None and not _same(Path(theirs), seen.folder):
        # bioproxy would look for files where there are none, take them for lost, and never restore one.
        yield Advice(
            f"slot_save_path is {seen.folder}, but llama-server runs with --slot-save-path {theirs}",
            f"set slot_save_path to {theirs}, or start llama-server with --slot-save-path {seen.folder}",
        )


def _same(one: Path, other: Path) -> bool:
    """Tell whether two paths lead to the same folder, as far as that can be found out."""
    # Two names may lead to one folder, through links for example.  Where bioproxy may not look at one of them, only
    # the names can be compared.
    try:
        return one.samefile(other)
    except OSError:
        return os.path.normpath(one) == os.path.normpath(other)
