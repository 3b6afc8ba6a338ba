"""`llama_url` may not lead to bioproxy itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from bioproxy.runtime.errors import ConfigError
from bioproxy.settings import configuration as config
from bioproxy.settings.own_address import endpoint_address, refuse_loop


class OwnAddress(SynchronousTestCase):
    """`refuse_loop` and `endpoint_address`."""

    def test_own_port(self) -> None:
        """Bioproxy is not its own llama-server, by whatever name; another host or port is another server."""
        table: tuple[tuple[dict[str, Any], bool], ...] = (
            ({"port": 8080}, True),
            ({"port": 8080, "host": "0.0.0.0", "llama_url": "http://localhost:8080"}, True),
            ({"admin_port": 8080}, True),
            ({"port": 80, "host": "10.1.1.1", "llama_url": "http://10.1.1.1"}, True),
            ({"port": 8080, "llama_url": "http://10.1.1.1:8080"}, False),
            ({"port": 8081}, False),
        )
        for given, refused in table:
            settings = config.load(given, None, Path("/elsewhere"), use_file=False)
            if refused:
                with self.assertRaises(ConfigError, msg=str(given)):
                    refuse_loop(settings)
            else:
                refuse_loop(settings)

    def test_endpoints(self) -> None:
        """An endpoint's host and port are read from its text; one without a port equals no port."""
        for listen, expected in (
            (None, None),
            ("unix:/run/b.sock", ("0.0.0.0", -1)),
            ("tcp:8080", ("0.0.0.0", 8080)),
            ("ssl:port=8443:interface=10.1.1.1:privateKey=k.pem", ("10.1.1.1", 8443)),
            ("tcp6:8080:interface=\\:\\:1", ("::1", 8080)),
        ):
            self.assertEqual(expected, endpoint_address(listen), listen)

    def test_endpoint_is_own(self) -> None:
        """An endpoint counts like host and port."""
        for given in ({"listen": "tcp:8080"}, {"admin_listen": "tcp:8080:interface=127.0.0.1"}):
            with self.assertRaises(ConfigError, msg=str(given)):
                refuse_loop(config.load(given, None, Path("/elsewhere"), use_file=False))
