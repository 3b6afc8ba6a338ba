"""llama-server's flags, for the llama.cpp in the wheel `xllamacpp`.

The program `llama-server` reads its own command line.  The wheel has the same server as a Python extension, but without
that reader: it wants an object with attributes, `CommonParams`, whose names are those of llama.cpp's C++ structure.  So
the usual flags are translated here, and `llama_args` may be the same whichever of the two runs.

The table has the flags of a server on one machine.  A flag that is missing is an error with its name, at the start and
at a reload: a flag that is ignored would surprise the user who set it.  The names, short and long ones, are those of
``llama-server --help``, and so are the defaults where nothing else is said.

Each flag says how its text becomes a value, and which attribute gets it; `argparse` does the rest.  Nothing here checks
whether a value makes sense to llama.cpp: it says so itself when it starts, for the program and the wheel alike
(`bioproxy.child.failure_reasons`).

Pure but for the number of CPUs, and without Twisted.  The wheel itself is not imported, so a command line can be
checked in bioproxy's own process, where loading the extension would take memory for nothing.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

ON, OFF = True, False
"""The two values that a flag without a value may give its attribute.

Names, because ``Flag("--no-warmup", "warmup", False)`` would read as if the flag were off.
"""


KEY_VARIABLE = "LLAMA_API_KEY"
"""The variable of the environment from which llama-server takes its clients' keys, if no flag gives any."""


@dataclass(frozen=True)
class Flag:
    """One flag, and what it does to llama.cpp's parameters.

    Two flags may set the same attribute, as ``--slots`` and ``--no-slots`` do.
    """

    names: str
    """Its names, with spaces between."""

    attribute: str
    """The attribute that it sets, with a dot for each structure inside another."""

    takes: Callable[[str], Any] | bool
    """Turns the flag's text into the attribute's value; or the value itself, of a flag without a text.

    A function raises `ValueError` or `OSError` for a text that it cannot use.
    """


def text_of(file: str) -> str:
    """Return the content of a file, for a flag whose value may also be given in a file.

    A key in a file is in no list of processes, where everybody on the machine can read command lines.  Raises
    `OSError`.  Called when the command line is parsed, in bioproxy's own process to check it, and again in the process
    that runs llama.cpp.
    """
    return Path(file).read_text(encoding="utf-8")


FLAGS = (
    # The model, its name for clients, and a second file for models that see images.  The last three say how much of it
    # is computed by a graphics card, on which, and whether the slot's memory is there, too.
    Flag("-m --model", "model.path", str),
    Flag("-a --alias", "model_alias", lambda names: set(names.split(","))),
    Flag("-mm --mmproj", "mmproj.path", str),
    Flag("-ngl --gpu-layers --n-gpu-layers", "n_gpu_layers", int),
    Flag("-mg --main-gpu", "main_gpu", int),
    Flag("-nkvo --no-kv-offload", "no_kv_offload", ON),
    # How many tokens it may hold, how many it computes at a time, and with how many threads.  A large batch (-b) keeps
    # users waiting for the end of a warm-up's piece.
    Flag("-c --ctx-size", "n_ctx", int),
    Flag("-b --batch-size", "n_batch", int),
    Flag("-ub --ubatch-size", "n_ubatch", int),
    Flag("-t --threads", "cpuparams.n_threads", int),
    Flag("-tb --threads-batch", "cpuparams_batch.n_threads", int),
    Flag("--threads-http", "n_threads_http", int),
    Flag("--no-warmup", "warmup", OFF),
    # Slots, and what is kept of earlier prompts: in files, in memory (-cram, in MiB), and in the slot itself.  The last
    # ones are for models that cannot go back inside what they hold.
    Flag("-np --parallel", "n_parallel", int),
    Flag("-kvu --kv-unified", "kv_unified", ON),
    Flag("--slot-save-path", "slot_save_path", lambda path: f"{path.rstrip('/')}/"),
    Flag("-cram --cache-ram", "cache_ram_mib", int),
    Flag("--cache-prompt", "cache_prompt", ON),
    Flag("--no-cache-prompt", "cache_prompt", OFF),
    Flag("--cache-reuse", "n_cache_reuse", int),
    Flag("--swa-full", "swa_full", ON),
    Flag("-ctxcp --ctx-checkpoints --swa-checkpoints", "n_ctx_checkpoints", int),
    Flag("--context-shift", "ctx_shift", ON),
    Flag("--no-context-shift", "ctx_shift", OFF),
    Flag("--sleep-idle-seconds", "sleep_idle_seconds", int),
    # What it serves, and where.  bioproxy asks `/slots` after each request, so ``--no-slots`` costs some restores; keys
    # are also needed by bioproxy itself (`llama_api_key_file`).
    Flag("--host", "hostnames", lambda host: [host]),
    Flag("--port", "port", int),
    Flag("--api-key", "api_keys", lambda keys: keys.split(",")),
    Flag("--api-key-file", "api_keys", lambda file: text_of(file).split()),
    Flag("--slots", "endpoint_slots", ON),
    Flag("--no-slots", "endpoint_slots", OFF),
    Flag("--metrics", "endpoint_metrics", ON),
    Flag("--props", "endpoint_props", ON),
    Flag("--webui --ui", "ui", ON),
    Flag("--no-webui --no-ui", "ui", OFF),
    Flag("--embedding --embeddings", "embedding", ON),
    Flag("-lv --verbosity --log-verbosity", "verbosity", int),
    # How it answers a request that does not say.  ``--jinja`` is the default of current builds, and the tools of chats
    # need it.
    Flag("-n --predict --n-predict", "n_predict", int),
    Flag("-s --seed", "sampling.seed", int),
    Flag("--temp --temperature", "sampling.temp", float),
    Flag("--top-k", "sampling.top_k", int),
    Flag("--top-p", "sampling.top_p", float),
    Flag("--min-p", "sampling.min_p", float),
    Flag("--jinja", "use_jinja", ON),
    Flag("--no-jinja", "use_jinja", OFF),
    Flag("--chat-template", "chat_template", str),
    Flag("--chat-template-file", "chat_template", text_of),
)
"""All flags that are known here.

A flag that llama-server has and this table lacks is one line more.  Its attribute is found in llama.cpp's ``common.h``,
where the structures have the same names.
"""


