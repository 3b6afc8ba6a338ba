"""What twistd starts: a tree of services, made of the parts that `bioproxy.assembly` makes.

A *service* is Twisted's word for something that starts and stops.  twistd calls `makeService` with the parsed options
and runs what it returns.  The root starts its children in this order and stops them in reverse::

    bioproxy
    |- demo       a llama.cpp of its own, with --demo only
    |- state      keys and the proxy's own records are read, its folders locked
    |- watch      looks at llama-server every 2 s
    |- poller     looks at the template files every `poll_interval`
    |- warmer     warms templates up
    |- history    the numbers of the last hour, every 5 s
    |- events     tells open pages what happens
    |- worker     reads large requests, in a process of its own
    |- operator's port
    |- clients' port
    |- hangup     SIGHUP has the configuration read again
    `- heartbeat  has time stand still while nothing here can run

A start has two halves.  In `privilegedStartService` twistd still has the rights that it was started with, perhaps
root's: keys are read and ports opened there.  In `startService` it has given them up, and everything else begins.

The *reactor* is Twisted's event loop.  It is imported here, and for ``--check`` in `bioproxy.operator.survey_run`, and
nowhere else: importing it chooses it, and whoever gets it handed in can be tested with another clock.
"""

from __future__ import annotations

import os
from typing import Any

from twisted.application.service import IService, MultiService

from bioproxy.assembly import Outside, Parts, assemble
from bioproxy.http.connection_limits import allowed_connections
from bioproxy.http.ports import OpenPortWarning, port_service, tcp_endpoint
from bioproxy.llama.connections import check_ca_file
from bioproxy.operator.hangup import Hangup
from bioproxy.operator.options import Options
from bioproxy.runtime.clock import Heartbeat, install
from bioproxy.runtime.log_output import leaves_it_to_us, log_observer
from bioproxy.runtime.root_service import Root
from bioproxy.runtime.state_folder import State

__all__ = ["Options", "makeService"]


def makeService(options: Options, reactor: Any = None) -> MultiService:
    """Build everything.  Called by twistd, which finds this name and `Options` through the plugin.

    `reactor` is the one that twistd runs, unless a test hands in another one, with a clock of its own.
    """
    os.umask(0o077)  # whatever this process writes, twistd's log too, is for its owner's eyes only
    usable = None
    if reactor is None:
        from twisted.internet import reactor as real

        reactor = real
        usable = install(reactor)
    root = Root()
    settings, read_settings = options.settings, options.read
    twistd = options.parent
    if twistd is not None and leaves_it_to_us(twistd):
        root.log_observer = lambda: log_observer(options.settings.log_format, twistd, reactor)
    demo = None
    if options.demo:
        from bioproxy.demo.service import Demo

        demo = Demo(settings, reactor)
        settings = demo.settings
        read_settings = lambda: demo.adapted(options.read())  # noqa: E731 - it takes the place of another function
        demo.setServiceParent(root)

    parts = assemble(settings, reactor, Outside.real(reactor, settings), read_settings)
    for service in services(parts, root, reactor):
        service.setServiceParent(root)
    if usable is not None:
        Heartbeat(reactor, usable, parts.metrics.reactor_stall_seconds).setServiceParent(root)
    if demo is not None:
        parts.watch.starting = demo.starting
        demo.announce(lambda: all(parts.warmer.state(name)[0] == "warm" for name in parts.poller.templates))
    return root


def services(parts: Parts, root: Root, reactor: Any) -> list[IService]:
    """Return the services of all parts, in the order in which they start; a stop of `root` begins with its shutdown."""
    settings = parts.settings

    def allow_connections() -> None:
        parts.limits.connections = allowed_connections()

    state = State(
        (parts.keys.read, lambda: check_ca_file(settings.llama_ca_file), allow_connections),
        (parts.state, parts.folder),
        (
            parts.snapshots.load,
            parts.shape_learning.load,
            lambda: parts.files.tidy_folder(parts.poller.templates),
        ),
    )
    operators_port = port_service(
        settings.admin_listen or tcp_endpoint(settings.admin_host, settings.admin_port),
        parts.operators_site(reactor),
        reactor,
        OpenPortWarning("the operator's port", lambda: False).port_opened,
    )
    clients_port = port_service(
        settings.listen or tcp_endpoint(settings.host, settings.port),
        parts.clients_site(reactor),
        reactor,
        parts.open_port_warning.port_opened,
    )
    root.shutdown = parts.shutdown(clients_port, reactor).say
    return [
        state,
        parts.watching,
        parts.polling,
        parts.warming,
        parts.history_taking,
        parts.events,
        *([parts.outside.worker] if parts.outside.worker is not None else []),
        operators_port,
        clients_port,
        Hangup(reactor, parts.reload.run),
    ]
