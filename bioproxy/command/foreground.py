"""``bioproxy run``: twistd in the foreground, with the options of ``twistd bioproxy``.

twistd is Twisted's program that runs an application: it chooses the event loop, opens the log, handles signals, and
starts the tree of services that a plugin makes (`bioproxy.service`).  It is a function as well as a program, so nothing
has to be found on the path, and this process itself becomes the proxy: its process id, its signals and its exit code
are those of ``twistd -n bioproxy``.

There are three differences from ``twistd -n bioproxy``:

* no ``twistd.pid`` in the working folder, which a second start would stumble over;
* a wrong option gives one line instead of the whole help;
* twistd's own options, such as ``--logfile`` or ``--uid``, cannot be given.  For these, use twistd.

Does not know which options there are.
"""

from __future__ import annotations

from collections.abc import Sequence

from twisted.scripts import twistd


class Foreground(twistd.ServerOptions):  # type: ignore[name-defined, misc]  # no part of twistd's `__all__`
    """twistd's command line, with another first line of ``--help``: a user of this command has not typed "twistd"."""

    synopsis = "Usage, also as `bioproxy run [options]`: twistd -n"


def run(words: Sequence[str]) -> None:
    """Run bioproxy until it is told to stop, with these options of ``twistd bioproxy``.

    Raises `UsageError` for an unknown option, and `SystemExit` for what ends ``twistd -n bioproxy``: a mistake in the
    configuration, a port in use, ``--check``.  After Ctrl-C or SIGTERM the process ends by that signal.
    """
    config = Foreground()
    # Parsing finds the plugin, imports `bioproxy.service`, and has its options parse the words.  An empty name of the
    # file for the process id means that there is none.
    config.parseOptions(["--nodaemon", "--pidfile=", "bioproxy", *words])
    twistd.runApp(config)
