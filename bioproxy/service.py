"""What twistd starts: a tree of services, made of the parts that `bioproxy.assembly` makes.

A *service* is Twisted's word for an object that starts and stops.  twistd finds `makeService` by the plugin, calls it
with the parsed options, and runs what it returns: a `MultiService`, which is a service with children.  It starts its
children in the order in which they were added, and stops them in reverse.  So a service can rely on those
above it in this tree::

    bioproxy
    |- demo       makes a model and templates to try, with --demo only
    |- state      reads keys and bioproxy's own records, locks its folders
    |- connections  closes idle connections to llama-server, at the stop
    |- llama.cpp  starts llama.cpp, with the setting `model` only
    |- watch      looks at llama-server every 2 s
    |- poller     looks at the template files every `poll_interval`
    |- warmer     warms templates up
    |- uses       writes which slot files were used, every minute
    |- shared shelf  looks what other bioproxies have saved, every 2 s, with `shared_shelf` only
    |- publishing    gives them what was saved here, with `shared_shelf` only
    |- history    collects the numbers of the last hour, every 5 s
    |- events     updates open live pages
    |- worker     parses large requests in a second process
    |- operator's port
    |- clients' port
    |- hangup     reloads the configuration at SIGHUP
    `- heartbeat  stops the clock while this process cannot run

A start has two halves, and this order is the reason why a service can have both.  In `privilegedStartService` twistd
still has the rights that it was started with, perhaps root's: keys that only root may read are read there, and ports
below 1024 are opened.  Then twistd gives these rights up, if it was told to.  In `startService`
everything else begins: folders are locked, records are read, timers start.  A file that is made in the first half would
belong to root, and the process could not replace it later.  An error in either half ends the process with one line
(`bioproxy.runtime.root_service`): a service that is half started is useless.

The *reactor* is Twisted's event loop.  It is imported here, and for ``--check`` in `bioproxy.operator.survey_run`, and
nowhere else: importing `twisted.internet.reactor` chooses which kind of loop the whole process has.  All other code
gets the reactor handed in, so tests can use a clock that they advance by hand.

This module does not know how the parts depend on each other (`bioproxy.assembly`), nor what any of them does.
"""

from __future__ import annotations

import gc
import os
import signal
from typing import Any

from twisted.application.service import IService, MultiService
from twisted.internet.interfaces import IAddress

from bioproxy.assembly.assemble import assemble
from bioproxy.assembly.outside import Outside
from bioproxy.assembly.parts import Parts
from bioproxy.child.command_line import adapted, free_port, port_wanted
from bioproxy.child.program import reader
from bioproxy.child.supervisor import LlamaChild
from bioproxy.http.connection_limits import allowed_connections
from bioproxy.http.ports import OpenPortWarning, port_service, tcp_endpoint
from bioproxy.llama.connections import IdleConnections, check_ca_file
from bioproxy.operator.hangup import Hangup
from bioproxy.operator.options import Options
from bioproxy.runtime.clock import Heartbeat, install
from bioproxy.runtime.log_output import leaves_it_to_us, log_observer
from bioproxy.runtime.root_service import Root
from bioproxy.runtime.state_folder import State

__all__ = ["Options", "makeService"]
"""What the plugin promises to twistd: an object with these two names (`IServiceMaker`)."""


def makeService(options: Options, reactor: Any = None) -> MultiService:
    """Build everything, start nothing, and return the root of the tree.

    Called once by twistd, before it opens its log, becomes a daemon or gives up rights.  `options` are parsed and
    checked.  `reactor` is the one that twistd runs, unless a test hands in another one, with a clock of its own.
    Raises `CannotStart`, whose text is the one line that the user sees.
    """
    # First of all, because everything that is written from here on gets its rights from it: twistd's log, the records,
    # the sockets.  All of them tell about a user's work, so only the owner may read them.
    os.umask(0o077)
    # twistd passes no reactor.  By now it has chosen one (``--reactor``), so importing it here gets that one.
    # With the real reactor, timers must not follow the wall clock, nor count the time in which the process was stopped.
    # A test's clock has neither problem.
    usable = None
    if reactor is None:
        from twisted.internet import reactor as real

        reactor = real
        usable = install(reactor)
    # The log is chosen before anything can be logged.  As a function, because making the observer opens the file, and
    # this process may still turn out not to start.  If the user told twistd where to log, that stays.
    root = Root()
    # The settings as they are now, and the function that reads the file again with the same command line: a reload
    # calls it, and may find an error there.
    settings, read_settings = options.settings, options.read
    twistd = options.parent
    if twistd is not None and leaves_it_to_us(twistd):
        root.log_observer = lambda: log_observer(options.settings.log_format, twistd, reactor)
    # The demonstration replaces some settings: which model runs, and which templates there are.  A reload must apply
    # the same changes.  It is the first child, so its model is there before anything looks for it.  It is imported only
    # here: no other start needs it.
    demo = None
    if options.demo:
        from bioproxy.demo.service import Demo

        demo = Demo(settings, reactor)
        settings = demo.settings
        read_settings = lambda: demo.adapted(options.read())  # noqa: E731 - it takes the place of another function
        demo.setServiceParent(root)
    # With a model, bioproxy runs llama.cpp itself.  All other parts then know a llama-server at an address like any
    # other; it stays the same for as long as this process runs.
    child = None
    if settings.model is not None:
        port = port_wanted(settings) or free_port()
        settings, read_settings = adapted(settings, port), reader(read_settings, port)
        child = LlamaChild(settings, port, reactor)

    # Making the parts touches no file and no network.  From here on only the order of the children matters.
    parts = assemble(settings, reactor, Outside.real(reactor, settings, child), read_settings, options.configuration)
    # `setServiceParent` adds a service to the end of its parent's list, which is what makes the order of starts.
    for service in services(parts, root, reactor):
        service.setServiceParent(root)
    # The last child.  The first beat must come when all others run: a long start would look like a stall.  At the stop
    # it ends first, and the clock then simply runs, so that the time limits of the others' stops still hold.
    if usable is not None:
        Heartbeat(reactor, usable, parts.metrics.reactor_stall_seconds).setServiceParent(root)
        # Now and then Python's garbage collector goes through all objects, to find those that only refer to each other.
        # After the start these are 70,000, and no client is served in the 30 ms that this takes.  Nearly all of them,
        # such as classes and functions, stay until the end.  Frozen, they are left out.  The reactor calls what it gets
        # from `callWhenRunning` once all services have started.
        reactor.callWhenRunning(gc.freeze)
        # Called as soon as a stop has begun.
        reactor.addSystemEventTrigger("before", "shutdown", ignore_further_stops)
    # What to try is announced when the templates are warm.
    if demo is not None:
        demo.announce(lambda: all(parts.readiness.state(name)[0] == "warm" for name in parts.poller.templates))
    return root


