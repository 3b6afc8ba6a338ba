"""Turns everything that can fail on the way to llama-server into two kinds of exceptions.

Twisted names a failure after the phase of the call in which it happened, and each phase has its own way to say
"cancelled":

* connecting: an exception of the endpoint (`ConnectionRefusedError`, `TimeoutError`, name resolution, TLS); cancelled,
  it is `ConnectingCancelledError`;
* sending the request: `RequestGenerationFailed` (the producer of the body failed) or `RequestTransmissionFailed` (the
  connection broke meanwhile);
* waiting for the head of the answer: `ResponseNeverReceived` (not one byte of it came) or `ResponseFailed` (it broke
  off, or is not HTTP).

The last four are wrappers: their attribute `reasons` is a list of what really happened.  A call that is cancelled in
one of these phases fails with such a wrapper too, with a `CancelledError` in that list, because for Twisted cancelling
is one way of losing the connection.

The reasons are `Failure`s.  A `Failure` is Twisted's box for an exception with its traceback, which can be stored and
handed on where nothing is being raised; `check` is its `isinstance`, `value` is the exception inside.

After `translated` there are `CancelledError` (somebody no longer wants the answer; nobody's fault) and `UpstreamError`
(llama-server, or the way to it, is to blame).  Which callers care about either is not known here.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from OpenSSL import SSL
from service_identity import VerificationError
from twisted.internet.defer import CancelledError
from twisted.internet.error import ConnectingCancelledError, ConnectionRefusedError, TimeoutError
from twisted.python.failure import Failure
from twisted.web.client import (
    RequestGenerationFailed,
    RequestTransmissionFailed,
    ResponseFailed,
    ResponseNeverReceived,
)

from bioproxy.llama.connections import CONNECT_TIMEOUT
from bioproxy.runtime.errors import NothingListens, TlsFailed, UpstreamError, UpstreamTimeout


@contextmanager
def translated() -> Iterator[None]:
    """On exit, raise `CancelledError` or `UpstreamError` in place of what a call of Twisted's HTTP client raised.

    `UpstreamError`s and `UpstreamTimeout`s pass unchanged.  Meant for a `with` around an `await`, because an awaited
    `Deferred` that fails raises its exception there.  ``from None`` leaves out Twisted's own traceback, which would say
    nothing about the network.
    """
    try:
        yield
    except (CancelledError, ConnectingCancelledError):
        raise CancelledError() from None
    except (ResponseNeverReceived, ResponseFailed, RequestGenerationFailed, RequestTransmissionFailed) as error:
        # Cancellation first: with it there may be other reasons in the list, consequences of closing the connection.
        if any(Failure.check(reason, CancelledError) for reason in error.reasons):
            raise CancelledError() from None
        # A TLS handshake happens after the connection is made, so its failure arrives as one of sending or waiting.
        trouble = next(filter(None, (tls_trouble(reason.value) for reason in error.reasons)), None)
        # Otherwise the connection ended, cleanly or not: llama-server crashed, was stopped, or answered in no HTTP.
        raise (trouble or UpstreamError("llama-server broke off before its answer was complete")) from None
    except ConnectionRefusedError:
        # Nothing listens at that port.  (A host that is down says nothing at all, and ends in the next case.)
        raise NothingListens("llama-server refuses connections: is it running?") from None
    # Twisted's own class, raised by the endpoint after its time-out; not the one that `addTimeout` raises, nor
    # Python's.
    except TimeoutError:
        raise UpstreamError(f"llama-server did not accept a connection within {CONNECT_TIMEOUT:g} s") from None
    # Raised below this place by our own code: by the reader of a body, for example.
    except (UpstreamError, UpstreamTimeout):
        raise
    # Name resolution, no route to the host, and whatever else a network has.  In Twisted CancelledError is an ordinary
    # Exception, so it would end up here, as somebody's fault, if it were not handled above.
    except Exception as error:
        raise UpstreamError(f"llama-server cannot be reached: {error}") from None


def tls_trouble(error: object) -> TlsFailed | None:
    """Return what is wrong with TLS or with the certificate, or `None` if `error` is about something else."""
    if isinstance(error, VerificationError):
        return TlsFailed("llama-server's certificate is not for the host in llama_url")
    # OpenSSL keeps a queue of errors, each with its library, its function and its reason; the reason is what tells
    # most.
    if isinstance(error, SSL.Error):
        reasons = ", ".join(str(entry[-1]) for entry in (error.args[0] if error.args else ()))
        return TlsFailed(f"TLS with llama-server failed: {reasons or 'the connection broke off'}")
    return None
