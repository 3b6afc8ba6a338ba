"""Reads the configuration again while everything goes on.

``kill -HUP`` asks for it, or a POST to ``/reload`` on the operator's port.  A reload is all or nothing: if the new
configuration cannot be read or has a mistake, nothing changes, and the mistake is logged and returned.  Requests that
run or wait are not touched; they go on with the settings that they began with.

Most settings are values that some part reads whenever it needs them, so a new value there is all that a reload takes.
`Reload` has a table for that: for each setting a function that takes the new value.  A setting without an entry, such
as where to listen, only a restart can change.  Each reload says so again while the file differs from what is in force,
because nothing else would remind the operator.

A reload is one call without an `await`, so in Twisted nothing else can run in between: each request sees either all old
settings or all new ones.

Does not know what a setting means, nor the signal: `bioproxy.operator.hangup` connects that.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from twisted.logger import Logger

from bioproxy.runtime.errors import ConfigError
from bioproxy.settings.api_keys import ApiKeys
from bioproxy.settings.configuration import FIELDS, Settings


@dataclass(frozen=True)
class Reloaded:
    """What a reload did: the names of settings, in the order of `Settings`.

    No name is in both lists.  Both are empty if the file says the same as before.
    """

    changed: tuple[str, ...]
    """Settings with a new value that is in force now."""

    restart: tuple[str, ...]
    """Settings with a new value in the file that only a restart puts into force."""


class Reload:
    """Knows the settings that are in force, and puts new ones into force.

    The settings that it holds are always those that the parts work with: a value is replaced there if and only if the
    part that needs it has got it.
    """

    log = Logger()

    def __init__(
        self,
        settings: Settings,
        read: Callable[[], Settings],
        keys: ApiKeys,
        takers: Mapping[str, Callable[[Any], None]],
    ) -> None:
        """Make the reload of a proxy that runs with `settings`.

        `read` returns the settings as file and command line have them now, or raises `ConfigError`.  `keys` read their
        files again each time.  `takers` has, for each setting that can change, the function to call with its new value;
        none of those may fail, because a reload that fails half-way could not be taken back.
        """
        # Those in force, which differ from the file's where a restart is needed.
        self._settings = settings
        self._read = read
        self._keys = keys
        self._takers = takers

    def run(self) -> Reloaded:
        """Read the configuration again and put it into force.

        Returns what changed.  Raises `ConfigError`, and then nothing has changed.  Reads a few small files, which
        blocks the reactor for a moment; in return no request can run between two of the changes, and see half of them.
        """
        # All that can fail comes first.  `use` reads both files of keys before it changes anything, and it is called
        # even if no setting changed, since the contents of those files may have.
        try:
            new = self._read()
            self._keys.use(new.api_key_file, new.llama_api_key_file)
        except ConfigError as error:
            self.log.error("the configuration was not reloaded, the old one stays in force: {error}", error=error)
            raise
        # Values are compared and not the texts of the file, so another order or spelling is no change.
        differs = [key for key in FIELDS if getattr(new, key) != getattr(self._settings, key)]
        taken = {key: getattr(new, key) for key in differs if key in self._takers}
        # In the order of `Settings`.  A taker looks at nothing but its own value, so the order makes no difference.
        for key, value in taken.items():
            self._takers[key](value)
        # What was not taken stays as it was in here, and so it differs again at the next reload.
        # A new object: whoever was given the old settings keeps them as they were.
        self._settings = replace(self._settings, **taken)
        result = Reloaded(tuple(taken), tuple(key for key in differs if key not in taken))
        self.log.info("the configuration was reloaded; changed: {changed}", changed=", ".join(taken) or "nothing")
        # A warning, because the file says something that is not in force, now and after each further reload.
        if result.restart:
            self.log.warn("only a restart can change {keys}", keys=", ".join(result.restart))
        return result