def ignore_further_stops() -> None:
    """Ignore Ctrl-C and SIGTERM from now on, because bioproxy stops already.

    A user who sees nothing happen, while answers in progress are finished, presses Ctrl-C again.  Twisted would stop
    the reactor a second time, which fails, and log a traceback.  How the process ends is decided by the first signal.
    """
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)


def services(parts: Parts, root: Root, reactor: Any) -> list[IService]:
    """Return the services of all parts, in the order in which they start.

    Sets the shutdown of `root` as well, because it needs the service of the clients' port: a stop does not begin with
    the children but with the requests in progress.  Raises `CannotStart` if a port's endpoint makes no sense.
    """
    settings = parts.settings

    # Called at the start and not here, although the parts have a number already: with root's rights, which twistd may
    # give up soon, the limit of open files can be raised further.
    def allow_connections() -> None:
        parts.limits.connections = allowed_connections()

    # The state comes before everything that uses it, and most of all before the ports: nobody may be served while keys
    # are not read.  Three lists, for three moments.  First what may need the rights of the start: keys may belong to
    # root.  Then the folders are locked, so that a second bioproxy fails before it changes anything.  Then the records
    # are read.  Last of these, leftovers of a crash are removed from the slot folder: whatever file the record does not
    # name.
    state = State(
        (parts.keys.read, lambda: check_ca_file(settings.llama_ca_file), allow_connections),
        (parts.state, parts.folder),
        (
            parts.snapshots.load,
            parts.shape_learning.load,
            parts.learned.load,
            lambda: parts.files.tidy_folder(parts.poller.templates),
        ),
        # At the stop, before the folders are released: the uses since the last round of `uses_writing`.
        (parts.snapshots.flush_uses,),
    )
    # Without an endpoint of its own, a port is TCP at the host and number that were configured.  Nothing is opened
    # here: the services do that, in the first half of the start.  The operator's port has no keys; what protects it is
    # that it listens on this machine only, so a warning is logged whenever another machine can reach it.
    operators_port = port_service(
        settings.admin_listen or tcp_endpoint(settings.admin_host, settings.admin_port),
        parts.operators_site(reactor),
        reactor,
        OpenPortWarning("the operator's port", lambda: False).port_opened,
    )

    # Two parts want to know where clients connect.
    def clients_port_opened(address: IAddress) -> None:
        parts.first_steps.port_opened(address)
        parts.open_port_warning.port_opened(address)

    clients_port = port_service(
        settings.listen or tcp_endpoint(settings.host, settings.port),
        parts.clients_site(reactor),
        reactor,
        clients_port_opened,
    )
    # The service of the clients' port is needed for this: closing that port is the shutdown's second step, and keeping
    # the operator's open lets `/status` show how a stop goes on.  When SIGTERM comes, the reactor asks the root to stop
    # and waits for its Deferred.  The root runs this first: requests in progress need everything below, so no child may
    # stop before they are finished.
    root.shutdown = parts.shutdown(clients_port, reactor).say
    # Each one needs only those before it.  At a stop, `MultiService` begins to stop the last one first; it does not
    # wait for one before it goes on to the next, but for all of them together.  What really has to be in sequence is
    # therefore in the shutdown above, which is over by then.
    # The ports come late, so that the first client meets a bioproxy that is complete.  They are opened earlier, in the
    # first half of the start, but the reactor accepts connections only when it runs, after both halves.  The worker
    # stands before them because requests need it; tests do without it.  SIGHUP comes last: a reload while parts are
    # still starting would change settings that they are just reading.
    return [
        state,
        # Begins to stop after all that ask llama-server.
        IdleConnections(parts.outside.agents),
        # After the folders are locked: a second bioproxy must not load a second model before it fails.
        *([parts.outside.child] if parts.outside.child is not None else []),
        parts.watching,
        parts.polling,
        parts.warming,
        parts.uses_writing,
        *([parts.sharing, parts.publishing] if settings.shared_shelf is not None else []),
        parts.history_taking,
        parts.events,
        *([parts.outside.worker] if parts.outside.worker is not None else []),
        operators_port,
        clients_port,
        Hangup(reactor, parts.reload.run),
    ]
