"""What `/status` says of this installation, for the commands that the live page tells a new user to type."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

from twisted.internet.address import IPv4Address, IPv6Address, UNIXAddress
from twisted.internet.interfaces import IAddress

from bioproxy.operator.first_steps import FirstSteps, command
from bioproxy.settings.api_keys import ApiKeys
from bioproxy.settings.configuration import Settings
from tests.support.folders import FolderTest
from tests.support.world import WorldTest


class Setup(FolderTest):
    """`FirstSteps`."""

    def setup(self, address: IAddress | None = None, file: Path | None = None, **settings: Any) -> dict[str, Any]:
        """Return what it says when the clients' port is open at an address."""
        steps = FirstSteps(Settings(**settings), file, ApiKeys(settings.get("api_key_file"), None))
        if address is not None:
            steps.port_opened(address)
        return steps.now()

    def test_clients(self) -> None:
        """The clients' port has a URL, and a socket a path as well, as it is really open; neither before it is."""
        for address, listen, clients, socket in (
            (None, None, None, None),
            (IPv4Address("TCP", "127.0.0.1", 40123), None, "http://127.0.0.1:40123", None),
            (IPv6Address("TCP", "::1", 8081), None, "http://[::1]:8081", None),
            (IPv4Address("TCP", "0.0.0.0", 8443), "ssl:8443:privateKey=k.pem", "https://0.0.0.0:8443", None),
            (UNIXAddress(b"/run/b.sock"), "unix:/run/b.sock", "http://localhost", "/run/b.sock"),
            (UNIXAddress(b"b.sock"), "unix:b.sock", "http://localhost", str(Path("b.sock").absolute())),
            (UNIXAddress(None), "systemd:domain=UNIX:index=0", None, None),
        ):
            found = self.setup(address, listen=listen)
            self.assertEqual((clients, socket), (found["clients"], found["socket"]), address)

    def test_configuration(self) -> None:
        """The file is looked for each time; a demonstration has none."""
        file = self.folder / "conf.json"
        steps = FirstSteps(Settings(), file, ApiKeys(None, None))
        for exists in (False, True):
            told = steps.now()
            self.assertEqual((str(file), exists), (told["configuration"], told["has_configuration"]))
            file.write_text("{}")
        told = self.setup(file=None)
        self.assertEqual((None, False), (told["configuration"], told["has_configuration"]))

    def test_slots_and_keys(self) -> None:
        """It says where slot files are, and whether clients need a key; never which."""
        told = self.setup()
        self.assertEqual((None, False), (told["slot_save_path"], told["needs_key"]))
        told = self.setup(slot_save_path=Path("/slots"), api_key_file=Path("/keys"))
        self.assertEqual(("/slots", True), (told["slot_save_path"], told["needs_key"]))

    def test_command(self) -> None:
        """The small command is called by name where the shell finds this installation's, else by its Python."""
        here, other = self.folder / "here", self.folder / "an other"
        for folder in (here, other):
            folder.mkdir()
            (folder / "bioproxy").touch(mode=0o755)
        self.patch(os, "environ", {"PATH": str(here)})
        self.assertEqual("bioproxy", command(str(here / "python")))
        self.assertEqual(f"'{other}/python' -m bioproxy", command(str(other / "python")))


class InStatus(WorldTest):
    """`setup` in `/status`."""

    def test_keys(self) -> None:
        """It is there from the start, and says what is not known."""
        told = self.world().operate("GET", "/status").json()["setup"]
        self.assertEqual(
            {
                "configuration": None,
                "has_configuration": False,
                "clients": None,
                "socket": None,
                "needs_key": False,
                "slot_save_path": None,
                "command": command(sys.executable),
            },
            told,
        )
