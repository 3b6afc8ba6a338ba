"""The small command ``bioproxy``: its three subcommands, and how its errors look.

``bioproxy init`` writes a first configuration, ``bioproxy run`` starts bioproxy in the foreground, and ``bioproxy
status`` shows what it does.  As a service, bioproxy is started by twistd directly; this command only makes the first
minutes and the everyday look easier.

`usage.Options` is Twisted's parser, and the one that the options of ``twistd bioproxy`` use
(`bioproxy.operator.options`).  Its `subCommands` name a class of options for each subcommand.  `argparse` would do for
two of the three, but not for ``bioproxy run``, which passes its words on unread: `argparse` reads an option that
follows a subcommand as one of its own, also with ``nargs=REMAINDER``.

A user's mistake is one line on standard error.  The exit code is 2 for a command line that is not understood, 1 for
everything else that fails, and 130 after Ctrl-C, as shells have it.

Does not know what the subcommands do.  Each of them is imported only when it runs: ``bioproxy run`` must not have
imported anything that chooses an event loop before twistd does.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from twisted.python import usage

from bioproxy import __version__
from bioproxy.settings.configuration import default_file

MISUSE = 2
"""The exit code for a command line that is not understood; `getopt` programs and shells use the same."""

INTERRUPTED = 130
"""The exit code after Ctrl-C: 128 and the number of SIGINT, as shells have it."""


class VersionedOptions(usage.Options):
    """Options whose ``--version`` is bioproxy's.  `usage.Options` would print that of Twisted."""

    def opt_version(self) -> None:
        """print bioproxy's version and exit"""
        print(f"bioproxy {__version__}")
        raise SystemExit(0)


class InitOptions(VersionedOptions):
    """What ``bioproxy init`` takes.  Each option that is missing is asked for, if there is a terminal."""

    # Each is name, one-letter name, default, help.  The default `None` means "not given".  No option has a letter:
    # these commands are typed rarely, and scripts are easier to read with whole words.
    optParameters = [
        ["model", None, None, "model file (GGUF) that bioproxy is to run llama.cpp with"],
        ["llama-url", None, None, "address of a llama-server that runs already, instead of --model"],
        ["document", None, None, "text file that the first template includes"],
        ["prefix", None, None, "what a message begins with to use the template, such as @notes"],
        ["config", None, None, f"configuration file to write [default: {default_file()}]"],
    ]


class RunOptions(usage.Options):
    """What ``bioproxy run`` takes: any words, a list under the name ``words``.

    twistd reads them, and explains them with ``--help``.
    """

    synopsis = "[options of twistd bioproxy]"

    def parseOptions(self, options: Sequence[str] | None = None) -> None:
        """Keep all words as they are.  Called by Twisted instead of the parser."""
        self["words"] = list(options or ())


class StatusOptions(VersionedOptions):
    """What ``bioproxy status`` takes.  Without options, the default configuration says where bioproxy is."""

    # The same names as in the options of bioproxy, where they mean the same.
    # Flags are name, one-letter name, help; the object has 1 under the name if the flag was given, else 0.
    optFlags = [["json", None, "print what the operator's port says at /status, as JSON"]]
    optParameters = [
        ["config", None, None, f"configuration file that names the operator's port [default: {default_file()}]"],
        ["admin", None, None, "address of the operator's port instead, such as http://127.0.0.1:8082"],
    ]


class CommandOptions(VersionedOptions):
    """The command line of ``bioproxy``.

    After parsing, `subCommand` is the name of the subcommand, and `subOptions` are its options.
    """

    # What the first line of ``--help`` shows; that of a subcommand has the subcommand's name and synopsis behind it.
    synopsis = "Usage: bioproxy"

    # Each is name, one-letter name, class of options, help.  Twisted makes the object only for the one that is named.
    subCommands = [
        ["init", None, InitOptions, "write a configuration and a first template; overwrite nothing"],
        ["run", None, RunOptions, "start bioproxy in the foreground: twistd -n bioproxy"],
        ["status", None, StatusOptions, "show what is warm and what runs"],
    ]

    def postOptions(self) -> None:
        """Refuse a command line without a subcommand.  Called by Twisted when all is parsed."""
        # Also reached with a subcommand, when its own words have been parsed.
        # Twisted leaves `subCommand` at `None` then.  There is no default: each of the three would surprise somebody.
        if self.subCommand is None:
            raise usage.UsageError("say what to do: init, run or status; --help explains them")


def main(words: Sequence[str] | None = None) -> None:
    """Run the command with these words, those of the process by default.  Returns for success.

    Raises `SystemExit` with a text, which Python prints to standard error with the exit code 1, or with an exit code.
    """
    # A file's name may have bytes that the terminal's encoding has no character for: they are shown as escapes.
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # not where a test has put another object in its place
            stream.reconfigure(errors="backslashreplace")
    # Parsing makes the object of the subcommand's options and has it parse its own words; `subOptions` is that object.
    options = CommandOptions()
    try:
        options.parseOptions(sys.argv[1:] if words is None else words)
        perform(options.subCommand, options.subOptions)
    except usage.UsageError as error:
        # Raised by the parser, and by `init` for an answer that is missing.
        # Twisted's own programs print the whole help here, and the mistake below it, where it is easily overlooked.
        name = f"bioproxy {options.subCommand}" if options.subCommand else "bioproxy"
        print(f"{name}: {error}", file=sys.stderr)
        raise SystemExit(MISUSE) from None
    # Not for ``bioproxy run``: there, twistd handles the signal.
    except KeyboardInterrupt:
        # The shell's prompt then begins on a line of its own.
        print(file=sys.stderr)
        raise SystemExit(INTERRUPTED) from None
    except BrokenPipeError:
        # The program that read the output has enough, such as ``head``.  Python would complain once more when it closes
        # the stream at its end, so the rest goes nowhere.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(1) from None


def perform(name: str | None, options: usage.Options) -> None:
    """Carry out the subcommand of this name, and return when it is over.

    That of ``bioproxy run`` is over when bioproxy is told to stop.  Raises what `main` handles.
    """
    # Imported here: each subcommand needs a different part of bioproxy, and a start that loads all of it takes longer.
    if name == "init":
        from bioproxy.command import init

        # An object of options is a dict of what was given.  Its names are those of the fields, but for the hyphen.
        init.run(init.Given(**{name.replace("-", "_"): value for name, value in options.items()}))
    elif name == "run":
        from bioproxy.command import foreground

        foreground.run(options["words"])
    else:
        from bioproxy.command import status

        status.run(options["config"], options["admin"], bool(options["json"]))
