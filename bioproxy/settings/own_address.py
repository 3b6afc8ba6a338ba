"""The mistake that makes an endless loop: a `llama_url` that is an address of bioproxy itself.

Only the plain mistakes are found: the same port of this machine, not another name that resolves to it.  Asking the
system for names could take seconds, and the answer may be another one tomorrow.

An endpoint string is Twisted's way to write an address in one text: ``ssl:8443:interface=127.0.0.1:privateKey=key.pem``
names the kind, the port, and parameters.  Twisted turns such a text into an object that listens
(`bioproxy.http.ports` uses them); here only host and port are read from the text.

Pure functions, without a reactor.  Does not know where the settings come from.
"""

from __future__ import annotations

import re
from urllib.parse import urlsplit

from bioproxy.runtime.errors import ConfigError
from bioproxy.settings.configuration import Settings


def refuse_loop(settings: Settings) -> None:
    """Raise `ConfigError` if `llama_url` leads to bioproxy itself.

    Each request would then cause another one, without end.  Only the plain mistakes are found: the same port of this
    machine, not another name that resolves to it.
    """
    # A URL without a port has the default port of its scheme.  `url` has checked it, so `port` raises no error here.
    target = urlsplit(settings.llama_url)
    port = target.port or (443 if target.scheme == "https" else 80)
    # Both of bioproxy's ports count: requests to the operator's port make no loop, but it is not llama-server either.
    # Different names for this machine.  Listening on 0.0.0.0 or :: means all of its addresses, these included.
    local = {"localhost", "127.0.0.1", "::1", "0.0.0.0", "::"}
    own = [
        endpoint_address(settings.listen) or (settings.host, settings.port),
        endpoint_address(settings.admin_listen) or (settings.admin_host, settings.admin_port),
    ]
    for host, own_port in own:
        if port == own_port and (target.hostname == host or {target.hostname, host} <= local):
            raise ConfigError(f"llama_url: {settings.llama_url} is bioproxy's own port")


def endpoint_address(listen: str | None) -> tuple[str, int] | None:
    """Return host and port of a Twisted endpoint string; `None` if there is none.

    The port is -1 for an endpoint without one, such as a Unix socket, so that it equals no port.
    """
    # Such as ``ssl:8443:interface=127.0.0.1:privateKey=key.pem``.  In a value, a colon is written ``\:``, as in the
    # addresses of IPv6.
    if listen is None:
        return None
    number = re.match(r"(?:tcp6?|ssl):(?:port=)?(\d+)", listen)
    host = re.search(r":interface=((?:\\.|[^:])+)", listen)
    return (host[1].replace("\\", "") if host else "0.0.0.0"), int(number[1]) if number else -1
