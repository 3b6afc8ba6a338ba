"""What bioproxy uses of Twisted that is not promised: each private name is still there, and means what it meant.

Twisted's promise of compatibility is for public names.  Where those were not enough, bioproxy uses private ones, and a
new Twisted may change these in any release, without a word.  Then a test here says which one it was, and what relies on
it; many others would only say that something does not work.
"""

from __future__ import annotations

import ast
import importlib
import pkgutil
import textwrap
from typing import Any

from OpenSSL import SSL
from prometheus_client import Counter
from twisted.internet.defer import Deferred
from twisted.internet.protocol import Factory, Protocol
from twisted.internet.ssl import platformTrust
from twisted.internet.testing import MemoryReactorClock, StringTransport
from twisted.protocols.tls import TLSMemoryBIOFactory
from twisted.python.reflect import namedAny
from twisted.web.client import BrowserLikePolicyForHTTPS, HTTPConnectionPool
from twisted.web.http import HTTPChannel
from twisted.web.http_headers import Headers
from zope.interface import directlyProvides

import bioproxy
from tests.support.private_names import (
    ALLOWED,
    CLIENT,
    FACTORY,
    SOURCES,
    TRUST_ROOT,
    PrivateNames,
    imported,
    looked_up,
    overridden,
)


class Listed(PrivateNames):
    """The list above."""

    def test_complete(self) -> None:
        """It has every private name of other packages that bioproxy uses, also by accident, and no others."""
        trees = [ast.parse(source.read_text()) for source in SOURCES]
        found = {name for tree in trees for name in (*imported(tree), *looked_up(tree))}
        classes = 0
        for module in pkgutil.walk_packages(bioproxy.__path__, "bioproxy."):
            # Importing this one runs the command.
            if module.name == "bioproxy.__main__":
                continue
            for each in vars(importlib.import_module(module.name)).values():
                if isinstance(each, type) and each.__module__ == module.name:
                    classes += 1
                    found |= overridden(each)
        self.assertEqual(set(ALLOWED), found)
        self.assertTrue(len(trees) > 50 and classes > 50, (trees, classes))

    def test_there(self) -> None:
        """What is imported of it can be imported."""
        for name in ALLOWED:
            if "." in name:
                try:
                    found = namedAny(name) is not None
                except (ImportError, AttributeError):
                    found = False
                self.check(name, True, found)

    def test_finding(self) -> None:
        """Each way to use a private name is found, and what a module defines itself is not taken for one."""
        source = """
            import os, a._b.c
            from d import _e, f
            from bioproxy.g import _h
            class I(f):
                _own = 1
                def _also(self):
                    self._mine = self._own, self._also, self._theirs
                    os._exit(self.j._k)
                    setattr(self.l, "_m", super()._also)
            """
        tree = ast.parse(textwrap.dedent(source))
        self.assertEqual(["a._b.c", "d._e"], sorted(imported(tree)))
        self.assertEqual({"_theirs", "_k", "_m", "_also"}, set(looked_up(tree)))

        class Mine(HTTPChannel):
            _receivedHeaderCount = 1
            _mine = 1

            def setUp(self) -> None:
                self._savedTimeOut = self._mine

        self.assertEqual({"_receivedHeaderCount", "_savedTimeOut"}, overridden(Mine))

    def test_labels(self) -> None:
        """A metric of prometheus-client has the names of its labels."""
        self.assertEqual(("a", "b"), Counter("x", "y", ["a", "b"], registry=None)._labelnames, ALLOWED["_labelnames"])


