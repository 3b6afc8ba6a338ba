"""What is missing or unwise about llama-server, and what to do about it.

``--check`` prints this, and the log's first lines say the same.  Only what is known is said.  llama-server tells some
of it over HTTP (`/props`); its other flags are known where its command line can be seen
(`bioproxy.operator.llama_flags`), and nothing is said of them where it cannot.  What nobody can see beforehand, whether
restored files are of use for example, is noticed while it happens (`bioproxy.slot.reuse_check`).

Pure: asks nobody.  That is done in `bioproxy.operator.inspection`.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from bioproxy.llama.api import FIXED_MARKER, Props
from bioproxy.operator.llama_flags import value
from bioproxy.runtime.errors import LlamaError

USUAL_BATCH = 2048
"""Tokens that llama-server computes without looking up, unless ``-b`` says otherwise."""


@dataclass(frozen=True)
class Advice:
    """What was found, and how to mend it.  `serious`: something works badly or not at all, else it is good to know."""

    what: str
    fix: str
    serious: bool = True


@dataclass(frozen=True)
class Seen:
    """What is known of llama-server.

    `props` is what it tells; `files`: does it keep slot files (`None`: not asked)?  `folder` is our `slot_save_path`.
    `near`: it runs on this machine.  `arguments` is its command line and `window` its model's sliding window in tokens,
    both `None` where they cannot be seen.
    """

    props: Props
    files: bool | None
    folder: Path | None
    near: bool
    arguments: tuple[str, ...] | None = None
    window: int | None = None


def of_trouble(error: Exception) -> Advice:
    """Return the advice for a llama-server that does not answer as it should."""
    status = error.status if isinstance(error, LlamaError) else None
    if status == 503:
        return Advice(str(error), "to wait until it is ready", serious=False)
    if status in (401, 403):
        return Advice(str(error), "give bioproxy its key, with llama_api_key_file")
    if status is not None:
        return Advice(f"what answers there seems to be no llama-server: {error}", "correct llama_url")
    return Advice(str(error), "start llama-server there, or correct llama_url")


def advice(seen: Seen) -> Iterator[Advice]:
    """Yield what there is to say of a llama-server that answers, what matters most first."""
    props = seen.props
    if props.model is None and props.build is None:
        yield Advice("what answers there seems to be no llama-server: it names no model", "correct llama_url")
        return
    if seen.files is False:
        yield Advice(
            "it keeps no slot files: only one template can be kept warm, and a restart makes it cold",
            "start it with --slot-save-path and a folder of its own",
        )
    if props.slots > 1:
        yield Advice(
            f"it has {props.slots} slots with {props.context} tokens of context each, and bioproxy uses one of them",
            "start it with -np 1",
        )
    if not props.tells_slots:
        yield Advice(
            "it does not tell what its slot holds: bioproxy has to restore more often",
            "start it without --no-slots",
        )
    if props.marker == FIXED_MARKER:
        yield Advice(
            "this build does not tell one of its processes from the next: bioproxy asks more often which model runs",
            "use a newer build",
            serious=False,
        )
    if seen.window and "--swa-full" not in (seen.arguments or ()):
        yield Advice(
            f"its model has a sliding window of {seen.window} tokens: older builds of llama-server reuse nothing of"
            " such a model's slot files",
            "if bioproxy says that restoring does not help, start it with --swa-full",
            serious=False,
        )
    yield from _of_arguments(seen)
    if seen.files and seen.folder is None and seen.near:
        theirs = value(seen.arguments or (), "--slot-save-path")
        yield Advice(
            "slot_save_path is not set, though llama-server runs on this machine: bioproxy cannot check its files",
            f"set slot_save_path to {theirs or 'the folder that llama-server got'}",
            serious=False,
        )


def _of_arguments(seen: Seen) -> Iterator[Advice]:
    """Yield what there is to say of the command line, where that is known."""
    if seen.arguments is None:
        return
    batch = value(seen.arguments, "-b", "--batch-size")
    if batch is not None and batch.isdecimal() and int(batch) > USUAL_BATCH:
        yield Advice(
            f"it runs with batches of {batch} tokens: only between two of them does it notice that somebody hung up",
            f"start it without -b ({USUAL_BATCH}), or with less",
        )
    if "--no-cache-prompt" in seen.arguments:
        yield Advice("it runs with --no-cache-prompt: nothing of what is warm is reused", "start it without that")
    theirs = value(seen.arguments, "--slot-save-path")
    # A relative one starts at llama-server's own working folder.
    if theirs and os.path.isabs(theirs) and seen.folder is not None and not _same(Path(theirs), seen.folder):
        yield Advice(
            f"slot_save_path is {seen.folder}, but llama-server got {theirs}",
            f"set slot_save_path to {theirs}, or start llama-server with the other",
        )


def _same(one: Path, other: Path) -> bool:
    """Tell whether both are the same folder, or may be."""
    try:
        return one.samefile(other)
    except OSError:  # one of them cannot be seen: then names are all there is
        return os.path.normpath(one) == os.path.normpath(other)
