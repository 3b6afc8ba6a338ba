"""The wiring, and the demonstration's child process."""

from __future__ import annotations

import gc
import importlib.util
import os
import sys
from io import StringIO
from itertools import pairwise
from pathlib import Path
from typing import Any

import twisted.internet
from twisted.application.service import MultiService
from twisted.internet.address import IPv4Address, IPv6Address, UNIXAddress
from twisted.internet.error import ProcessDone
from twisted.logger import capturedLogs
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase

from bioproxy.demo import demo_model, tiny_model
from bioproxy.demo.service import Demo
from bioproxy.http.ports import OpenPortWarning
from bioproxy.llama.model_identity import Model
from bioproxy.operator.options import Options
from bioproxy.proxy.shutdown import FLUSHING
from bioproxy.runtime.clock import UsableTime
from bioproxy.runtime.errors import ConfigError
from bioproxy.runtime.state_folder import StateFolder
from bioproxy.service import makeService
from bioproxy.settings.configuration import Settings
from bioproxy.slot_files.record import PREFIX, Snapshot, SnapshotRecord
from tests.support.fakes import MAGIC
from tests.support.network import Call, Reactor
from tests.support.world import CODE, KEY, WorldTest

PARTS = [
    "state",
    "connections",
    "watch",
    "poller",
    "warmer",
    "uses",
    "history",
    "events",
    "worker",
    "operator's port",
    "clients' port",
    "hangup",
]


class ServiceTest(WorldTest):
    """Folders of the test's own, and a reactor without a network."""

    def setUp(self) -> None:
        """Let nothing of the user's be touched."""
        super().setUp()
        folders = {f"XDG_{name}_HOME": str(self.folder / name) for name in ("CONFIG", "STATE", "CACHE")}
        self.patch(os, "environ", {**os.environ, **folders})
        self.output = StringIO()
        self.patch(sys, "__stdout__", self.output)
        self.reactor = Reactor()

    def make(self, *arguments: str) -> MultiService:
        """Make the service with these options."""
        options = Options()
        options.parseOptions(list(arguments))
        return makeService(options, self.reactor)

    def start(self, *arguments: str) -> MultiService:
        """Make it and start it, as twistd does."""
        root = self.make(*arguments)
        root.privilegedStartService()
        root.startService()
        return root

    def stop(self, root: MultiService) -> None:
        """Stop it, and wait for that."""
        stopped: Any = root.stopService()
        self.reactor.advance(FLUSHING)
        self.successResultOf(stopped)


class Exposed(SynchronousTestCase):
    """`OpenPortWarning`."""

    def test_warning(self) -> None:
        """It warns of a port that others reach and nothing protects, at each look; of nothing before it listens."""
        for address, reachable in (
            (IPv4Address("TCP", "0.0.0.0", 1), True),
            (IPv4Address("TCP", "127.0.0.1", 1), False),
            (IPv6Address("TCP", "::", 1), True),
            (UNIXAddress("/run/socket"), False),
        ):
            protected = True
            warning = OpenPortWarning("the port", lambda: protected)  # noqa: B023
            with capturedLogs() as logs:
                warning.port_opened(address)
                self.assertEqual(0, len(logs))
                protected = False
                warning.check()
                warning.check()
                OpenPortWarning("another port", lambda: False).check()
            self.assertEqual(2 * reachable, len(logs), address)


