"""The settings: what they are called, what they may be, and which source wins.

A setting has up to three values: a default here in the code, one in the configuration file, one on the command
line; the later one wins.  `Settings` holds the result.  It is frozen: whoever gets it can rely on it.

Each field of `Settings` carries its own check (`bioproxy.settings.kinds`), and the options of the command line are made
from the same fields (`bioproxy.operator.options`), so a new setting is one new line here.  Values from the file are
JSON and have types; values from the command line are text, and are read as JSON where the setting is not a text itself.
From there on both go the same way.

Pure but for `read_file`.  Knows nothing of Twisted.
"""

from __future__ import annotations

import dataclasses
import difflib
import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from bioproxy.prompts.templates import Template
from bioproxy.runtime.errors import ConfigError
from bioproxy.settings.kinds import Check, flag, names, one_of, path, prefixes, seconds, text, url, whole


def xdg_folder(variable: str, fallback: str) -> Path:
    """Return the folder that the XDG Base Directory Specification gives for `variable`, with ours in it."""
    value = os.environ.get(variable, "")
    # The specification: a relative path is invalid and is to be ignored.
    if os.path.isabs(value):
        return Path(value) / "bioproxy"
    home = os.path.expanduser("~")  # stays "~" for a user who has none, as in some containers
    return Path(home if os.path.isabs(home) else "/") / fallback / "bioproxy"


def setting(default: Any, check: Check, help: str) -> Any:
    """Declare a field of `Settings`.  `default` may be a function, called when it is needed."""
    metadata = {"check": check, "help": help}
    if callable(default):
        return field(default_factory=default, metadata=metadata)
    return field(default=default, metadata=metadata)


@dataclass(frozen=True)
class Settings:
    """Every setting, checked.  Durations are in seconds, sizes in bytes or tokens."""

    host: str = setting("127.0.0.1", text, "address that clients connect to")
    port: int = setting(8081, whole(0, 65535), "port that clients connect to; 0 takes a free one")
    listen: str | None = setting(None, text, "a Twisted endpoint instead of both, such as unix:/run/bioproxy.sock")
    admin_host: str = setting("127.0.0.1", text, "address of the operator's port")
    admin_port: int = setting(8082, whole(0, 65535), "the operator's port: metrics and status")
    admin_listen: str | None = setting(None, text, "a Twisted endpoint instead of both")
    admin_hosts: tuple[str, ...] = setting((), names, "more names that the operator's port answers to")
    api_key_file: Path | None = setting(None, path, "file with keys, one a line, of which clients must show one")
    llama_url: str = setting("http://127.0.0.1:8080", url, "where llama-server listens, http or https")
    llama_ca_file: Path | None = setting(None, path, "whom to trust for its certificate, beside the system's list")
    llama_api_key_file: Path | None = setting(None, path, "file with the key that llama-server wants")
    upstream_timeout: float = setting(30.0, seconds(1, 86400), "seconds that llama-server may stay dumb")
    prefixes: Mapping[str, Path] = setting(dict, prefixes, "prefix=file of a template; may be repeated")
    poll_interval: float = setting(2.0, seconds(0.05, 86400), "seconds between looks at the template files")
    warmup: bool = setting(True, flag, "process templates before anyone asks")
    warmup_chunk: int = setting(512, whole(1, 1_000_000), "tokens of a warm-up sent at a time, at most")
    save_conversations: bool = setting(True, flag, "keep conversations in files too")
    slot_save_path: Path | None = setting(None, path, "llama-server's --slot-save-path, where this host sees it")
    state_dir: Path = setting(
        lambda: xdg_folder("XDG_STATE_HOME", ".local/state"), path, "folder for the proxy's own records"
    )
    queue_limit: int = setting(100, whole(0, 1_000_000), "waiting requests at most")
    queue_timeout: float = setting(600.0, seconds(0.05, 86400), "seconds that a request may wait")
    ping_interval: float = setting(10.0, seconds(0, 86400), "seconds between comments to a waiting stream, 0 for none")
    max_body: int = setting(67108864, whole(1, 2**40), "bytes of a request body at most")
    log_format: str = setting("text", one_of("text", "json"), "the log's form: text, or json, one object a line")

    @property
    def templates(self) -> tuple[Template, ...]:
        """The templates, in the order of their prefixes in the sources.  `load` has checked their names."""
        return templates_of(self.prefixes)


def templates_of(prefixes: Mapping[str, Path]) -> tuple[Template, ...]:
    """Return the templates that prefixes stand for.  Their names were checked."""
    return tuple(Template.of(prefix, file) for prefix, file in prefixes.items())


