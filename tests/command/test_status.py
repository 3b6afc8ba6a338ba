"""`bioproxy.command.status` and `http_get`: where the operator's port is, and who answers there."""

from __future__ import annotations

import http.client
from typing import Any

from bioproxy.command.http_get import UnixConnection, connection
from bioproxy.command.status import admin_address
from bioproxy.runtime.errors import ConfigError
from bioproxy.settings.configuration import Settings
from tests.support.command import command
from tests.support.folders import FolderTest


class Address(FolderTest):
    """From settings to an address."""

    def test_addresses(self) -> None:
        """The port is found as it was configured; an address that means all of this machine becomes one of it."""
        table: list[tuple[dict[str, Any], str]] = [
            ({}, "http://127.0.0.1:8082"),
            ({"admin_host": "10.0.0.1", "admin_port": 9000}, "http://10.0.0.1:9000"),
            ({"admin_host": "0.0.0.0"}, "http://127.0.0.1:8082"),
            ({"admin_host": "::"}, "http://[::1]:8082"),
            ({"admin_host": "fe80::1"}, "http://[fe80::1]:8082"),
            ({"admin_listen": "tcp:9000"}, "http://127.0.0.1:9000"),
            ({"admin_listen": "tcp:port=9000:interface=10.0.0.1"}, "http://10.0.0.1:9000"),
            ({"admin_listen": "ssl:9000:privateKey=k.pem"}, "https://127.0.0.1:9000"),
            ({"admin_listen": "unix:/run/a.sock"}, "unix:/run/a.sock"),
            ({"admin_listen": r"unix:address=/run/a\:b.sock:mode=600"}, "unix:/run/a:b.sock"),
        ]
        for settings, expected in table:
            self.assertEqual(expected, admin_address(Settings(**settings)))

    def test_unknown(self) -> None:
        """A port that the system chooses, or that is handed in, is not known from the settings."""
        for settings in ({"admin_port": 0}, {"admin_listen": "systemd:domain=INET:index=0"}):
            with self.assertRaises(ConfigError) as caught:
                admin_address(Settings(**settings))
            self.assertIn("--admin ADDRESS", str(caught.exception))

    def test_connections(self) -> None:
        """The kind of connection follows from the scheme; what makes no sense is refused."""
        for address, kind, base in (
            ("http://h:1", http.client.HTTPConnection, ""),
            ("https://h:1/base/", http.client.HTTPSConnection, "/base"),
            ("unix:/run/a.sock", UnixConnection, ""),
        ):
            found, path = connection(address)
            self.assertEqual((kind, base), (type(found), path))
        for address in ("ftp://h", "http://", "h:1", "http://h:x", "http://[h"):
            self.assertRaises(ValueError, connection, address)

    def test_mistakes(self) -> None:
        """A wrong address, a file that is missing or broken, and nobody there are one line each."""
        broken = self.folder / "broken.json"
        broken.write_text("{")
        for words, expected in (
            (("--admin", "ftp://h"), "ftp://h: must be an address like http://127.0.0.1:8082"),
            (("--config", str(broken)), "broken.json: not JSON"),
            (("--config", str(self.folder / "none.json")), "none.json: No such file or directory"),
            (("--admin", "http://127.0.0.1:1"), "no answer from bioproxy at http://127.0.0.1:1: Connection refused"),
        ):
            for more in ((), ("--json",)):
                done = command("status", *words, *more)
                self.assertEqual((1, "", 1), (done.code, done.out, done.err.count("\n")))
                self.assertTrue(done.err.startswith("bioproxy status: "), done.err)
                self.assertIn(expected, done.err)
