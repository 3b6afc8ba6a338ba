"""Runs Twisted's event loop for the survey of ``--check``, and ends it.

The event loop, the *reactor*, calls everything in a Twisted program: timers, sockets, and the coroutines that wait for
them.  twistd starts it after a service has been made and runs it until the process ends.  ``--check`` is different: it
happens while twistd still reads its options, it needs the network, and no service is to be started.  So `now` runs the
reactor itself, for as long as the survey takes.

A reactor can run only once in a process.  That is enough here, because the process ends after a check.

Besides `bioproxy.service` this is the only module that imports the reactor: importing it also chooses its kind (epoll,
kqueue, select) for the whole process, and whatever gets the reactor as an argument can be tested with another one.

Does not know what a survey asks; that is in `bioproxy.operator.inspection`.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from twisted.internet.defer import Deferred, TimeoutError
from twisted.python.failure import Failure

from bioproxy.llama.api import LlamaApi
from bioproxy.llama.connections import Agents, check_ca_file
from bioproxy.llama.upstream import Upstream
from bioproxy.operator.advice import Advice
from bioproxy.operator.inspection import Advisor, Say, survey
from bioproxy.runtime.clock import install
from bioproxy.runtime.errors import ConfigError
from bioproxy.settings.api_keys import ApiKeys
from bioproxy.settings.configuration import Settings
from bioproxy.slot_files.folder import SlotFolder

PATIENCE = 60.0
"""Seconds that a whole survey may take.

Most of it goes into counting the tokens of the templates.  Half of it may end the check of many long templates; twice
as much makes an operator wait for a llama-server that is stuck.
"""


def now(settings: Settings, texts: Iterable[tuple[str, str]], say: Say, reactor: Any = None) -> None:
    """Run the reactor for a survey, and return when that is over.

    Takes `PATIENCE` seconds at most.  `reactor` is another one in tests.  Raises `KeyboardInterrupt` if somebody
    pressed Ctrl-C meanwhile, and any exception that the survey failed with, which would be a bug.
    """
    # Importing this module creates the reactor.  It happens as late as possible, because twistd may still be told to
    # use another kind of reactor.
    if reactor is None:
        from twisted.internet import reactor as real

        install(real)
        reactor = real
    url, path = settings.llama_url, settings.slot_save_path
    # The same parts as `bioproxy.assembly` makes, but only those that a request to llama-server needs.
    # An *agent* is Twisted's word for an HTTP client.  It needs the CA file, and `Upstream` the key for llama-server.
    keys = ApiKeys(settings.api_key_file, settings.llama_api_key_file)
    try:
        # The files are read again, as the proxy reads them when it starts.
        keys.read()
        check_ca_file(settings.llama_ca_file)
        agents = Agents.over_network(reactor, url, settings.llama_ca_file)
    except ConfigError:
        # Key files and CA file are checked on their own, so this mistake is in the list of problems already.
        return say("note: llama-server is not asked, because of the mistakes in the configuration")
    # Both are written by the functions below, which the reactor calls while `run` blocks.
    ended: list[Any] = []
    interrupted: list[bool] = []

    # Three callbacks, each called by the reactor or by a Deferred, in this order.
    def begin() -> None:
        """Start the survey.  Called by the reactor when it runs."""
        # `fromCoroutine` runs the survey up to its first `await` and returns a Deferred for its end.
        llama = LlamaApi(Upstream(url, agents, reactor, keys))
        work = Deferred.fromCoroutine(survey(llama, Advisor(url, path), SlotFolder(path), texts, say, reactor))
        # Callbacks are called in the order in which they were added: first `late`, if the survey failed, and then
        # `finish`, in any case.
        work.addTimeout(PATIENCE, reactor).addErrback(late)
        work.addBoth(finish)

    def finish(result: Any) -> None:
        """Stop the reactor.  Called when the survey is over, with its result or its `Failure`."""
        # After Ctrl-C the reactor stops by itself and closes its connections, which ends the survey as well.
        if not interrupted:
            ended.append(result)
            reactor.stop()

    def late(failure: Failure) -> None:
        """Report a time-out, of the first answer or of the whole survey; other failures stay failures."""
        # Raises the failure again if it is another exception, and so hands it on to `finish`.
        failure.trap(TimeoutError)
        say(Advice("it does not answer in time", "if that lasts, restart it"))

    # Ctrl-C makes the reactor stop in its own way, without an exception.  A trigger is called when a stop begins.
    reactor.addSystemEventTrigger("before", "shutdown", interrupted.append, True)
    reactor.callWhenRunning(begin)
    # Blocks until `finish` or Ctrl-C stops the reactor.
    reactor.run()
    if not ended:
        raise KeyboardInterrupt
    # A `Failure` is an exception as Twisted passes it to callbacks.  Here it is a bug, so its traceback is shown.
    if isinstance(ended[0], Failure):
        ended[0].raiseException()