class Wiring(ServiceTest):
    """`makeService`."""

    def test_tree(self) -> None:
        """The tree has the documented parts in the documented order, and making it opens, reads and sends nothing."""
        root = self.make("--prefix", "@code=missing.txt")
        self.assertEqual(PARTS, [service.name for service in root])
        self.assertEqual(([], []), (self.reactor.tcpServers, self.reactor.tcpClients))
        self.assertEqual([], self.reactor.getDelayedCalls())
        self.assertEqual([], list(self.folder.iterdir()))

    def test_demo_tree(self) -> None:
        """With `--demo` what makes the model comes first, and llama.cpp is started when the folders are locked."""
        self.assertEqual(
            ["demo", "state", "connections", "llama.cpp", *PARTS[2:]], [service.name for service in self.make("--demo")]
        )

    def test_time(self) -> None:
        """The reactor that it takes by itself goes by usable time from then on; one that is handed in is left alone."""
        self.assertEqual(PARTS, [service.name for service in self.make()])
        self.assertIs(self.reactor, getattr(self.reactor.seconds, "__self__", None))
        self.patch(twisted.internet, "reactor", self.reactor)
        options = Options()
        options.parseOptions([])
        root = makeService(options)
        self.assertEqual([*PARTS, "heartbeat"], [service.name for service in root])
        self.assertIsInstance(getattr(self.reactor.seconds, "__self__", None), UsableTime)

    def test_garbage_collection(self) -> None:
        """What is there after the start is left out by the garbage collector, but in no process that is not bioproxy's.

        Otherwise it would go through all of it again and again, while no client is served.
        """
        self.make()
        self.assertEqual([], self.reactor.whenRunningHooks)
        self.patch(twisted.internet, "reactor", self.reactor)
        options = Options()
        options.parseOptions([])
        makeService(options)
        self.addCleanup(gc.unfreeze)
        # As `run` does it when everything has started.
        for function, arguments, named in self.reactor.whenRunningHooks:
            function(*arguments, **named)
        self.assertGreater(gc.get_freeze_count(), 10_000)

    def test_ports(self) -> None:
        """Clients and operator have a port each, on the addresses of the settings, and get what is meant for them."""
        self.start("--host", "::1", "--port", "1234", "--admin-port", "1235")
        (admin_port, admin, _, admin_host), (port, clients, _, host) = self.reactor.tcpServers
        self.assertEqual((("127.0.0.1", 1235), ("::1", 1234)), ((admin_host, admin_port), (host, port)))
        for site, status in ((admin, 200), (clients, 0)):
            call = Call(site, b"GET /status HTTP/1.1\r\nHost: localhost\r\n\r\n")  # type: ignore[arg-type]
            self.assertEqual(status, call.status)
            call.hang_up()
        self.assertEqual(PARTS[-3:-1], [site.logPrefix() for site in (admin, clients)])  # type: ignore[attr-defined]
        self.assertNotEqual([], [client for client in self.reactor.tcpClients if client[1] == 8080])

    def test_reads_templates(self) -> None:
        """The templates are read at the start, in a thread."""
        file = self.template("code", CODE)
        self.start("--prefix", f"@code={file}")
        call = Call(self.reactor.tcpServers[0][1], b"GET /status HTTP/1.1\r\nHost: localhost\r\n\r\n")  # type: ignore[arg-type]
        self.assertEqual(("cold", None), tuple(call.json()["templates"][0][key] for key in ("state", "error")))

    def test_sweeps(self) -> None:
        """At the start what a crash left in the slot folder is removed: of these templates, and nothing else."""
        folder = self.folder / "slots"
        folder.mkdir(0o700)
        for name in ("code.bin", "code.part.bin", "other.bin"):
            (folder / name).write_bytes(MAGIC)
        self.start("--prefix", f"@code={self.template('code', CODE)}", "--slot-save-path", str(folder))
        self.assertEqual(["other.bin"], [file.name for file in folder.iterdir()])

    def test_records(self) -> None:
        """At the start the records of slot files are read: what they name stays."""
        slots = self.folder / "slots"
        slots.mkdir(0o700)
        (slots / "code.new.bin").write_bytes(MAGIC)
        state = StateFolder(self.folder / "state")
        state.open()
        entry = Snapshot("code.new.bin", KEY, 1, len(MAGIC), Model("", ()), "2026-01-01T00:00:00+00:00")
        SnapshotRecord(state).put("code", PREFIX, entry)
        state.close()
        template = self.template("code", CODE)
        arguments = ("--prefix", f"@code={template}", "--slot-save-path", str(slots))
        self.start(*arguments, "--state-dir", str(self.folder / "state"))
        self.assertEqual(["code.new.bin"], [file.name for file in slots.iterdir()])

    def test_stop(self) -> None:
        """Stopping ends everything that was begun, and lets go of the folder; it can be used again."""
        root = self.start()
        folder = self.folder / "STATE" / "bioproxy"
        other = StateFolder(folder)
        self.assertRaises(ConfigError, other.open)
        self.stop(root)
        other.open()
        other.close()
        clients = len(self.reactor.tcpClients)
        self.reactor.advance(60)
        self.assertEqual(clients, len(self.reactor.tcpClients))
        self.assertEqual([], self.flushLoggedErrors())

    def test_port_taken(self) -> None:
        """A port in use ends the start with one line that names it."""
        for taken in (8081, 8082):
            self.reactor = Reactor()
            self.reactor.taken = {taken}
            error = self.assertRaises(SystemExit, self.start)
            where = rf"127\.0\.0\.1:{taken}"
            self.assertRegex(str(error), rf"\Abioproxy: cannot listen on {where}: Address (already )?in use\Z")
            self.assertNotIn(error.code, (None, 0))

    def test_bad_folder(self) -> None:
        """A folder for the records that cannot be used, or that another bioproxy uses, ends the start with one line."""
        file = self.template("file", "")
        other = StateFolder(self.folder / "used")
        other.open()
        self.addCleanup(other.close)
        for folder, words in (
            (file, "state_dir: .*file.txt: .*"),
            (self.folder / "used", "state_dir: another bioproxy .*"),
        ):
            error = self.assertRaises(SystemExit, self.start, "--state-dir", str(folder))
            self.assertRegex(str(error), rf"\Abioproxy: {words}\Z")
            self.assertNotIn(error.code, (None, 0))


