"""Who may talk to the operator's port."""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase
from twisted.web.http_headers import Headers

from bioproxy.operator.host_check import HostCheck, name_in
from bioproxy.runtime.errors import Forbidden
from tests.support.world import WorldTest

HOSTS = ("box.example.com", "Desk.Local.", "10.0.0.7")

# Names that this port answers to, as they may stand in `Host`.
KNOWN = (
    *("localhost", "localhost:8082", "LocalHost", "localhost.", "localhost.:8082", "localhost:"),
    *("127.0.0.1", "127.0.0.1:8082", "127.9.9.9", "192.168.1.5:8082", "0.0.0.0", "8.8.8.8"),
    *("[::1]", "[::1]:8082", "[2001:DB8::1]:1", "[::ffff:127.0.0.1]"),
    *("box.example.com", "BOX.example.COM:8082", "box.example.com.", "desk.local", "desk.local.:1", "10.0.0.7"),
)

# Names of others, and what only looks like one that is known.
UNKNOWN = (
    *("", ":8082", ".", "example.com", "evil.example:8082", "localhost.example.com", "xlocalhost", "localhost..x"),
    *("box.example.com.evil", "xbox.example.com", "example.com.", "desk", "127.0.0.1.example.com", "127.0.0.1x"),
    *("127.1", "2130706433", "0x7f.0.0.1", "127.0.0.01", "1.2.3", "1.2.3.4.5", "[]", "[localhost.evil]"),
)


class Judging(SynchronousTestCase):
    """`HostCheck.judge`."""

    def refused(self, method: str, host: str | None, *origins: str, hosts: tuple[str, ...] = HOSTS) -> bool:
        """Tell whether a request is refused."""
        headers = Headers()
        if host is not None:
            headers.addRawHeader(b"host", host.encode())
        for origin in origins:
            headers.addRawHeader(b"origin", origin.encode())
        refusal = HostCheck(hosts).judge(method.encode(), b"/status", headers)
        self.assertIsInstance(refusal, Forbidden | None)
        return refusal is not None

    def test_known(self) -> None:
        """Names of this machine, addresses, and those that are set are answered, with any port, case and final dot."""
        for host in KNOWN:
            for method in ("GET", "POST"):
                self.assertFalse(self.refused(method, host), host)

    def test_unknown(self) -> None:
        """No other names are, whatever the method: a page may have its own name lead here."""
        for host in UNKNOWN:
            for method in ("GET", "HEAD", "POST", "OPTIONS", "PUT"):
                self.assertTrue(self.refused(method, host), host)

    def test_only_what_is_set(self) -> None:
        """Without settings only loopback names and addresses are known."""
        self.assertTrue(self.refused("GET", "box.example.com", hosts=()))
        self.assertFalse(self.refused("GET", "localhost", hosts=()))

    def test_no_host(self) -> None:
        """HTTP/1.0 knows no names; no browser speaks it."""
        self.assertFalse(self.refused("GET", None))

    def test_actions_from_here(self) -> None:
        """Whoever acts from here may: a page of this port's, and programs, which say nothing of pages."""
        for host, origin in (
            ("localhost:8082", "http://localhost:8082"),
            ("LOCALHOST:8082", "http://localhost:8082"),
            ("localhost:8082", "HTTP://LocalHost:8082"),
            ("localhost", "http://localhost"),
            ("[::1]:8082", "http://[::1]:8082"),
            ("box.example.com", "https://box.example.com"),
        ):
            self.assertFalse(self.refused("POST", host, origin), origin)
        self.assertFalse(self.refused("POST", "localhost:8082"))

    def test_actions_from_elsewhere(self) -> None:
        """Whoever acts from elsewhere may not: another page, another port, a page that hides where it is from."""
        for origin in (
            *("http://example.com", "http://localhost", "http://localhost:80", "http://localhost:8083", "null"),
            *("http://127.0.0.1:8082", "http://localhost:8082.example.com", "http://x@localhost:8082", "file://"),
            *("localhost:8082", "http:localhost:8082", "http:///localhost:8082", "?http://localhost:8082", "/"),
            *("http://localhost:8082\\@x", "http://[", "http://[x]", "http://[::1", "http://]", "http://ex\xe4mple"),
            *("chrome-extension://abc", "http://localhost:8082 http://x", "x" * 10_000),
        ):
            for method in ("POST", "PUT", "DELETE", "PATCH", "OPTIONS", "post"):
                self.assertTrue(self.refused(method, "localhost:8082", origin), (method, origin))

    def test_reading_from_elsewhere(self) -> None:
        """Reading is no action: a browser lets no other page see what came, and so whoever asks may."""
        for origin in ("http://example.com", "null", "http://[", ""):
            for method in ("GET", "HEAD"):
                self.assertFalse(self.refused(method, "localhost:8082", origin), origin)

    def test_name_in(self) -> None:
        """The name is what is left without port, brackets, case and final dot."""
        for host, name in (("A.b.:1", "a.b"), ("[::1]:80", "::1"), ("[::1]", "::1"), ("x:", "x"), ("", ""), (":1", "")):
            self.assertEqual(name, name_in(host))


class Port(WorldTest):
    """The operator's port, and that of clients."""

    def test_refused(self) -> None:
        """Who is refused is told why, and neither sees nor does anything; web pages may not even read that."""
        world = self.world(admin_hosts=("box",))
        for method, path, headers in (
            ("GET", "/status", {"Host": "evil.example"}),
            ("GET", "/", {"Host": "evil.example:8082"}),
            ("POST", "/reload", {"Host": "evil.example"}),
            ("POST", "/templates/code/warm", {"Origin": "http://evil.example"}),
            ("POST", "/reload", {"Origin": "null"}),
            ("POST", "/reload", {"Origin": "http://["}),
        ):
            call = world.operate(method, path, **headers)
            self.assertEqual((403, "permission_error"), (call.status, call.json()["error"]["type"]), headers)
            self.assertEqual("close", call.headers["connection"])
        self.assertIn("admin_hosts", world.operate("GET", "/", Host="evil.example").json()["error"]["message"])
        self.assertEqual([], self.flushLoggedErrors())

    def test_answered(self) -> None:
        """Who is known is answered."""
        world = self.world(admin_hosts=("box",))
        for host in ("box", "box:8082", "localhost", "127.0.0.1:8082"):
            self.assertEqual(200, world.operate("GET", "/status", Host=host).status)

    def test_clients_port(self) -> None:
        """The clients' port answers to every name, and to every page: that is what llama-server does."""
        world = self.world()
        for headers in ({"Host": "evil.example"}, {"Origin": "http://evil.example"}, {"Origin": "null"}):
            self.assertEqual(200, world.send("POST", "/tokenize", b'{"content": "x"}', **headers).status)