FIELDS = {entry.name: entry for entry in dataclasses.fields(Settings)}


def default_file() -> Path:
    """Return where the configuration file is when nobody says otherwise."""
    return xdg_folder("XDG_CONFIG_HOME", ".config") / "conf.json"


def read_file(file: Path, may_be_missing: bool = False) -> dict[str, Any]:
    """Read a configuration file: one JSON object.  Raises `ConfigError`."""

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        # JSON lets a key appear twice, and the last one wins without a word.  In a configuration that is a slip.
        names = [name for name, _ in pairs]
        for name in names:
            if names.count(name) > 1:
                raise ConfigError(f"{file}: {name!r}: given twice")
        return dict(pairs)

    try:
        content = json.loads(file.read_text(encoding="utf-8-sig"), object_pairs_hook=once)
    except OSError as error:
        if may_be_missing and isinstance(error, FileNotFoundError):
            return {}
        raise ConfigError(f"{file}: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{file}: not JSON: {error}") from None
    if not isinstance(content, dict):
        raise ConfigError(f"{file}: must hold one JSON object")
    return content


def load(command_line: Mapping[str, Any], file: Path | None, folder: Path, use_file: bool = True) -> Settings:
    """Put the three sources together.

    `command_line` has the keys given there, their values as in JSON; `file` is what ``--config`` names, or `None`
    for the default file, which alone may be missing (or is left alone, without `use_file`); relative paths of the
    command line start at `folder`.  Raises `ConfigError`.
    """
    values: dict[str, Any] = {}
    source = file or default_file()
    if use_file:
        for key, value in read_file(source, may_be_missing=file is None).items():
            if key not in FIELDS:
                raise ConfigError(f"{source}: unknown key {key!r}{suggestion(key)}")
            values[key] = checked(key, value, source.absolute().parent, f"{source}: {key}")
    for key, value in command_line.items():
        result = checked(key, value, folder, option(key))
        if key == "prefixes":
            # Those of the command line are added to the file's; every other value replaces the file's.
            result = {**values.get(key, {}), **result}
            checked(key, {prefix: str(file) for prefix, file in result.items()}, folder, option(key))
        values[key] = result
    for listen, *places in (("listen", "host", "port"), ("admin_listen", "admin_host", "admin_port")):
        # Who says on the command line where to listen does not mean what the file says of that, in whatever words.
        if listen not in command_line and any(place in command_line for place in places):
            values.pop(listen, None)
    return Settings(**values)


def refuse_loop(settings: Settings) -> None:
    """Refuse to be one's own llama-server: each question would bring forth another, without end.

    Raises `ConfigError`.
    """
    target = urlsplit(settings.llama_url)
    port = target.port or (443 if target.scheme == "https" else 80)
    local = {"localhost", "127.0.0.1", "::1", "0.0.0.0", "::"}
    own = [
        endpoint_address(settings.listen) or (settings.host, settings.port),
        endpoint_address(settings.admin_listen) or (settings.admin_host, settings.admin_port),
    ]
    for host, own_port in own:
        if port == own_port and (target.hostname == host or {target.hostname, host} <= local):
            raise ConfigError(f"llama_url: {settings.llama_url} is bioproxy's own port")


def endpoint_address(listen: str | None) -> tuple[str, int] | None:
    """Return host and port of a Twisted endpoint, an unlikely port if it has none; `None` if there is no endpoint."""
    if listen is None:
        return None
    number = re.match(r"(?:tcp6?|ssl):(?:port=)?(\d+)", listen)
    host = re.search(r":interface=((?:\\.|[^:])+)", listen)
    return (host[1].replace("\\", "") if host else "0.0.0.0"), int(number[1]) if number else -1


def checked(key: str, value: Any, folder: Path, place: str) -> Any:
    """Run the check of a setting; `place` says in the error where the value stands."""
    try:
        return FIELDS[key].metadata["check"](value, folder)
    except ValueError as error:
        raise ConfigError(f"{place}: {error}") from None
    except RecursionError:
        raise ConfigError(f"{place}: nests too deep") from None


def option(key: str) -> str:
    """Return how a setting is spelled on the command line, where prefixes are given one by one."""
    return "--prefix" if key == "prefixes" else f"--{key.replace('_', '-')}"


def suggestion(key: str) -> str:
    """Name the nearest known key, if one is near."""
    near = difflib.get_close_matches(key, FIELDS, n=1)
    return f"; did you mean {near[0]!r}?" if near else ""
