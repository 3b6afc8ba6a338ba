"""Decides whether a client's request may come in, when its head has arrived and its body has not.

There are two reasons to refuse a request so early: its target is not a path on llama-server, or it has no valid key
where keys are required.  Early matters for the second one.  A body may have many megabytes, and a client without a key
must not be able to fill the memory and the disk with bodies that are refused afterwards.

On Twisted: an HTTP server gets a request in pieces, and the usual `Resource` is called only when the last one is there.
`bioproxy.http.site.CheckedSite` calls `Admission.judge` before, from the middle of Twisted's parser.  There an
exception would end the connection without an answer.  So nothing is raised here: an error is *returned*, the request
keeps it, and `bioproxy.proxy.proxy` answers with it in the format of the client's API.

This module does not know what a request asks for, and no limit of size or number (`bioproxy.http.connection_limits`).
"""

from __future__ import annotations

from twisted.web.http_headers import Headers

from bioproxy.http.targets import origin_form, path_of
from bioproxy.runtime.errors import BadTarget, ProxyError
from bioproxy.settings.api_keys import ApiKeys


class Admission:
    """Judges requests to the clients' port by their heads.

    Invariant: where clients need a key, a request that was not refused has none of a client in its headers any more.
    """

    def __init__(self, keys: ApiKeys) -> None:
        """`keys` has the clients' keys, as they were last read."""
        self._keys = keys

    def judge(self, method: bytes, target: bytes, headers: Headers) -> ProxyError | None:
        """Return why a request is refused, or `None`, and then remove the client's key from `headers`.

        `target` is the request's target as the client wrote it.  Called by the site for each head.
        """
        # CONNECT asks for a tunnel to another host.  What follows its head is not HTTP, so it must not be parsed as
        # the next request on this connection.
        if method == b"CONNECT":
            return BadTarget("CONNECT is not supported")
        try:
            refusal = self._keys.judge(method, path_of(origin_form(target)), headers)
        except BadTarget as error:
            return error
        # The key is judged and removed now and not when the request is sent: a reload of the keys may come in between,
        # and the request was admitted by the old ones.
        if refusal is None:
            self._keys.take(headers)
        return refusal
