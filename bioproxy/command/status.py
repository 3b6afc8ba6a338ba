"""``bioproxy status``: asks the operator's port of a bioproxy that runs, and shows the answer.

Where that port is, the configuration says: by the same rules as for bioproxy itself, but for what its command line
said.  For that there is ``--admin``.

On a terminal, and as long as something is warming up, running or waiting, the lines are written again every second in
place of the old ones: an escape sequence moves the cursor up to their beginning and clears what is below.  It ends by
itself when nothing will change soon.  In a pipe or a file the lines are written once, without escape sequences.

There is no event loop here: between two looks this process has nothing else to do than to sleep
(`bioproxy.command.http_get`).

Does not know what the lines say (`bioproxy.command.status_view`).
"""

from __future__ import annotations

import json
import os
import re
import shutil
import sys
import time
from datetime import datetime
from pathlib import Path
from typing import Any, TextIO

from bioproxy.command.http_get import UNIX, NoAnswer, get
from bioproxy.command.status_view import Screen, is_bioproxy, is_busy, lines
from bioproxy.runtime.errors import ConfigError
from bioproxy.settings import kinds
from bioproxy.settings.configuration import Settings, endpoint_address, load

PAUSE = 1.0
"""Seconds between two looks while something goes on.

Halved, a progress bar moves more smoothly, and bioproxy makes twice as many answers; doubled, it looks as if it hung.
"""

WILDCARDS = {"0.0.0.0": "127.0.0.1", "::": "::1", "": "127.0.0.1"}
"""Addresses that mean "all of this machine" for a server, and where a client on this machine finds it."""


def run(config: str | None, admin: str | None, as_json: bool) -> None:
    """Show the status, once or until nothing goes on.

    `config` names a configuration file, `admin` the address of the operator's port, which then wins.  Raises
    `SystemExit` with one line if bioproxy does not answer there.
    """
    try:
        # What a user types is a path as on any command line: relative to the working folder, and "~" works.
        file = None if config is None else kinds.path(config, Path.cwd())
        # With nothing from a command line; a missing default file means the default settings.
        address = admin or admin_address(load({}, file, Path.cwd()))
        # The body as it came: a program gets what a GET would give it, also fields that this command does not know.
        if as_json:
            print(body(address).decode(errors="replace"))
        else:
            watch(address, sys.stdout)
    # `ConfigError` is a mistake in the configuration, `ValueError` one in ``--admin``.
    except (ConfigError, ValueError) as error:
        raise SystemExit(f"bioproxy status: {error}") from None


def watch(address: str, out: TextIO) -> None:
    """Print the status, and on a terminal print it again in its place until nothing goes on.

    Raises `SystemExit` if bioproxy does not answer, and `KeyboardInterrupt` if the user has seen enough.
    """
    # The usual conventions, as for ``--check``: a dumb terminal has no escape sequences.
    # Without a terminal somebody else reads the lines, such as ``grep``, to whom a sequence would be part of the text.
    in_place = out.isatty() and os.environ.get("TERM") != "dumb"
    colours = in_place and not os.environ.get("NO_COLOR")
    # How many lines were printed last, and are to be replaced.
    shown = 0
    while True:
        # If bioproxy ends meanwhile, this ends the command, below the last lines that were true.
        status = asked(address)
        # Asked again each time, because a user may change a terminal's size.
        size = shutil.get_terminal_size()
        text = lines(status, Screen(size.columns, colours), datetime.now().astimezone())
        # Where the lines are printed only once, they may scroll, as those of every command.
        if in_place:
            # What scrolls out of the terminal cannot be replaced; the last line is the cursor's.
            text = text[: max(size.lines - 1, 1)]
        # Written together with the lines, so that no empty screen flickers in between.
        # "A" moves the cursor up so many lines, "J" clears from there to the end.
        back = f"\x1b[{shown}A\x1b[J" if shown else ""
        print(back + "\n".join(text), file=out, flush=True)
        shown = len(text)
        # At rest, the next look would show the same.
        if not (in_place and is_busy(status)):
            return
        # Ctrl-C ends this at once.
        time.sleep(PAUSE)


def asked(address: str) -> Any:
    """Return the `/status` of the bioproxy at this address, decoded.

    Raises `SystemExit` with one line if nobody answers there, or somebody else.
    """
    content = body(address)
    # Whatever another program answers: a page, or JSON that nests so deep that Python's parser gives up.
    try:
        status = json.loads(content)
    except (ValueError, RecursionError):
        status = None
    # Also JSON that is something else, or comes from a bioproxy of a quite different version.
    if not is_bioproxy(status):
        raise SystemExit(f"bioproxy status: {address} is not the operator's port of bioproxy")
    return status


def body(address: str) -> bytes:
    """Return the body of `/status` at this address.  Raises `SystemExit` with one line, and `ValueError`."""
    # A small request and a small answer; what makes bioproxy slow, a prompt that is computed, does not delay it.
    try:
        reply = get(address, "/status")
    except NoAnswer as error:
        raise SystemExit(f"bioproxy status: no answer from bioproxy at {address}: {error}") from None
    # Such as 403, for a name in `Host` that the operator's port does not know, or 404 from the clients' port, which
    # passes the question on to llama-server.
    if reply.status != 200:
        raise SystemExit(f"bioproxy status: {address} answered {reply.status}; is that the operator's port?")
    return reply.body


def admin_address(settings: Settings) -> str:
    """Return where a client on this machine finds the operator's port, as `bioproxy.command.http_get` wants it.

    Raises `ConfigError` if the settings do not say that, such as for a port that the system chooses.
    """
    listen = settings.admin_listen
    # Twisted's endpoints have many forms; a client on this machine can use those with a port or with a socket's path.
    # Such as ``unix:/run/admin.sock:mode=660``.  In the path, a colon is written ``\:``.
    if listen is not None and (found := re.match(r"unix:(?:address=)?((?:\\.|[^:\\])+)", listen)):
        return UNIX + re.sub(r"\\(.)", r"\1", found[1])
    # The same order as for bioproxy itself: `admin_listen` wins over host and port.
    host, port = endpoint_address(listen) or (settings.admin_host, settings.admin_port)
    # The number is one that a client cannot use.
    # 0: the system chooses one.  -1: an endpoint without a number, such as a socket that systemd hands in.
    if port <= 0:
        raise ConfigError("the configuration does not say where the operator's port is; --admin ADDRESS does")
    # Nobody can connect to "all addresses".
    host = WILDCARDS.get(host, host)
    # IPv6 addresses have colons, and stand in brackets in a URL.
    # bioproxy's own certificate has to be one that this machine trusts.
    scheme = "https" if listen is not None and listen.startswith("ssl:") else "http"
    return f"{scheme}://{kinds.bracketed(host)}:{port}"
