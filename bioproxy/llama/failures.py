"""One language for everything that fails on the way to llama-server.

Twisted names a fault after the moment in which it happened: connecting, waiting for the head of the answer, reading its
body, each again different when it was *cancelled*.  `translated` turns all of them into two things: `CancelledError`
(somebody no longer wants the answer) and `UpstreamError` (llama-server is to blame).
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
from bioproxy.runtime.errors import UpstreamError, UpstreamTimeout


@contextmanager
def translated() -> Iterator[None]:
    """Turn whatever Twisted raises for a failed or cancelled call into `UpstreamError` or `CancelledError`."""
    try:
        yield
    except (CancelledError, ConnectingCancelledError):
        raise CancelledError() from None
    except (ResponseNeverReceived, ResponseFailed, RequestGenerationFailed, RequestTransmissionFailed) as error:
        # These wrap what really happened, as a list of Failures (Twisted's exceptions that can be kept).
        if any(Failure.check(reason, CancelledError) for reason in error.reasons):
            raise CancelledError() from None
        trouble = next(filter(None, (tls_trouble(reason.value) for reason in error.reasons)), None)
        raise UpstreamError(trouble or "llama-server broke off before its answer was complete") from None
    except ConnectionRefusedError:
        raise UpstreamError("llama-server refuses connections: is it running?") from None
    except TimeoutError:
        raise UpstreamError(f"llama-server did not accept a connection within {CONNECT_TIMEOUT:g} s") from None
    except (UpstreamError, UpstreamTimeout):  # they speak this language already
        raise
    except Exception as error:  # TLS, name resolution, and whatever else a network has
        raise UpstreamError(f"llama-server cannot be reached: {error}") from None


def tls_trouble(error: object) -> str | None:
    """Return what is wrong with llama-server's certificate, or with TLS, if that is what an error says."""
    if isinstance(error, VerificationError):
        return "llama-server's certificate is not for the host in llama_url"
    if isinstance(error, SSL.Error):
        # A list of what OpenSSL had to complain of: library, function, reason.
        reasons = ", ".join(str(entry[-1]) for entry in (error.args[0] if error.args else ()))
        return f"there is no TLS to llama-server: {reasons or 'the connection broke off'}"
    return None
