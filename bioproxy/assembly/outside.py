"""The world outside: everything by which bioproxy reaches beyond its own process and thread.

A part that wants to send a request, read a file, or have another process compute something does not do so by itself.
It calls a function or an object that was handed in, and all of these are in one value, `Outside`.  `Outside.real` has
the network and the disk; tests make one whose llama-server, threads and disks are in memory.  So the two of them run
the same wiring, and what a test has shown holds for the process.

On Twisted: code that blocks stops everything, because there is one thread.  So a function that may block is handed to
a pool of threads, which gives a Deferred back that fires in the reactor's thread.  Two kinds of threads occur: those of
the reactor's pool, for which the process waits when it ends, and *daemon threads*, for a disk that may hang for ever.

Time is no part of it: that is the reactor's clock, which each part gets by itself.  Does not know the parts.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from twisted.application.service import IService
from twisted.internet.defer import Deferred
from twisted.internet.threads import deferToThreadPool

from bioproxy.child.supervisor import LlamaChild
from bioproxy.llama.connections import Agents
from bioproxy.prompts.template_poller import InThread
from bioproxy.proxy.request_reader import Elsewhere
from bioproxy.runtime.daemon_thread import in_daemon_thread
from bioproxy.runtime.worker import Worker
from bioproxy.settings.configuration import Settings
from bioproxy.slot_files.folder import free_bytes


@dataclass(frozen=True)
class Outside:
    """What the parts need of the world outside.

    Everything that leaves the process goes through here or through the reactor, so a test that replaces both runs all
    of bioproxy in memory.
    """

    agents: Agents
    """Send requests to llama-server."""

    in_thread: InThread
    """Runs a function that blocks, such as reading a file, in a thread; its Deferred fires in the reactor's thread."""

    on_shared_disk: InThread
    """The same for a disk that may hang: such a thread does not keep the process from ending."""

    elsewhere: Elsewhere
    """Runs a function of an open file's content in another process."""

    free_space: Callable[[Path], int] = free_bytes
    """Tells how many bytes are left on the disk of a folder."""

    child: LlamaChild | None = None
    """The llama.cpp that bioproxy starts itself, a service; `None` if an operator starts llama-server."""

    worker: IService | None = None
    """The service behind `elsewhere`, if it has one that must be started and stopped."""

    @classmethod
    def real(cls, reactor: Any, settings: Settings, child: LlamaChild | None = None) -> Outside:
        """Return the network, the reactor's threads, and processes of our own.  Nothing of it is opened or started.

        `child` is the llama.cpp that bioproxy starts itself, if it does.
        """

        # The pool belongs to the reactor that was handed in.  `deferToThread` would take the global one.
        def in_thread(work: Callable[[], Any]) -> Deferred[Any]:
            return deferToThreadPool(reactor, reactor.getThreadPool(), work)

        # The second process, for parsing; it is started as a service.
        worker = Worker(reactor)
        agents = Agents.over_network(reactor, settings.llama_url, settings.llama_ca_file)
        return cls(agents, in_thread, partial(in_daemon_thread, reactor), worker.call, child=child, worker=worker)