class Demonstration(ServiceTest):
    """`Demo`."""

    def setUp(self) -> None:
        """Make one, where no real model is installed."""
        super().setUp()
        nothing = self.folder / "site" / demo_model.PACKAGE
        nothing.mkdir(parents=True)
        (nothing / "__init__.py").touch()
        self.patch(sys, "path", [str(nothing.parent), *sys.path])
        importlib.invalidate_caches()
        self.patch(Demo, "size", tiny_model.TINY)
        self.demo = Demo(Settings(), self.reactor)
        self.home = self.folder / "CACHE" / "bioproxy" / "demo"

    def test_settings(self) -> None:
        """The demonstration keeps to its own folder, and has its templates beside the user's own."""
        settings = Demo(Settings(port=1, prefixes={"@mine": Path("mine.txt")}), self.reactor).settings
        self.assertEqual((1, ["@manual", "@island", "@mine"]), (settings.port, list(settings.prefixes)))
        for path in (settings.slot_save_path, settings.state_dir, settings.prefixes["@manual"]):
            assert path is not None
            self.assertIn(self.home, path.parents)
        self.demo.startService()
        for template in self.demo.settings.templates:
            self.assertIn("<{message}>", template.path.read_text())

    def test_edits_stay(self) -> None:
        """Templates that were edited stay as they are; records of the last time do not."""
        self.demo.startService()
        file = self.home / "templates" / "manual.txt"
        file.write_text(CODE)
        self.demo.settings.state_dir.mkdir()
        (self.demo.settings.state_dir / "snapshots.json").write_text("{}")
        again = Demo(Settings(), self.reactor)
        again.startService()
        self.assertEqual(CODE, file.read_text())
        self.assertFalse(self.demo.settings.state_dir.exists())
        self.assertEqual(1, self.output.getvalue().count("making a model"))

    def test_second(self) -> None:
        """A second demonstration leaves the records of one that runs alone, and does not start."""
        running = StateFolder(self.demo.settings.state_dir)
        running.open()
        self.addCleanup(running.close)
        running.write("uses.json", {})
        self.assertIn("another bioproxy", str(self.assertRaises(ConfigError, self.demo.startService)))
        self.assertEqual({}, running.read_strictly("uses.json"))

    def test_child(self) -> None:
        """llama.cpp is started with the demonstration's model and folder, by the service for the setting `model`."""
        root = self.start("--demo", "--llama-url", "http://other")
        protocol, arguments, environment = self.reactor.processes[-1]
        protocol.processEnded(Failure(ProcessDone(0)))
        self.stop(root)
        self.assertEqual([sys.executable, "-m", "bioproxy.child.wheel_server"], arguments[:3])
        options = dict(pairwise(arguments))
        self.assertEqual(str(self.home / "model.gguf"), options["--model"])
        self.assertEqual(f"{self.home / 'slots'}/", options["--slot-save-path"])
        self.assertEqual("127.0.0.1", options["--host"])
        self.assertIn(str(Path(__file__).parent.parent), environment["PYTHONPATH"].split(os.pathsep))

    def test_announcement(self) -> None:
        """When all is ready, the question is asked; what to try is printed once, whatever came of that."""
        ready = False
        self.demo.announce(lambda: ready)
        self.demo.startService()
        self.reactor.advance(5)
        self.assertNotIn("curl", self.output.getvalue())
        ready = True
        self.reactor.advance(0.2)
        self.assertEqual([("127.0.0.1", 8081)], [client[:2] for client in self.reactor.tcpClients])
        self.reactor.tcpClients[0][2].clientConnectionFailed(
            self.reactor.connectors[0], Failure(ConnectionRefusedError())
        )
        self.reactor.pump([1, 5])
        text = self.output.getvalue()
        self.assertEqual(1, text.count("The question was not answered"))
        self.assertEqual(1, text.count("Try it yourself"))
        self.assertEqual(1, text.count("bioproxy is ready"))
        for words in (
            "http://127.0.0.1:8081/v1/chat/completions",
            "http://127.0.0.1:8082/status",
            "@manual",
            str(self.home),
        ):
            self.assertIn(words, text)
        self.demo.stopService()
        self.assertEqual([], self.reactor.getDelayedCalls())

    def test_announcement_stops(self) -> None:
        """Nothing is announced after the end, and the question in progress ends; a closed terminal is no trouble."""
        self.demo.announce(lambda: True)
        self.patch(sys, "__stdout__", None)
        self.demo.startService()
        self.reactor.triggers["before"]["shutdown"][-1][0]()
        self.assertTrue(all(connector.stoppedConnecting for connector in self.reactor.connectors))
        other = Demo(Settings(), self.reactor)
        other.announce(lambda: False)
        other.startService()
        other.stopService()
        self.assertEqual([], self.reactor.getDelayedCalls())

    def test_not_installed(self) -> None:
        """Where a package is missing, one line says which, and how to get it."""
        find = importlib.util.find_spec
        self.patch(importlib.util, "find_spec", lambda name: None if name == "gguf" else find(name))
        error = self.assertRaises(SystemExit, Demo, Settings(), self.reactor)
        self.assertEqual("bioproxy: --demo needs gguf: pip install 'bioproxy[demo]'", str(error))
