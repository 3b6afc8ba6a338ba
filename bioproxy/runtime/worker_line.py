"""The connection to the process that reads large requests: questions with a file go there, answers come back.

A stream of bytes has no messages in it.  Twisted has protocols that make messages of it: `Int32StringReceiver` writes
the length in front of each, in 32 bits, and calls `stringReceived` when one is whole, in however many pieces it came.
What is written and what is read meet here in one `Deferred`: `ask` returns it, and the answer fires it.

The socket is a Unix one, because a *file descriptor* can be passed over it: the kernel gives the other process a copy.
So the body of a request is read from the very file that bioproxy keeps it in.

The other side is `bioproxy.runtime.worker_main`.  Questions and answers are pickled, which is safe because both sides
are bioproxy.

Does not know what is asked, nor anything of the process (`bioproxy.runtime.worker`).
"""

from __future__ import annotations

import pickle
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.error import ConnectionLost
from twisted.internet.interfaces import IUNIXTransport
from twisted.protocols.basic import Int32StringReceiver
from twisted.python.failure import Failure

LARGEST_RESULT = 16 << 20
"""Bytes of a result at most.

A result has positions and fingerprints, and one text of limited size.  Half of it is still enough for usual requests;
twice as much only takes more memory in the process that must not grow.
"""


class Line(Int32StringReceiver):
    """The connection to the child.

    A stream of bytes has no messages in it, so each message has its length in front, in 32 bits; `Int32StringReceiver`
    collects the bytes until a message is whole.  A file descriptor goes with each question.  There is at most one
    question without an answer.
    """

    MAX_LENGTH = LARGEST_RESULT
    """Bytes of a message at most.  Twisted closes the connection when a longer one is announced."""

    transport: Any
    """The socket, set by Twisted."""

    lost = False
    """Whether the connection was lost.  Once it was, it stays so."""

    _answer: Deferred[tuple[bool, Any]] | None = None

    def ask(self, descriptor: int, question: bytes) -> Deferred[tuple[bool, Any]]:
        """Send a question and a file descriptor.

        Fires with whether the function succeeded, and its result or its exception.  Fails with `ConnectionLost`
        when the connection is lost, because the child dies of a limit.  Cancelling only forgets the question.
        """
        # A Deferred without a canceller: if it is cancelled, it fires with `CancelledError`, and a value that arrives
        # after that is dropped once.
        answer: Deferred[tuple[bool, Any]] = Deferred()
        self._answer = answer
        # In this order: Twisted sends the descriptor together with the next bytes that it writes, so it is there when
        # the child has the question.
        IUNIXTransport(self.transport).sendFileDescriptor(descriptor)
        self.sendString(question)
        return answer

    def stringReceived(self, string: bytes) -> None:
        """Hand on the answer.  Called by Twisted when all of it is here.

        `pickle.loads` would run any code that a hostile sender wants; here the sender is bioproxy's own child.
        """
        # The attribute is cleared before the Deferred fires: firing runs the coroutine that waits, right here, and that
        # may ask the next question before `callback` returns.
        answer, self._answer = self._answer, None
        if answer is not None:
            answer.callback(pickle.loads(string))

    def connectionLost(self, reason: Failure) -> None:  # type: ignore[override]
        """Report that no answer will come.  Called by Twisted, also when the child is gone."""
        self.lost = True
        answer, self._answer = self._answer, None
        # A Deferred that was cancelled, by the time-out or by a client that hung up, has fired already, and Twisted
        # allows each Deferred to fire only once.
        if answer is not None and not answer.called:
            answer.errback(ConnectionLost())

    def close(self) -> None:
        """Close the connection without sending what is still buffered.

        `transport` is `None` if the connection never came to be.  `connectionLost` is called in any case, a moment
        later, and reports to the coroutine that waits.
        """
        if self.transport is not None:
            self.transport.abortConnection()
