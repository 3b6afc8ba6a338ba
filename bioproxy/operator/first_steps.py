"""What the live page has to know to tell a new user what to type: where things are on this machine.

The page shows whole commands on a first visit, such as ``curl -s http://127.0.0.1:8081/v1/chat/completions ...``.  They
are right only if they name this very port, this configuration file and this installation.  The page runs in a browser
and cannot see any of these, so `/status` has them, as `setup`.  Which command is shown, and when, is decided by the
page (`page_files/next.js`).

The idea of Twisted in this module: a port knows its address only when it is open.  The settings may say port 0, which
is "any free one", or a socket that systemd has opened.  So the address is not read from the settings: the port's
service calls `port_opened` with it (`bioproxy.http.ports`).

Does not know whether a step is done, nor what the page says.  No key and no text of a template is in here.
"""

from __future__ import annotations

import os
import shlex
import shutil
import sys
from pathlib import Path
from typing import Any

from twisted.internet.address import IPv4Address, IPv6Address, UNIXAddress
from twisted.internet.interfaces import IAddress

from bioproxy.settings.api_keys import ApiKeys
from bioproxy.settings.configuration import Settings
from bioproxy.settings.kinds import bracketed


class FirstSteps:
    """The places that commands for a new user name.

    Invariant: what `now` returns is true at that moment.  What a reload or a user may change is looked at each time.
    """

    def __init__(self, settings: Settings, configuration: Path | None, keys: ApiKeys) -> None:
        """Remember where to look.

        `settings` are those of the start, of which only values are used that need a restart to change.  `configuration`
        is the file that was read, or would have been if there were one; `None` in a demonstration.
        """
        self._settings = settings
        self._configuration = configuration
        self._keys = keys
        self._address: IAddress | None = None

    def port_opened(self, address: IAddress) -> None:
        """Remember the address of the clients' port.  Called by the port's service when it listens."""
        self._address = address

    def now(self) -> dict[str, Any]:
        """Return what `/status` shows as `setup`.

        `configuration` is a path or `None`, and `has_configuration` tells whether there is a file.  `clients` is the
        URL of the clients' port, without a path, and `socket` the path of its Unix socket, if it is one; both are
        `None` before the port is open, and for a socket without a path.  `needs_key`: clients must send a key.
        `command` starts the small command ``bioproxy`` of this installation.
        """
        file, socket = self._configuration, socket_path(self._address)
        # One look at a local file, which takes some microseconds.  ``bioproxy init`` may have written it since the
        # start, and refuses to do so again.
        return {
            "configuration": None if file is None else str(file),
            "has_configuration": file is not None and os.path.lexists(file),
            # HTTP needs a host, also where the connection is made to a file.
            "clients": "http://localhost" if socket is not None else url(self._address, self._settings.listen),
            "socket": socket,
            "needs_key": self._keys.required,
            "slot_save_path": None if self._settings.slot_save_path is None else str(self._settings.slot_save_path),
            "command": command(sys.executable),
        }


def url(address: IAddress | None, listen: str | None) -> str | None:
    """Return the URL of a TCP port, `None` for another kind of address.

    `listen` is the setting: an address does not tell whether TLS is spoken there.
    """
    # Before the port is open there is none.  A Unix socket has a path instead of a host and a number.
    if not isinstance(address, IPv4Address | IPv6Address):
        return None
    scheme = "https" if listen is not None and listen.startswith("ssl:") else "http"
    return f"{scheme}://{bracketed(address.host)}:{address.port}"


def socket_path(address: IAddress | None) -> str | None:
    """Return the path of a Unix socket, `None` for another kind of address and for a socket without a path."""
    # systemd can pass a socket without a name.  A relative path starts at bioproxy's folder, not at the user's.
    if not isinstance(address, UNIXAddress) or not address.name:
        return None
    return os.path.abspath(os.fsdecode(address.name))


def command(python: str) -> str:
    """Return how to call the small command ``bioproxy`` of the installation of this Python, ready for a shell.

    In a virtual environment that is not activated, the name alone would not be found, or another installation would be.
    """
    beside = os.path.join(os.path.dirname(python), "bioproxy")
    return "bioproxy" if shutil.which("bioproxy") == beside else shlex.join([python, "-m", "bioproxy"])
