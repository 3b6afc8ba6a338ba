"""Which headers cross the proxy."""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase
from twisted.web.http_headers import Headers

from bioproxy.http.headers import end_to_end


class EndToEnd(SynchronousTestCase):
    """`end_to_end`."""

    def crossing(self, *pairs: tuple[bytes, bytes]) -> list[tuple[bytes, list[bytes]]]:
        """Return what crosses: each name as Twisted spells it, with its values."""
        headers = Headers()
        for name, value in pairs:
            headers.addRawHeader(name, value)
        before = list(headers.copy().getAllRawHeaders())
        crossing = end_to_end(headers)
        self.assertEqual(before, list(headers.getAllRawHeaders()), "what came stays as it is")
        return [(name, list(values)) for name, values in crossing.getAllRawHeaders()]

    def test_everything_else_crosses(self) -> None:
        """Unknown, repeated, empty and oddly spelled headers cross, with the values of each name in order."""
        headers = [(b"X-Odd", b"1"), (b"set-cookie", b"a"), (b"Set-Cookie", b"b"), (b"x-odd", b""), (b"Host", b"\xff")]
        expected = [(b"X-Odd", [b"1", b""]), (b"Set-Cookie", [b"a", b"b"]), (b"Host", [b"\xff"])]
        self.assertEqual(expected, self.crossing(*headers))
        self.assertEqual([], self.crossing())

    def test_hop_by_hop(self) -> None:
        """What speaks about one connection stays, however it is spelled; and the length, which Twisted writes."""
        names = (
            b"Connection keep-alive Keep-Alive KEEP-ALIVE Proxy-Authenticate Proxy-Authorization Proxy-Connection"
            b" TE Trailer Transfer-Encoding transfer-encoding Upgrade Content-Length content-length"
        ).split()
        for name in names:
            self.assertEqual([(b"A", [b"1"])], self.crossing((name, b"x"), (b"A", b"1")), name)

    def test_named_by_connection(self) -> None:
        """What `Connection` names stays too, wherever it stands and however it is spelled."""
        headers = [
            (b"X-One", b"1"),
            (b"Connection", b"close, x-one"),
            (b"connection", b"\tX-TWO ,, x-three"),
            (b"x-two", b"2"),
            (b"X-Three", b"3"),
            (b"Close", b"4"),
            (b"X-Four", b"x-one"),
        ]
        self.assertEqual([(b"X-Four", [b"x-one"])], self.crossing(*headers))