class _Parser(argparse.ArgumentParser):
    """Raises `ValueError` for a mistake, where `argparse` would end the process.

    A subclass, because `argparse` has no other way to say that; ``exit_on_error=False`` leaves some mistakes out.
    """

    def error(self, message: str) -> NoReturn:
        """Report a mistake.  Called by `argparse`, with a sentence that names the flag."""
        # Its own method prints the usage and exits, which would end bioproxy in the middle of a reload.
        raise ValueError(message)


def parsed(arguments: Sequence[str]) -> dict[str, Any]:
    """Return the attributes that a command line sets, by their names.

    Of a flag that occurs twice the last one counts, as in llama-server.  Raises `ValueError` with one sentence for an
    unknown flag or a bad value.
    """
    # Made anew for each command line, which takes a millisecond; there is one at the start and one at each reload.
    # `SUPPRESS` leaves out of the result what was not given, so that llama.cpp's defaults stay.
    # No abbreviations: ``--cache`` would be ``--cache-ram`` here, and an error in llama-server.
    parser = _Parser(prog="llama-server", allow_abbrev=False, add_help=False, argument_default=argparse.SUPPRESS)
    # The attribute's name is where `argparse` puts the value, so of two flags for one attribute the last one wins.
    for flag in FLAGS:
        if isinstance(flag.takes, bool):
            parser.add_argument(*flag.names.split(), dest=flag.attribute, action="store_const", const=flag.takes)
        else:
            parser.add_argument(*flag.names.split(), dest=flag.attribute, type=flag.takes)
    # `parse_known_args`, because an error of ours can name the flag and say who does not know it.
    known, unknown = parser.parse_known_args(list(arguments))
    if unknown:
        raise ValueError(f"the llama.cpp in the wheel xllamacpp does not know {unknown[0]} here")
    return vars(known)


def assign(params: Any, values: dict[str, Any]) -> None:
    """Set attributes of llama.cpp's parameters; `values` are those that `parsed` returned.

    What is not in `values` keeps llama.cpp's own default, which the wheel has put there.
    """
    # llama-server chooses its threads when it reads its command line.  Left alone, both numbers would be -1.  One of
    # them is for answers, where a token is computed at a time, the other for prompts.
    cpus = usable_cpus()
    threads = values.get("cpuparams.n_threads", max(1, cpus // 2 if cpus > 4 else cpus - 1))
    # The user's own values come last in this dictionary, so they win.
    for name, value in {"cpuparams.n_threads": threads, "cpuparams_batch.n_threads": threads, **values}.items():
        # ``sampling.temp`` is the attribute `temp` of the structure in the attribute `sampling`.  Nothing is caught: an
        # attribute that another version of the wheel lacks ends the start with Python's own error, which names it.
        *outer, last = name.split(".")
        structure = params
        for each in outer:
            structure = getattr(structure, each)
        setattr(structure, last, value)


def usable_cpus() -> int:
    """Return how many CPUs this process may use.

    llama.cpp's threads wait for each other in busy loops: if one of them has no core of its own, all the others spin
    until it gets one.  So `assign` leaves a core to others, and of many CPUs it takes half, because mostly two of them
    share one core.
    """
    # Only Linux knows which CPUs a process may use; in a container that is often fewer than there are.
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
