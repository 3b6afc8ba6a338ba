"""The settings: their names, what they may be, and which source wins.

A setting may have three values: a default here in the code, one in the configuration file, and one on the command line.
The command line wins over the file, and the file over the default.  `Settings` holds the result.  It is frozen, so no
part of the program can change what another part has got; a reload makes a new one.

Which settings there are is said in `bioproxy.settings.fields`; their names are made known here, too, so that others
need only this module.  A value from the file has a type, as JSON has; `bioproxy.operator.options` gives a value from
the command line the type that JSON would have.  From there on both take the same way.

Each mistake raises `ConfigError` with one line that names the place: the file and the key, or the option.

Does not know Twisted, but for the form of its endpoint strings, nor what a setting does.  Only `read_file` reads.
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from bioproxy.runtime.errors import ConfigError
from bioproxy.runtime.regular_file import read_regular
from bioproxy.settings.fields import FIELDS, Settings, templates_of, xdg_folder
from bioproxy.settings.kinds import port_of

# mypy takes a name that was imported as known only here, unless this list has it.
__all__ = ["FIELDS", "Settings", "templates_of", "xdg_folder"]


def default_file() -> Path:
    """Return the path of the configuration file that is read without ``--config``.

    It is asked for anew each time, because tests, and users of one shell, change the environment.
    """
    return xdg_folder("XDG_CONFIG_HOME", ".config") / "conf.json"


def read_file(file: Path, may_be_missing: bool = False) -> dict[str, Any]:
    """Return the content of a configuration file, one JSON object.

    Raises `ConfigError`.  With `may_be_missing`, a missing file is the same as an empty object.
    """

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        """Return the pairs of an object as a dict.  Called by `json` for each object, innermost first."""
        # JSON allows a key to appear twice, and the last one silently wins.  In a configuration that is a mistake.
        names = [name for name, _ in pairs]
        for name in names:
            if names.count(name) > 1:
                raise ConfigError(f"{file}: {name!r}: given twice")
        return dict(pairs)

    # A reload reads the file in the reactor's thread, while nothing else runs: it is small and on a local disk.
    # `utf-8-sig` accepts the byte-order mark that some editors under Windows put in front.
    try:
        content = json.loads(read_regular(file).decode("utf-8-sig"), object_pairs_hook=once)
    except OSError as error:
        if may_be_missing and isinstance(error, FileNotFoundError):
            return {}
        raise ConfigError(f"{file}: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{file}: not JSON: {error}") from None
    # A list or a text is valid JSON, too, and so is ``null``.
    if not isinstance(content, dict):
        raise ConfigError(f"{file}: must hold one JSON object")
    return content


def load(command_line: Mapping[str, Any], file: Path | None, folder: Path, use_file: bool = True) -> Settings:
    """Put the three sources together, and return the settings.

    `command_line` has the settings given there, with values as JSON would have them; relative paths among them start at
    `folder`.  `file` is what ``--config`` names; it must exist.  With `None` the default file is read, if there is one
    and `use_file` is true.  Raises `ConfigError`.
    """
    # What is in neither source stays out of `values`, and `Settings` has the default.
    values: dict[str, Any] = {}
    source = file or default_file()
    if use_file:
        # Relative paths in the file start at the file's own folder, so that the file means the same from everywhere.
        for key, value in read_file(source, may_be_missing=file is None).items():
            # An unknown key is an error and not ignored: most of them are known keys with a typing mistake.
            if key not in FIELDS:
                raise ConfigError(f"{source}: unknown key {key!r}{suggestion(key)}")
            values[key] = checked(key, value, source.absolute().parent, f"{source}: {key}")
    # Each value is checked although twistd has accepted the option: its parser knows names, not values.
    for key, value in command_line.items():
        result = checked(key, value, folder, option(key))
        if key == "prefixes":
            # Prefixes of the command line are added to those of the file; every other value replaces the file's.  The
            # sum is checked again: a prefix of each may give the same name.
            result = {**values.get(key, {}), **result}
            checked(key, {prefix: str(file) for prefix, file in result.items()}, folder, option(key))
        values[key] = result
    refuse_both(values)
    check_shared_shelf(values)
    for listen, *places in (("listen", "host", "port"), ("admin_listen", "admin_host", "admin_port")):
        # `listen` wins over `host` and `port`.  But a user who gives ``--port`` means that port, even if the file has a
        # `listen`; so that is dropped.
        if listen not in command_line and any(place in command_line for place in places):
            values.pop(listen, None)
    return Settings(**values)


def refuse_both(values: Mapping[str, Any]) -> None:
    """Raise `ConfigError` for settings that say twice where llama-server is, or how to run a model without naming one.

    `values` are those that were given, in the file or on the command line.
    """
    if "model" in values and "llama_url" in values:
        raise ConfigError(
            "model and llama_url: give only one: bioproxy starts llama.cpp itself, or is told where it is"
        )
    for key in ("llama_server", "llama_args"):
        if key in values and "model" not in values:
            raise ConfigError(f"{key}: needs the setting model, the file to run")


def check_shared_shelf(values: Mapping[str, Any]) -> None:
    """Raise `ConfigError` for a `shared_shelf` without a slot folder that this host sees, or in that folder.

    `values` are as for `refuse_both`.
    """
    shelf, slots = values.get("shared_shelf"), values.get("slot_save_path")
    # With a model, bioproxy makes the slot folder itself.
    if shelf is not None and slots is None and "model" not in values:
        raise ConfigError("shared_shelf: needs slot_save_path, the folder of llama-server's --slot-save-path")
    if shelf is not None and shelf == slots:
        raise ConfigError("shared_shelf: must be another folder than slot_save_path")


def refuse_loop(settings: Settings) -> None:
    """Raise `ConfigError` if `llama_url` leads to bioproxy itself.

    Each request would then cause another one, without end.  Only the plain mistakes are found: the same port of this
    machine, not another name that resolves to it.
    """
    # A URL without a port has the default port of its scheme.  `url` has checked it, so `port` raises no error here.
    target = urlsplit(settings.llama_url)
    port = port_of(settings.llama_url)
    # Different names for this machine.  Listening on 0.0.0.0 or :: means all of its addresses, these included.
    local = {"localhost", "127.0.0.1", "::1", "0.0.0.0", "::"}
    # Both of bioproxy's ports count: requests to the operator's port make no loop, but it is not llama-server either.
    own = [
        endpoint_address(settings.listen) or (settings.host, settings.port),
        endpoint_address(settings.admin_listen) or (settings.admin_host, settings.admin_port),
    ]
    for host, own_port in own:
        if port == own_port and (target.hostname == host or {target.hostname, host} <= local):
            raise ConfigError(f"llama_url: {settings.llama_url} is bioproxy's own port")


def endpoint_address(listen: str | None) -> tuple[str, int] | None:
    """Return host and port of a Twisted endpoint string; `None` if there is none.

    The port is -1 for an endpoint without one, such as a Unix socket, so that it equals no port.
    """
    # Such as ``ssl:8443:interface=127.0.0.1:privateKey=key.pem``.  In a value, a colon is written ``\:``, as in the
    # addresses of IPv6.
    if listen is None:
        return None
    number = re.match(r"(?:tcp6?|ssl):(?:port=)?(\d+)", listen)
    host = re.search(r":interface=((?:\\.|[^:])+)", listen)
    return (host[1].replace("\\", "") if host else "0.0.0.0"), int(number[1]) if number else -1


def checked(key: str, value: Any, folder: Path, place: str) -> Any:
    """Return the value of a setting after its check; `place` says in the error where the value was given.

    Raises `ConfigError`.
    """
    # The text of the `ValueError` continues the sentence that begins with the place.
    try:
        return FIELDS[key].metadata["check"](value, folder)
    except ValueError as error:
        raise ConfigError(f"{place}: {error}") from None
    except RecursionError:
        raise ConfigError(f"{place}: nests too deep") from None


def option(key: str) -> str:
    """Return the option of the command line for a setting."""
    return "--prefix" if key == "prefixes" else f"--{key.replace('_', '-')}"


def suggestion(key: str) -> str:
    """Return the end of an error for an unknown key: the most similar known key, or nothing if none is similar."""
    # `get_close_matches` compares letter by letter, so a key with a hyphen for an underscore is found, too.
    # By the ratio of equal characters, at least 0.6, which is the default of `difflib`.
    near = difflib.get_close_matches(key, FIELDS, n=1)
    return f"; did you mean {near[0]!r}?" if near else ""
