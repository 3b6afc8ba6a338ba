"""The command line: from ``twistd -n bioproxy --port 8088`` to `Settings`.

twistd finds this class through the plugin, lets it parse what stands after the word ``bioproxy``, and hands
the result to `bioproxy.service.makeService`.  `usage.Options` is Twisted's parser: `optParameters` are options
with a value, `optFlags` those without, a method `opt_x` is called for ``--x``, and `postOptions` at the end.

The options are made from the fields of `Settings`, so a setting cannot be missing here.

Errors end the process here, before anything has started: `SystemExit` with a text prints that text and gives
exit code 1.  (Raising Twisted's `UsageError` instead would print the whole help before it.)
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from twisted.python import usage

from bioproxy import __version__
from bioproxy.operator import check
from bioproxy.operator import inspection as survey
from bioproxy.runtime.errors import ConfigError
from bioproxy.settings import configuration as config
from bioproxy.settings import kinds as values

FLAGS = [key for key, entry in config.FIELDS.items() if entry.metadata["check"] is values.flag]
VALUES = [key for key in config.FIELDS if key not in FLAGS and key != "prefixes"]


def described(key: str) -> str:
    """Return a setting's help text with its default."""
    return f"{config.FIELDS[key].metadata['help']} [default: {getattr(config.Settings(), key)}]"


class Options(usage.Options):
    """bioproxy's options.  After parsing, `settings` has the result and `demo` tells whether to bring a llama.cpp."""

    synopsis = "[options]"
    longdesc = "A proxy that makes long prompts answer at once, in front of one llama.cpp llama-server."

    optFlags = [
        ["check", None, "read the configuration and every template, ask llama-server, print what was found, and exit"],
        ["demo", None, "run a real llama.cpp with a tiny model and example templates beside the proxy"],
    ]
    # Their default is None, "not given": the real defaults come last, in `config.load`.
    optParameters = [
        ["config", None, None, f"configuration file [default: {config.default_file()}]"],
        *([key.replace("_", "-"), None, None, described(key)] for key in VALUES),
    ]

    def __init__(self) -> None:
        self.given: dict[str, Any] = {}
        self.survey = survey.now
        super().__init__()

    def opt_prefix(self, text: str) -> None:
        """prefix=file of a template, added to the configuration file's; may be repeated"""
        prefix, equals, file = text.partition("=")
        if not equals:
            raise SystemExit(f"bioproxy: --prefix: must look like @code=code.txt, not {text!r}")
        self.given.setdefault("prefixes", {})[prefix] = file

    def opt_warmup(self) -> None:
        """process templates before anyone asks (the default)"""
        self.given["warmup"] = True

    def opt_no_warmup(self) -> None:
        """do not process templates before anyone asks"""
        self.given["warmup"] = False

    def opt_save_conversations(self) -> None:
        """keep conversations in files too (the default)"""
        self.given["save_conversations"] = True

    def opt_no_save_conversations(self) -> None:
        """do not keep conversations in files"""
        self.given["save_conversations"] = False

    def opt_version(self) -> None:
        """print bioproxy's version and exit"""
        print(f"bioproxy {__version__}")
        raise SystemExit(0)

    def parseArgs(self, *words: str) -> None:
        """Refuse words that belong to no option.  Called by Twisted."""
        if words:
            raise usage.UsageError(f"{words[0]}: not understood; options begin with --")

    def postOptions(self) -> None:
        """Put the sources together; for ``--check``, report and exit.  Twisted calls this after parsing."""
        for key in VALUES:
            text = self[key.replace("_", "-")]
            if text is not None:
                self.given[key] = self._value(key, text)
        self.demo = bool(self["demo"])
        self._folder = Path.cwd()  # a daemon may leave it
        try:
            self.settings = self.read()
        except (ConfigError, RuntimeError) as error:
            raise SystemExit(f"bioproxy: {error}") from None
        if self["check"]:
            # A demonstration brings its llama-server with it: there is nobody to ask yet.
            try:
                code = check.run(self.settings, None if self.demo else self.survey, sys.stdout)
            except KeyboardInterrupt:
                code = 130  # what a shell makes of Ctrl-C
            raise SystemExit(code)

    def read(self) -> config.Settings:
        """Read the configuration file, and put what the command line said above it.  Raises `ConfigError`."""
        file = None if self["config"] is None else self._folder / Path(self["config"]).expanduser()
        settings = config.load(self.given, file, self._folder, use_file=not self.demo or file is not None)
        if not self.demo:  # that brings a llama-server of its own
            config.refuse_loop(settings)
        return settings

    def _value(self, key: str, text: str) -> Any:
        """Turn an option's text into what JSON would have: the check of the setting then judges it."""
        if config.FIELDS[key].metadata["check"] in (values.text, values.path, values.url, values.names):
            return text
        try:
            return json.loads(text)
        except (ValueError, RecursionError):
            return text  # no number: the check says so, with the text in its message
