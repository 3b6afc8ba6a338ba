"""The settings as values: each with its name, default, check and help text.

`Settings` holds the result of all sources.  It is frozen, so no part of the program can change what another part has
got; a reload makes a new one (`bioproxy.settings.configuration`).

Each field has its check with it (`bioproxy.settings.kinds`), and the options of the command line are made from the same
fields (`bioproxy.operator.options`).  So a new setting is one new line here, and it cannot be forgotten in one of the
sources.  The documents are made from the fields, too (`tools/settings_page.py`).

Some settings are texts in a form of Twisted's, the endpoint strings: ``ssl:8443:privateKey=key.pem`` names a kind of
port and its parameters, and Twisted makes an object that listens of it.

Does not know Twisted itself, where values come from, nor what a setting does.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bioproxy.prompts.templates import Template
from bioproxy.settings.kinds import (
    Check,
    flag,
    names,
    one_of,
    path,
    prefixes,
    program,
    seconds,
    size,
    text,
    url,
    whole,
    words,
)


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

    The text of each field is its help on the command line.  The Markdown below a field says the rest, for
    `docs/settings.md`, which `tools/settings_page.py` makes from both.  Names, defaults and meanings are part of the
    interface.
    """

    # By default only programs on this machine can connect, because there is no key by default.
    host: str = setting("127.0.0.1", text, "address that clients connect to")
    port: int = setting(8081, whole(0, 65535), "port that clients connect to; 0 takes a free one")
    listen: str | None = setting(None, text, "a Twisted endpoint instead of host and port, such as unix:b.sock")
    """
    A [Twisted endpoint](https://docs.twisted.org/en/stable/core/howto/endpoints.html): `unix:/run/bioproxy.sock`,
    `ssl:8443:privateKey=key.pem:certKey=cert.pem`, `systemd:domain=INET:index=0`. `--host` and `--port` on the command
    line win over a `listen` in the file. More about TLS: [Security](security.md#tls).
    """
    # The operator's port shows everything and needs no key.
    admin_host: str = setting("127.0.0.1", text, "address of the operator's port")
    """
    By default only this machine can reach the operator's port. It has no keys: see
    [Security](security.md#what-is-not-promised).
    """
    admin_port: int = setting(8082, whole(0, 65535), "the operator's port: metrics and status")
    """The live page, `/status`, `/metrics` and more: see [The operator's port](operation.md#the-operators-port)."""
    admin_listen: str | None = setting(None, text, "a Twisted endpoint instead of admin_host and admin_port")
    """The same as `listen`, for the operator's port."""
    admin_hosts: tuple[str, ...] = setting((), names, "more names that the operator's port answers to")
    """Host names besides `localhost` and all addresses, for which it answers always."""
    # Keys are in files and not here, because settings are printed by ``--check``, and the command line of a process can
    # be read by every user of the machine.
    api_key_file: Path | None = setting(None, path, "file with keys, one a line, of which clients must show one")
    """
    Clients send `Authorization: Bearer KEY` or `x-api-key: KEY`. `/health` and `OPTIONS` need no key. The key is not
    passed on to llama-server. Without this setting no key is needed.
    """
    llama_url: str = setting("http://127.0.0.1:8080", url, "where llama-server listens, http or https")
    llama_ca_file: Path | None = setting(None, path, "extra CA file to verify llama-server's certificate with")
    """Certificates that are trusted besides the system's, for an `https` address of llama-server."""
    llama_api_key_file: Path | None = setting(None, path, "file with the key that llama-server wants")
    """The key is used for bioproxy's own calls, and for clients that sent a valid key of theirs."""
    # A program with the same flags as the wheel, so whichever of the two there is, `llama_args` are the same.
    model: Path | None = setting(None, path, "GGUF file to run: bioproxy then starts llama.cpp itself")
    """
    bioproxy starts llama.cpp with this file, with one slot, on a port that only this machine reaches, and starts it
    again if it crashes. Leave out `llama_url` then; without `slot_save_path`, the slot folder is `slots` in
    `state_dir`. See [A llama.cpp of its own](operation.md#a-llamacpp-of-its-own).
    """
    llama_server: str | None = setting(None, program, "program to run it with, instead of the wheel xllamacpp")
    """
    A path, or a name to look for on the path. Without it, the wheel `xllamacpp` runs the model
    (`pip install '.[llama]'`), or, where that is missing, a `llama-server` on the path.
    """
    llama_args: tuple[str, ...] = setting((), words, 'more flags for it, such as "-c 8192 -ngl 99"')
    """
    In the file a list: `["-c", "8192", "-ngl", "99"]`. On the command line one text: `--llama-args "-c 8192"`. They
    come last and win.
    """
    # Half of 30 seconds would give up on a llama-server that swaps for a moment; with twice as much, users wait a
    # minute before they are told that it hangs.
    upstream_timeout: float = setting(30.0, seconds(1, 86400), "seconds that llama-server may be unresponsive")
    """
    After so many seconds without any answer from llama-server, `/health` included, waiting requests fail. A long prompt
    does not count: llama-server answers `/health` meanwhile.
    """
    # The files are looked at instead of watched by inotify, which does not exist on all systems and sees no changes on
    # network disks.  A look is one `stat` for each file.
    prefixes: Mapping[str, Path] = setting(dict, prefixes, "prefix=file of a template; may be repeated")
    """
    In the file an object of prefixes and files: `{"@code": "code.txt"}`. On the command line `--prefix @code=code.txt`,
    repeatable; these are added to the file's. See [Templates](templates.md).
    """
    poll_interval: float = setting(2.0, seconds(0.05, 86400), "seconds between looks at the template files")
    warmup: bool = setting(True, flag, "process templates before anyone asks")
    """Without warm-ups, a template gets its slot file after its first use."""
    # Half of 512 tokens lets users in sooner and makes a warm-up slower; twice as much the other way round.
    warmup_chunk: int = setting(512, whole(1, 1_000_000), "tokens of a warm-up sent at a time, at most")
    """
    A piece has 64, 128, 256 or 512 tokens, as many as take about half a second. A user who arrives during a warm-up
    waits for the end of its present piece.
    """
    save_conversations: bool = setting(True, flag, "keep conversations in files too")
    """
    The last conversation on each template is kept in a file of its own. Turn it off where what users say may not be on
    a disk; see also `learn`, and
    [What is on disk](security.md#what-is-on-disk-for-how-long-and-how-to-switch-it-off).
    """
    # These need `slot_save_path`, because bioproxy removes their files itself.
    learn: bool = setting(True, flag, "learn prompts from requests, and keep the conversations on them")
    """
    Prompts are learned from requests without a template, and kept in slot files with the conversations on them. This
    needs `slot_save_path`; without it, only templates are kept. See [Learned prompts](learning.md).
    """
    # Half of 1,024 tokens would keep files for prompts that a GPU computes in a fraction of a second; with twice as
    # much, users of a slow machine wait for many seconds for what could have been restored.
    learn_minimum: int = setting(1024, whole(1, 1_000_000), "tokens below which nothing is learned or kept")
    # A prompt of 10,000 tokens takes about 1.2 GB with a usual model of 8 billion parameters, so half of these sizes
    # holds few of them.  Twice as much fills a small disk.  There are more conversations than prompts, and they are
    # longer.
    prompts_limit: int = setting(8 << 30, size(0, 1 << 50), "bytes of files of learned prompts at most, such as 8G")
    """
    A number of bytes, or a text with `K`, `M` or `G` (powers of 1024). The least recently used files are removed first;
    those of templates' prefixes never.
    """
    conversations_limit: int = setting(16 << 30, size(0, 1 << 50), "bytes of files of conversations at most")
    """The same for conversations, those on templates included."""
    # Done while nobody waits, and given up when a user comes.
    head_start: bool = setting(True, flag, "after an answer, process the conversation as it will be sent back")
    """
    While nobody waits, the conversation is processed as its client will send it back: chat templates drop the reasoning
    of earlier answers, for example. This is done for conversations on templates, and with `slot_save_path` for all
    chats of at least `learn_minimum` bytes.
    """
    # Neither folder is made here: `state_dir` is made when the services start, and the slot folder by the operator.
    slot_save_path: Path | None = setting(None, path, "llama-server's --slot-save-path, where this host sees it")
    """
    With it, bioproxy checks files before it uses them, removes its leftovers, checks for free space, and learns
    prompts.
    """
    shared_shelf: Path | None = setting(None, path, "folder in which several bioproxies share their slot files")
    """
    Several bioproxies with the same model, each with a llama-server and a `slot_save_path` of its own, name one folder
    here, perhaps on a network disk. What one of them has computed, the others restore. See [A shared
    shelf](operation.md#a-shared-shelf).
    """
    state_dir: Path = setting(
        lambda: xdg_folder("XDG_STATE_HOME", ".local/state"), path, "folder for the proxy's own records"
    )
    """What is known of slot files, and how templates are used. The default is in `$XDG_STATE_HOME`, if that is set."""
    # Half of these values turns users away who would wait; with twice as much, users wait longer for a refusal.  A
    # longer queue costs little memory: a request that waits holds its body, and large bodies are in files.
    queue_limit: int = setting(100, whole(0, 1_000_000), "waiting requests at most")
    """One more gets the error 503. With 0, each request is refused that would have to wait."""
    queue_timeout: float = setting(600.0, seconds(0.05, 86400), "seconds that a request may wait")
    """After that it gets the error 503."""
    # With half of 10 seconds, agents with long answers take the slot from each other more; with twice as much, others
    # wait longer for their turn.  An agent's tools mostly take less than half a second; twice as long keeps everybody
    # waiting more often for nothing.
    patience: float = setting(10.0, seconds(0, 86400), "seconds by which a request may be passed over; 0: in order")
    """
    By so many seconds, in all, others may pass it that go on with the conversation in the slot. 0 means: strictly in
    the order of arrival. See [Who goes first](scheduling.md).
    """
    linger: float = setting(0.5, seconds(0, 3600), "seconds to wait for the next request after an answer's tool calls")
    """
    So long the gate waits for the next request of a conversation whose answer ended with tool calls, while others wait;
    within their `patience`.
    """
    # Proxies and clients often drop a connection that is silent for 30 seconds or more.  An answer that is not a stream
    # cannot begin before it is known, so nothing can be sent to its client meanwhile.
    ping_interval: float = setting(10.0, seconds(0, 86400), "seconds between comments to a waiting stream, 0 for none")
    # 64 MiB: some large images in one request.  Half of it refuses these; twice as much lets each client fill twice as
    # much of the folder for temporary files.
    max_body: int = setting(67108864, whole(1, 2**40), "bytes of a request body at most")
    """Also after its templates are filled in."""
    # Only the form.  Where the log goes is up to twistd, which opens it before any service starts; so this one needs a
    # restart, too.
    log_format: str = setting("text", one_of("text", "json"), "the log's form: text, or json, one object a line")
    """See [The log](operation.md#the-log)."""

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
