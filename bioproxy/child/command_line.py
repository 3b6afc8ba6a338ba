"""What is run: from the settings to llama-server's command line.

bioproxy needs one slot, a folder for slot files, and a port that only this machine reaches; all else is left to
llama-server's own defaults and to `llama_args`.  These come last, because for llama-server the last of two equal flags
wins: a user who sets four slots gets four.  A few flags are refused, because bioproxy would then look for llama-server
where it is not.

`adapted` turns the settings of a user, who has named a model, into those that all other parts work with: they know
`llama_url` and `slot_save_path`, and need not know who started llama-server.

Pure, but for `free_port`.  Which program there is on this machine is found out by `bioproxy.child.program`.
"""

from __future__ import annotations

import dataclasses
import re
import socket
import sys
from collections.abc import Sequence

from bioproxy.child.wheel_flags import KEY_VARIABLE
from bioproxy.runtime import child_processes
from bioproxy.runtime.errors import ConfigError
from bioproxy.settings.configuration import Settings

OURS = {
    "-m": "the setting model names the file",
    "--model": "the setting model names the file",
    "-hf": "the setting model names the file",
    "-hfr": "the setting model names the file",
    "--hf-repo": "the setting model names the file",
    "--slot-save-path": "the setting slot_save_path names the folder",
    "--host": "bioproxy connects to 127.0.0.1",
    "--api-prefix": "bioproxy asks without one",
    "--ssl-key-file": "bioproxy connects without TLS",
    "--ssl-cert-file": "bioproxy connects without TLS",
}
"""Flags that `llama_args` may not have, and why.

With the first ones, a setting and a flag would say two things about one matter; with the others, bioproxy would ask
where nobody answers, and wait until the start counts as failed.
"""

QUIET = ("--verbosity", "2")
"""Flags for the wheel's server, before all others: only warnings and errors in its log.

By default llama.cpp writes six lines for each request and each piece of a warm-up, and bioproxy's own lines would be
lost among them.  A program that the user has named keeps its default: in older builds the same number means more lines.
"""


def child_flags(settings: Settings, port: int) -> tuple[str, ...]:
    """Return the flags for the settings' model, on `port` of this machine.

    `settings` are `adapted` ones.  Only what bioproxy relies on is set, so that all else is as the user knows it.
    """
    return (
        *("--model", str(settings.model)),
        # Clients come through bioproxy; nobody else on the network may reach llama-server past its keys.
        *("--host", "127.0.0.1", "--port", str(port)),
        # One slot has the whole context, and its files are of use for every request.
        *("--parallel", "1"),
        # llama-server wants the slash: it puts file names right behind.
        *("--slot-save-path", f"{settings.slot_save_path}/"),
        # A user who wants llama-server's own page can have it: ``--webui`` in `llama_args`.
        *("--no-webui", "--metrics"),
        *settings.llama_args,
    )


def command_line(program: str | None, flags: Sequence[str]) -> list[str]:
    """Return what to start: `program` with these flags, or the wheel's server if that is `None`.

    Both are run by a Python process that ends when bioproxy does.  A list of words and not a line: no shell reads it,
    so nothing in a path has to be quoted.
    """
    # The same Python that runs bioproxy, with the packages that are installed there.
    module = ["bioproxy.child.wheel_server", *QUIET] if program is None else ["bioproxy.child.lifeline", program]
    return [sys.executable, "-m", *module, *flags]


def environment(key: str | None) -> dict[str, str]:
    """Return bioproxy's own environment, in which the child finds the same bioproxy, whatever folder it runs in.

    The rest of it goes along unchanged, because llama.cpp reads variables of its own there: which graphics card to use,
    or where to keep downloads.  `key` is the key that the child is to ask for; `None` leaves that to the user.
    """
    # A variable, because every user of this machine can read command lines, and only this one the environment.
    keys = {} if key is None else {KEY_VARIABLE: key}
    return {**child_processes.environment(), **keys}


def has_keys_of_users(settings: Settings) -> bool:
    """Tell whether the user has seen to llama.cpp's keys; else bioproxy makes one.

    Clients may have to send one of the user's keys, so bioproxy must not send another one in its place.
    """
    in_flags = {"--api-key", "--api-key-file"} & set(settings.llama_args)
    return bool(in_flags) or settings.llama_api_key_file is not None


def port_wanted(settings: Settings) -> int | None:
    """Return the port that `llama_args` ask for; `None` if they leave it to bioproxy.

    Raises `ConfigError` for a port that makes no sense, and for flags that are not allowed there.
    """
    # Of two ports the last one counts, as for llama-server.
    port = None
    for place, flag in enumerate(settings.llama_args):
        name, equals, _ = flag.partition("=")
        # By name, whatever the value is: a host that happens to be right now may be another one after the next change.
        if name in OURS:
            raise ConfigError(f"llama_args: {name}: {OURS[name]}")
        # llama-server does not understand this; the wheel would, and bioproxy would look at another port.
        if name.startswith("--") and equals:
            raise ConfigError(f"llama_args: {name}: its value must be the next word, without =")
        if name == "--port":
            # The next word, or nothing behind the last one.
            value = "".join(settings.llama_args[place + 1 : place + 2])
            if not re.fullmatch(r"[0-9]{1,5}", value) or not 0 < int(value) < 65536:
                raise ConfigError(f"llama_args: --port: must be a number from 1 to 65535, not {value!r}")
            port = int(value)
    return port


def adapted(settings: Settings, port: int) -> Settings:
    """Return the settings with the address of the child, and with a slot folder for it if none is configured.

    Raises `ConfigError` if `llama_args` ask for another port: at a reload, when all other parts know the old one.
    """
    # The address stays for as long as bioproxy runs: connections, the watch and the log go by it.  What depends on it
    # would otherwise have to be replaced in the middle of requests.
    if port_wanted(settings) not in (None, port):
        raise ConfigError("llama_args: only a restart can change --port")
    # The folder is in `state_dir`, beside the records that tell what is in its files.
    return dataclasses.replace(
        settings,
        llama_url=f"http://127.0.0.1:{port}",
        slot_save_path=settings.slot_save_path or settings.state_dir / "slots",
    )


def refuse_taken(port: int) -> None:
    """Raise `ConfigError` if another program listens on this port.

    llama.cpp would find that out, too, but later: until then a llama-server that somebody else has started there would
    answer in its place.
    """
    # The same call that llama.cpp makes in a moment, and undone at once.
    with socket.socket() as probe:
        # Connections that were closed a moment ago do not count, as for any server.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as error:
            raise ConfigError(f"port {port} is in use by another program ({error.strerror})") from None


def free_port() -> int:
    """Return a TCP port of this machine that nobody listens on now.

    Another program could take it before llama.cpp does.  That is told like any port that is taken, and the next start
    of bioproxy chooses another one.
    """
    # Port 0 asks the operating system to choose one.  It is free again when the socket is closed.  llama-server could
    # do the same, but it would tell the number only in its log, which this package does not rely on.
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
