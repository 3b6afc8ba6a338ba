"""The command line: from ``twistd -n bioproxy --port 8088`` to `Settings`.

A command of twistd is a plugin with two names: a class of options and a function that makes the service.  twistd finds
both through ``twisted/plugins/bioproxy_plugin.py``.  It parses what stands before the word ``bioproxy`` itself, gives
this class what stands behind, and hands the result to `bioproxy.service.makeService`.

`usage.Options` is Twisted's parser.  `optParameters` lists options with a value and `optFlags` those without; for an
option ``--x`` with a method `opt_x` that method is called; `postOptions` is called when all is parsed.  The docstring
of an `opt_` method is the option's help text, which is why these begin with a small letter.  The object itself is a
dict of what was given.

Options with a value are made from the fields of `Settings`, so a new setting has its option at once.  A true or false
setting has two methods here.

A mistake ends the process here, before anything has started: `SystemExit` with a text prints that text and gives the
exit code 1.  (Twisted's own `UsageError` would print the whole help first, and the mistake below it.)

Does not know the rules of the settings (`bioproxy.settings.configuration`).
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

from twisted.python import usage

from bioproxy import __version__
from bioproxy.child.command_line import port_wanted
from bioproxy.operator import check, survey_run
from bioproxy.runtime.errors import ConfigError
from bioproxy.settings import configuration as config
from bioproxy.settings import kinds as values

FLAGS = [key for key, entry in config.FIELDS.items() if entry.metadata["check"] is values.flag]
"""Settings that are true or false: ``--key`` and ``--no-key``."""

VALUES = [key for key in config.FIELDS if key not in FLAGS and key != "prefixes"]
"""Settings with a value: ``--key VALUE``.  Prefixes are given one by one, with ``--prefix``."""


TEXTS = (values.text, values.path, values.url, values.names, values.program, values.words)
"""The checks of settings that are texts in JSON, too, or may be."""


def described(key: str) -> str:
    """Return a setting's help text with its default value.

    The default is that of a new `Settings`, so it is the real one on this machine, with the user's own folders in it.
    """
    return f"{config.FIELDS[key].metadata['help']} [default: {getattr(config.Settings(), key)}]"


# The order of calls, all of them by twistd:
#
#   `Options()`  ->  `opt_...` for each option  ->  `parseArgs`  ->  `postOptions`  ->  `makeService(options)`


class Options(usage.Options):
    """bioproxy's options.

    Parsing either leaves a complete and checked configuration in `settings`, or ends the process.
    """

    settings: config.Settings
    """The result, after parsing: defaults, configuration file and command line together."""

    demo: bool
    """Whether to run a llama.cpp of bioproxy's own (``--demo``), after parsing."""

    configuration: Path | None
    """The configuration file, after parsing; `None` if none is read, as in a demonstration.  It need not exist."""

    given: dict[str, Any]
    """What the command line says, by the names of the settings, with values as JSON would have them."""

    synopsis = "[options]"
    """What twistd's help shows behind the command's name."""

    longdesc = "A proxy that makes long prompts answer at once, in front of one llama.cpp llama-server."
    """What twistd's help shows below the options."""

    # Each is name, one-letter name, help.  The object has 1 under the name if the flag was given, else 0.
    optFlags = [
        ["check", None, "read the configuration and every template, ask llama-server, print what was found, and exit"],
        ["demo", None, "run a real llama.cpp with a tiny model and example templates beside the proxy"],
    ]
    # Each is name, one-letter name, default, help.  The default is `None` for all, which means "not given": a default
    # of the parser could not be told from a value that the user gave, and would win over the configuration file.
    optParameters = [
        ["config", None, None, f"configuration file [default: {config.default_file()}]"],
        *([key.replace("_", "-"), None, None, described(key)] for key in VALUES),
    ]

    def __init__(self) -> None:
        """Make an empty set of options.  Called by twistd."""
        self.given = {}
        # An attribute, so that a test can check without a network.
        self.survey = survey_run.now
        super().__init__()

    def opt_prefix(self, text: str) -> None:
        """prefix=file of a template, added to the configuration file's; may be repeated"""
        # Twisted calls this once for each time that the option occurs.  The first "=" separates; any further ones
        # belong to the file's name.
        prefix, equals, file = text.partition("=")
        if not equals:
            raise SystemExit(f"bioproxy: --prefix: must look like @code=code.txt, not {text!r}")
        self.given.setdefault("prefixes", {})[prefix] = file

    # A flag of Twisted's parser can only be given or not.  These settings have three states, true, false and not given,
    # so each has a method for true and one for false.

    def opt_warmup(self) -> None:
        """process templates before anyone asks (the default)"""
        # For a user whose file says false.
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

    def opt_learn(self) -> None:
        """learn prompts from requests, and keep the conversations on them (the default)"""
        self.given["learn"] = True

    def opt_head_start(self) -> None:
        """after an answer, process the conversation as it will be sent back (the default)"""
        self.given["head_start"] = True

    def opt_no_head_start(self) -> None:
        """leave the conversation in the slot as it was answered"""
        self.given["head_start"] = False

    def opt_no_learn(self) -> None:
        """use templates only: learn nothing from requests"""
        self.given["learn"] = False

    def opt_version(self) -> None:
        """print bioproxy's version and exit"""
        # Otherwise Twisted would print its own version, and bioproxy's nowhere.
        print(f"bioproxy {__version__}")
        raise SystemExit(0)

    def parseArgs(self, *words: str) -> None:
        """Refuse words that belong to no option.  Called by Twisted after the options are parsed."""
        # Such a word is usually a slip such as a missing hyphen, so here the whole help is of use.
        if words:
            raise usage.UsageError(f"{words[0]}: not understood; options begin with --")

    def postOptions(self) -> None:
        """Put the sources together; for ``--check``, report and exit.  Called by Twisted when all is parsed.

        Raises `SystemExit` with one line for a mistake, and with the exit code for a check.
        """
        # Flags and prefixes are in `given` already, by the methods above.
        for key in VALUES:
            text = self[key.replace("_", "-")]
            if text is not None:
                self.given[key] = self._value(key, text)
        self.demo = bool(self["demo"])
        # Relative paths on the command line start here, also those that a reload resolves again.  By then a daemon
        # has another working folder.
        self._folder = Path.cwd()
        # From here on the folder, the file and the command line are enough to read the settings again.
        # `RuntimeError` is what `expanduser` raises for ``~name`` if there is no such user.
        try:
            self.settings = self.read()
        except (ConfigError, RuntimeError) as error:
            raise SystemExit(f"bioproxy: {error}") from None
        if self["check"]:
            # Nothing has been opened or written so far, so a check can be run beside a bioproxy that serves.
            # With ``--demo`` llama-server would be started by the service, so there is none to ask yet.
            try:
                code = check.run(self.settings, None if self.demo else self.survey, sys.stdout)
            except KeyboardInterrupt:
                code = 130  # the exit code that a shell gives to a program that Ctrl-C ended
            except BrokenPipeError:
                # The program that read the output has enough, such as ``head``.  Python would complain once more when
                # it closes the stream at its end, so the rest goes nowhere.
                os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
                code = 1
            raise SystemExit(code)

    def read(self) -> config.Settings:
        """Read the configuration file, and return the settings with what the command line says above it.

        Called after parsing and again by each reload: the command line stays, the file may have changed.  Raises
        `ConfigError`.
        """
        # A demonstration leaves the user's own configuration alone, unless it is named.
        file = None if self["config"] is None else self._folder / Path(self["config"]).expanduser()
        self.configuration = file or (None if self.demo else config.default_file())
        settings = config.load(self.given, file, self._folder, use_file=self.configuration is not None)
        # A file that was read once has to be there at each reload.  Without it all settings would have their defaults,
        # and no client would need a key.
        if self.configuration is not None and self.configuration.exists():
            self["config"] = str(self.configuration)
        # A demonstration replaces `llama_url`, so what stands there does not matter.
        # With a model of its own, bioproxy chooses the port, or `llama_args` have one.
        if settings.model is not None:
            port_wanted(settings)
        elif not self.demo:
            config.refuse_loop(settings)
        return settings

    def _value(self, key: str, text: str) -> Any:
        """Return an option's text as the value that JSON would have, for the setting's check to judge.

        A number on the command line is text, and a number in the file is a number.  Read as JSON, ``8088`` becomes the
        number, so one check is enough for both sources.
        """
        # These settings are texts in JSON, too, and a text that looks like a number, such as a folder ``1``, stays one.
        if config.FIELDS[key].metadata["check"] in TEXTS:
            return text
        try:
            return json.loads(text)
        except (ValueError, RecursionError):
            # Such as ``--port http``, or a text that nests so deep that Python's parser gives up.
            # Not JSON, so no number: the setting's check refuses it, with the text in its message.
            return text
