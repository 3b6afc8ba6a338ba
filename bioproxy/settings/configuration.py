"""The settings: their names, what they may be, and which source wins.

A setting may have three values: a default here in the code, one in the configuration file, and one on the command line.
The command line wins over the file, and the file over the default.  `Settings` holds the result.  It is frozen, so no
part of the program can change what another part has got; a reload makes a new one.

Each field of `Settings` has its check with it (`bioproxy.settings.kinds`), and the options of the command line are made
from the same fields (`bioproxy.operator.options`).  So a new setting is one new line here, and it cannot be forgotten
in one of the sources.  A value from the file has a type, as JSON has; `bioproxy.operator.options` gives a value from
the command line the type that JSON would have.  From there on both take the same way.

Each mistake raises `ConfigError` with one line that names the place: the file and the key, or the option.

Does not know Twisted, but for the form of its endpoint strings, nor what a setting does.  Only `read_file` reads.
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
from bioproxy.settings.kinds import Check, flag, names, one_of, path, prefixes, seconds, size, text, url, whole


def xdg_folder(variable: str, fallback: str) -> Path:
    """Return bioproxy's folder in the one that the XDG Base Directory Specification defines.

    `variable` is the environment variable that may name it, `fallback` its path below the home folder otherwise.
    """
    value = os.environ.get(variable, "")
    # The specification: a relative path is invalid and is to be ignored.
    if os.path.isabs(value):
        return Path(value) / "bioproxy"
    # A user without a home folder, as in some containers: `expanduser` returns "~" unchanged.
    home = os.path.expanduser("~")
    return Path(home if os.path.isabs(home) else "/") / fallback / "bioproxy"


def setting(default: Any, check: Check, help: str) -> Any:
    """Return a field of `Settings` with its check and its help text.

    `default` may be a function, which is called for each new `Settings`: for a value that depends on the environment,
    or one that can be changed, such as a dict.
    """
    # The metadata of a field is a dict that `dataclasses` carries along without looking at it.  So a check and a help
    # text stand beside their field, and other modules find them by the field's name.
    metadata = {"check": check, "help": help}
    if callable(default):
        return field(default_factory=default, metadata=metadata)
    return field(default=default, metadata=metadata)


@dataclass(frozen=True)
class Settings:
    """All settings, each of them checked.  Durations are in seconds, sizes in bytes or tokens.

    The text of each field is its help on the command line.  README.md explains them at length; names, defaults and
    meanings are part of the interface.
    """

    # Where clients connect.  By default only programs on this machine can, because there is no key by default.
    host: str = setting("127.0.0.1", text, "address that clients connect to")
    port: int = setting(8081, whole(0, 65535), "port that clients connect to; 0 takes a free one")
    listen: str | None = setting(None, text, "a Twisted endpoint instead of both, such as unix:/run/bioproxy.sock")
    # The operator's port, which shows everything and needs no key: by default only this machine can reach it.
    admin_host: str = setting("127.0.0.1", text, "address of the operator's port")
    admin_port: int = setting(8082, whole(0, 65535), "the operator's port: metrics and status")
    admin_listen: str | None = setting(None, text, "a Twisted endpoint instead of both")
    admin_hosts: tuple[str, ...] = setting((), names, "more names that the operator's port answers to")
    # Who may use the clients' port, and how llama-server is reached.  Keys are in files and not here, because settings
    # are printed by ``--check``, and the command line of a process can be read by every user of the machine.
    api_key_file: Path | None = setting(None, path, "file with keys, one a line, of which clients must show one")
    llama_url: str = setting("http://127.0.0.1:8080", url, "where llama-server listens, http or https")
    llama_ca_file: Path | None = setting(None, path, "extra CA file to verify llama-server's certificate with")
    llama_api_key_file: Path | None = setting(None, path, "file with the key that llama-server wants")
    # Half of 30 seconds would give up on a llama-server that swaps for a moment; with twice as much, users wait a
    # minute before they are told that it hangs.  A long prompt is no reason: `/health` is answered meanwhile.
    upstream_timeout: float = setting(30.0, seconds(1, 86400), "seconds that llama-server may be unresponsive")
    # Templates, and when they are processed.  The files are looked at instead of watched by inotify, which does not
    # exist on all systems and sees no changes on network disks.  A look is one `stat` for each file.
    prefixes: Mapping[str, Path] = setting(dict, prefixes, "prefix=file of a template; may be repeated")
    poll_interval: float = setting(2.0, seconds(0.05, 86400), "seconds between looks at the template files")
    warmup: bool = setting(True, flag, "process templates before anyone asks")
    # A user who arrives during a warm-up waits for the end of its present piece.  Half of 512 tokens lets users in
    # sooner and makes a warm-up slower; twice as much the other way round.
    warmup_chunk: int = setting(512, whole(1, 1_000_000), "tokens of a warm-up sent at a time, at most")
    # For those who may not have what users said on a disk.
    save_conversations: bool = setting(True, flag, "keep conversations in files too")
    # Prompts that nobody configured.  They need `slot_save_path`: bioproxy removes their files itself.
    learn: bool = setting(True, flag, "learn prompts from requests, and keep the conversations on them")
    # Half of 1,024 tokens would keep files for prompts that a GPU computes in a fraction of a second; with twice as
    # much, users of a slow machine wait for many seconds for what could have been restored.
    learn_minimum: int = setting(1024, whole(1, 1_000_000), "tokens below which nothing is learned or kept")
    # A prompt of 10,000 tokens takes about 1.2 GB with a usual model of 8 billion parameters, so half of these sizes
    # holds few of them.  Twice as much fills a small disk.  There are more conversations than prompts, and they are
    # longer.
    prompts_limit: int = setting(8 << 30, size(0, 1 << 50), "bytes of files of learned prompts at most, such as 8G")
    conversations_limit: int = setting(16 << 30, size(0, 1 << 50), "bytes of files of conversations at most")
    # While nobody waits, and given up for whoever comes.
    head_start: bool = setting(True, flag, "after an answer, process the conversation as it will be sent back")
    # Folders.  Neither is made here: `state_dir` is made when the services start, and the slot folder by the operator.
    slot_save_path: Path | None = setting(None, path, "llama-server's --slot-save-path, where this host sees it")
    shared_shelf: Path | None = setting(None, path, "folder in which several bioproxies share their slot files")
    state_dir: Path = setting(
        lambda: xdg_folder("XDG_STATE_HOME", ".local/state"), path, "folder for the proxy's own records"
    )
    # Limits of the queue.  Half of these values turns users away who would wait; with twice as much, users wait longer
    # for a refusal.  A longer queue costs little memory: a request that waits holds its body, and large bodies are in
    # files.  A `queue_limit` of 0 refuses each request that would have to wait.
    queue_limit: int = setting(100, whole(0, 1_000_000), "waiting requests at most")
    queue_timeout: float = setting(600.0, seconds(0.05, 86400), "seconds that a request may wait")
    # The order at the gate.  With half of 10 seconds, agents with long answers take the slot from each other more;
    # with twice as much, others wait longer for their turn.  An agent's tools mostly take less than half a second;
    # twice as long keeps everybody waiting more often in vain.
    patience: float = setting(10.0, seconds(0, 86400), "seconds by which a request may be passed over; 0: in order")
    linger: float = setting(0.5, seconds(0, 3600), "seconds to wait for the next request after an answer's tool calls")
    # Proxies and clients often drop a connection that is silent for 30 seconds or more.  In an event stream, comments
    # are allowed at any place, and clients ignore them.  An answer that is not a stream cannot begin before it is
    # known, so nothing can be sent to its client meanwhile.
    ping_interval: float = setting(10.0, seconds(0, 86400), "seconds between comments to a waiting stream, 0 for none")
    # 64 MiB: some large images in one request.  Half of it refuses these; twice as much lets each client fill twice as
    # much of the folder for temporary files.
    max_body: int = setting(67108864, whole(1, 2**40), "bytes of a request body at most")
    # Only the form.  Where the log goes is up to twistd, which opens it before any service starts; so this one needs a
    # restart, too.
    log_format: str = setting("text", one_of("text", "json"), "the log's form: text, or json, one object a line")

    @property
    def templates(self) -> tuple[Template, ...]:
        """The templates, in the order in which the sources name their prefixes."""
        return templates_of(self.prefixes)


def templates_of(prefixes: Mapping[str, Path]) -> tuple[Template, ...]:
    """Return the templates that prefixes stand for.

    The prefixes are those of a `Settings`, so each of them gives a valid name, and no two give the same.
    """
    return tuple(Template.of(prefix, file) for prefix, file in prefixes.items())


FIELDS = {entry.name: entry for entry in dataclasses.fields(Settings)}
"""The fields of `Settings` by their names, in order: the list of all settings."""


def default_file() -> Path:
    """Return the path of the configuration file that is read without ``--config``."""
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
        content = json.loads(file.read_text(encoding="utf-8-sig"), object_pairs_hook=once)
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
    for listen, *places in (("listen", "host", "port"), ("admin_listen", "admin_host", "admin_port")):
        # `listen` wins over `host` and `port`.  But a user who gives ``--port`` means that port, even if the file has a
        # `listen`; so that is dropped.
        if listen not in command_line and any(place in command_line for place in places):
            values.pop(listen, None)
    return Settings(**values)


def refuse_loop(settings: Settings) -> None:
    """Raise `ConfigError` if `llama_url` leads to bioproxy itself.

    Each request would then cause another one, without end.  Only the plain mistakes are found: the same port of this
    machine, not another name that resolves to it.
    """
    # A URL without a port has the default port of its scheme.  `url` has checked it, so `port` raises no error here.
    target = urlsplit(settings.llama_url)
    port = target.port or (443 if target.scheme == "https" else 80)
    # Both of bioproxy's ports count: requests to the operator's port make no loop, but it is not llama-server either.
    # Different names for this machine.  Listening on 0.0.0.0 or :: means all of its addresses, these included.
    local = {"localhost", "127.0.0.1", "::1", "0.0.0.0", "::"}
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
