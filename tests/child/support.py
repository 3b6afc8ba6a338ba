"""A llama.cpp of bioproxy's own whose processes are in the test's hands."""

from __future__ import annotations

from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.error import ProcessDone, ProcessTerminated
from twisted.python.failure import Failure

from bioproxy.child.command_line import adapted, free_port
from bioproxy.child.earlier_starts import FIRST_PAUSE
from bioproxy.child.startup import LOOK
from bioproxy.child.supervisor import LlamaChild
from bioproxy.runtime.errors import LlamaNotRunning
from bioproxy.runtime.metrics import Metrics
from bioproxy.settings.configuration import Settings
from tests.support.folders import FolderTest
from tests.support.network import Reactor

PAUSE = FIRST_PAUSE * 1.3
"""Longer than the first pause, with its random part."""


class ChildTest(FolderTest):
    """`LlamaChild`, with processes in the test's hands."""

    def setUp(self) -> None:
        """Make one that was not started."""
        super().setUp()
        model = self.folder / "model.gguf"
        model.write_bytes(b"GGUF")
        port = free_port()
        self.settings = adapted(Settings(model=model, state_dir=self.folder), port)
        self.reactor = Reactor()
        self.child = LlamaChild(self.settings, port, self.reactor)
        self.metrics = Metrics()
        self.up = False
        self.looks = 0
        self.child.look, self.child.is_up, self.child.count_restart = (
            self.look,
            lambda: self.up,
            self.metrics.llama_restarts,
        )

    async def look(self) -> None:
        """Count the look."""
        self.looks += 1

    @property
    def process(self) -> Any:
        """The protocol of the latest process."""
        return self.reactor.processes[-1][0]

    def answer(self) -> None:
        """Let llama.cpp answer from now on, and be looked at."""
        self.up = True
        self.reactor.advance(LOOK)

    def end(self, *lines: str, code: int = 1) -> None:
        """End the process, after these lines."""
        self.up = False
        self.process.outReceived("".join(f"{line}\n" for line in lines).encode())
        self.process.processEnded(Failure(ProcessTerminated(code) if code else ProcessDone(0)))

    def ready(self, seconds: float = 100.0) -> Deferred[None]:
        """Wait for it."""
        return Deferred.fromCoroutine(self.child.ready(seconds))

    def failure(self, waiting: Deferred[None]) -> LlamaNotRunning:
        """Return the error with which a wait ended."""
        value = self.failureResultOf(waiting, LlamaNotRunning).value
        assert isinstance(value, LlamaNotRunning)
        return value
