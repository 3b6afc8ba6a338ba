"""Reads the configuration again, while everything goes on.

SIGHUP asks for it, which is what a daemon's user expects (``kill -HUP``, ``systemctl reload``), or a POST to the
operator's port.  It is all or nothing: what cannot be read or is wrong changes nothing and is told.  Requests that
run or wait are not touched; what they were promised when they came stands.

Most settings are values that some part looks at when it needs them, so a new value there is all it takes: `takers`
has, for each setting, what to call with it.  The others, such as where to listen, only a restart can change; which
ones were changed in the file is told too, every time, since nothing else would.

A *signal* interrupts Python between any two instructions, so its handler may do next to nothing.  `callFromThread` is
made for that, too: it has the reactor call something when it comes round.
"""

from __future__ import annotations

import signal
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

from twisted.application.service import Service
from twisted.logger import Logger

from bioproxy.runtime.errors import ConfigError
from bioproxy.settings.api_keys import ApiKeys
from bioproxy.settings.configuration import FIELDS, Settings


@dataclass(frozen=True)
class Reloaded:
    """Which settings have another value now, and which would have after a restart."""

    changed: tuple[str, ...]
    restart: tuple[str, ...]


class Reload:
    """Knows the settings that are in force, and who takes new ones.

    `read` reads them anew, or raises `ConfigError`.
    """

    log = Logger()

    def __init__(
        self,
        settings: Settings,
        read: Callable[[], Settings],
        keys: ApiKeys,
        takers: Mapping[str, Callable[[Any], None]],
    ) -> None:
        self._settings = settings
        self._read = read
        self._keys = keys
        self._takers = takers

    def run(self) -> Reloaded:
        """Read the configuration again and put it into force.  Raises `ConfigError`, and then nothing has changed."""
        try:
            new = self._read()
            # The contents of these files may have changed, whatever the settings say.
            self._keys.use(new.api_key_file, new.llama_api_key_file)
        except ConfigError as error:
            self.log.error("the configuration stays as it is: {error}", error=error)
            raise
        differs = [key for key in FIELDS if getattr(new, key) != getattr(self._settings, key)]
        taken = {key: getattr(new, key) for key in differs if key in self._takers}
        for key, value in taken.items():
            self._takers[key](value)
        self._settings = replace(self._settings, **taken)
        result = Reloaded(tuple(taken), tuple(key for key in differs if key not in taken))
        self.log.info("the configuration was read again; changed: {changed}", changed=", ".join(taken) or "nothing")
        if result.restart:
            self.log.warn("only a restart can change {keys}", keys=", ".join(result.restart))
        return result


class Hangup(Service):
    """Has SIGHUP call something, for as long as the service runs."""

    def __init__(self, reactor: Any, call: Callable[[], object]) -> None:
        self.setName("hangup")
        self._reactor = reactor
        self._call = call
        self._before: Any = None

    def startService(self) -> None:
        """Take the signal.  Called by the parent service."""
        super().startService()
        self._before = signal.signal(signal.SIGHUP, lambda *_: self._reactor.callFromThread(self._guarded))

    def stopService(self) -> None:
        """Give it back.  Called by the parent service."""
        super().stopService()
        signal.signal(signal.SIGHUP, self._before)

    def _guarded(self) -> None:
        with suppress(ConfigError):  # it is in the log already
            self._call()