class ClientNames(PrivateNames):
    """Twisted's HTTP client."""

    def test_parser(self) -> None:
        """A connection's parser is there after a request, tells where it is, and keeps headers for one connection."""
        for method in ("request", "dataReceived"):
            self.assertTrue(hasattr(namedAny(f"{CLIENT}.HTTP11ClientProtocol"), method), method)
        quiet: list[Any] = []
        protocol = namedAny(f"{CLIENT}.HTTP11ClientProtocol")(quiet.append)
        protocol.makeConnection(StringTransport())
        self.check("_parser", None, getattr(protocol, "_parser", "gone"))
        request = namedAny(f"{CLIENT}.Request")(b"GET", b"/", Headers({b"host": [b"x"]}), None, persistent=True)
        answer = protocol.request(request)
        parser = protocol._parser
        self.check(f"{CLIENT}.STATUS", namedAny(f"{CLIENT}.STATUS"), parser.state)
        for line in (b"HTTP/1.1 304 Not Modified\r\n", b"Connection: x-secret\r\n", b"Content-Length: 5\r\n"):
            protocol.dataReceived(line)
            self.check(f"{CLIENT}.HEADER", namedAny(f"{CLIENT}.HEADER"), parser.state)
        protocol.dataReceived(b"\r\n")
        response = self.successResultOf(answer)
        for name, value in ((b"connection", b"x-secret"), (b"content-length", b"5")):
            self.check("_parser", [value], parser.connHeaders.getRawHeaders(name))
            self.assertFalse(response.headers.hasHeader(name), "Twisted tells it by itself now: no need for _parser")
        self.assertNotIn(parser.state, (namedAny(f"{CLIENT}.STATUS"), namedAny(f"{CLIENT}.HEADER")))
        self.check("_quiescentCallback", [protocol], quiet)
        self.check("_parser", None, protocol._parser)

    def test_decoders(self) -> None:
        """A parser finds the class that decodes chunks by the name of the encoding."""
        chunked = namedAny("twisted.web.http._ChunkedTransferDecoder")
        parser = namedAny(f"{CLIENT}.HTTPClientParser")
        self.check("_transferDecoders", {b"chunked": chunked}, getattr(parser, "_transferDecoders", None))
        pieces: list[bytes] = []
        rests: list[bytes] = []
        decoder = chunked(pieces.append, rests.append)
        decoder.dataReceived(b"1\r\nx\r\n2\r\nyz\r\n0\r\n\r\nrest")
        name = "twisted.web.http._ChunkedTransferDecoder"
        self.check(name, ([b"x", b"yz"], [b"rest"]), (pieces, rests))

    def test_body_transport(self) -> None:
        """What a body's protocol gets for a transport has the connection behind it, and none once all is here."""
        connection = StringTransport()
        protocol = namedAny(f"{CLIENT}.HTTP11ClientProtocol")()
        protocol.makeConnection(connection)
        request = namedAny(f"{CLIENT}.Request")(b"GET", b"/", Headers({b"host": [b"x"]}), None)
        answer = protocol.request(request)
        protocol.dataReceived(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n")
        body = Protocol()
        self.successResultOf(answer).deliverBody(body)
        transport: Any = body.transport
        self.check("_producer", connection, getattr(transport, "_producer", "gone"))
        protocol.dataReceived(b"12345")
        self.check("_producer", None, transport._producer)

    def test_factory(self) -> None:
        """A pool connects with what its `_factory` makes; Twisted's own makes connections with the pool's callback."""
        pool = HTTPConnectionPool(MemoryReactorClock())
        self.check("_factory", namedAny(FACTORY), getattr(pool, "_factory", None))
        made: list[Any] = []

        class Recorder(namedAny(FACTORY)):  # type: ignore[misc]
            def __init__(self, *arguments: Any) -> None:
                super().__init__(*arguments)
                made.append(self)

        class Endpoint:
            def connect(self, factory: Any) -> Deferred[Any]:
                connected.append(factory)
                return Deferred()

        connected: list[Any] = []
        pool._factory = Recorder
        pool.getConnection("key", Endpoint())  # type: ignore[arg-type]
        self.check("_factory", made, connected)
        callback = getattr(connected[0], "_quiescentCallback", None)
        self.check("_quiescentCallback", True, callable(callback))
        protocol = connected[0].buildProtocol(None)
        self.check(FACTORY, namedAny(f"{CLIENT}.HTTP11ClientProtocol"), type(protocol))
        self.check("_quiescentCallback", callback, protocol._quiescentCallback)

    def test_trust(self) -> None:
        """A trust root is asked, with OpenSSL's context, to add what is trusted; the system's can be asked, too."""
        interface = namedAny(TRUST_ROOT)
        self.check(TRUST_ROOT, ["_addCACertsToContext"], list(interface.names(all=True)))
        self.check(
            "_addCACertsToContext", ("context",), interface[next(iter(interface))].getSignatureInfo()["positional"]
        )
        self.check(TRUST_ROOT, True, interface.providedBy(platformTrust()))
        contexts = []

        class Trust:
            def _addCACertsToContext(self, context: Any) -> None:
                platformTrust()._addCACertsToContext(context)
                contexts.append(context)

        trust: Any = Trust()
        directlyProvides(trust, interface)
        creator = BrowserLikePolicyForHTTPS(trust).creatorForNetloc(b"llama", 443)
        # The context is made at the latest when there is a connection.
        connection = TLSMemoryBIOFactory(creator, True, Factory.forProtocol(Protocol)).buildProtocol(None)
        connection.makeConnection(StringTransport())
        self.check("_addCACertsToContext", [SSL.Context], [type(context) for context in contexts])
