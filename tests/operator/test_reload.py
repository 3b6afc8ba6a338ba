"""Reading the configuration again."""

from __future__ import annotations

import json
import os
import signal
from typing import Any

from twisted.logger import capturedLogs

from bioproxy.prompts.templates import Template
from tests.settings.test_configuration import KEYS
from tests.support.network import Call, Reactor
from tests.support.world import CODE, WorldTest, logged
from tests.test_service import ServiceTest

RESTART = {
    *("host", "port", "listen", "admin_host", "admin_port", "admin_listen"),
    *("llama_url", "model", "llama_ca_file", "slot_save_path", "state_dir", "log_format"),
}
"""What only a restart can change."""


class ReloadTest(ServiceTest):
    """A service with a configuration file."""

    def setUp(self) -> None:
        """Start it."""
        super().setUp()
        self.file = self.folder / "conf.json"
        self.template("code", CODE)
        self.template("story", "Once. <{message}>")
        for name in ("keys", "key"):
            self.folder.joinpath(name).write_text("secret")
            self.folder.joinpath(name).chmod(0o600)
        self.write(prefixes={"@code": "code.txt"})
        self.root = self.start("--config", str(self.file))
        self.addCleanup(lambda: self.stop(self.root))

    def write(self, **settings: Any) -> None:
        """Write the file anew."""
        self.file.write_text(json.dumps(settings))

    def operate(self, line: str, more: str = "") -> Call:
        """Send a request to the operator's port; `more` are headers."""
        head = f"{line} HTTP/1.1\r\nHost: localhost\r\n{more}\r\n"
        return Call(self.reactor.tcpServers[0][1], head.encode())  # type: ignore[arg-type]

    def reload(self) -> Any:
        """Reload; return what is said of it."""
        call = self.operate("POST /reload")
        self.assertEqual(200, call.status, call.body)
        return call.json()

    def templates(self) -> list[str]:
        """Return the templates in `/status`."""
        return [each["name"] for each in self.operate("GET /status").json()["templates"]]

    def test_nothing_new(self) -> None:
        """The same file changes nothing."""
        self.assertEqual({"changed": [], "needs_restart": []}, self.reload())

    def test_every_setting(self) -> None:
        """Every setting is taken over, or said to need a restart: that every time, since the file still has it."""
        self.write()
        self.reload()
        for key, (_, in_file, _) in KEYS.items():
            self.write(**{key: in_file})
            # Two make no sense without a model, see tests/child, and the last one without a slot folder, see below.
            if key in ("prefixes", "llama_server", "llama_args", "shared_shelf"):
                self.write()
                continue
            with capturedLogs() as logs:
                said = self.reload()
            kind = "needs_restart" if key in RESTART else "changed"
            self.assertEqual({"changed": [], "needs_restart": [], kind: [key]}, said)
            self.assertEqual(key in RESTART, f"only a restart can change {key}" in logged(logs))
            again = {"changed": [], "needs_restart": [key] if key in RESTART else []}
            self.assertEqual(again, self.reload())
            self.write()
            self.reload()

    def test_shared_shelf(self) -> None:
        """A shared shelf needs a restart."""
        self.write()
        self.reload()
        self.write(slot_save_path="slots", shared_shelf="shelf")
        said = self.reload()
        self.assertEqual(([], {"slot_save_path", "shared_shelf"}), (said["changed"], set(said["needs_restart"])))

    def test_templates(self) -> None:
        """Templates come and go; of those that went no number is left."""
        self.assertIn('template="code"', self.operate("GET /metrics").body.decode())
        self.write(prefixes={"@story": "story.txt"})
        self.assertEqual({"changed": ["prefixes"], "needs_restart": []}, self.reload())
        self.assertEqual(["story"], self.templates())
        self.reactor.advance(3)
        numbers = self.operate("GET /metrics").body.decode()
        self.assertNotIn('template="code"', numbers)
        self.assertIn('template="story"', numbers)

    def test_another_file(self) -> None:
        """A template that is another file now is read anew; one that stays is not."""
        self.write(prefixes={"@code": "story.txt"})
        self.reload()
        self.reactor.advance(3)
        status = self.operate("GET /status").json()["templates"][0]
        self.assertEqual(("code", str(self.folder / "story.txt")), (status["name"], status["path"]))

    def test_nothing_old_is_told(self) -> None:
        """What was known of a template is forgotten when it goes, or when its name is another file's."""
        world = self.ready_world({"code": CODE, "story": "Once. <{message}>"})
        self.successResultOf(world.start(world.warmer.round))
        code, story = world.settings.templates
        world.schedule.want("code")
        gone = world.poller.set_templates([story])
        self.assertEqual({"code"}, gone)
        for name in gone:
            world.parts.forgetting.forget(name)
        self.assertEqual((set(), {"story"}), (world.schedule.wanted, set(world.readiness.tokens)))
        self.assertEqual(set(), world.poller.set_templates([story, code]))
        self.assertEqual({"code"}, world.poller.set_templates([story, Template(code.name, code.prefix, story.path)]))

    def test_all_or_nothing(self) -> None:
        """A file that is wrong anywhere changes nothing, and what is wrong is told."""
        for content, said in (
            ("{", "not JSON"),
            ('{"prefixes": {"@story": "story.txt"}, "prot": 1}', "did you mean 'port'?"),
            ('{"prefixes": {"@story": "story.txt"}, "port": "x"}', "port: must be"),
            ('{"prefixes": {"@story": "story.txt"}, "api_key_file": "missing"}', "api_key_file: "),
        ):
            self.file.write_text(content)
            with capturedLogs() as logs:
                call = self.operate("POST /reload")
            self.assertEqual(400, call.status)
            self.assertIn(said, call.json()["error"])
            self.assertIn(said, logged(logs)[0])
            self.assertEqual(["code"], self.templates())
        self.file.unlink()
        self.assertEqual(400, self.operate("POST /reload").status)

    def test_keys(self) -> None:
        """Keys are read again, whether or not the setting changed; a file without any changes nothing."""

        def status(key: str) -> int:
            head = f"GET / HTTP/1.1\r\nHost: x\r\nx-api-key: {key}\r\n\r\n"
            call = Call(self.reactor.tcpServers[1][1], head.encode())  # type: ignore[arg-type]
            call.hang_up()  # nobody is behind the proxy: who is let in waits
            return call.status

        keys = self.folder / "keys"
        self.write(api_key_file="keys")
        self.reload()
        self.assertEqual((401, 0), (status("other"), status("secret")))
        keys.write_text("other")
        self.reload()
        self.assertEqual((0, 401), (status("other"), status("secret")))
        keys.write_text("")
        self.assertEqual(400, self.operate("POST /reload").status)
        self.assertEqual((0, 401), (status("other"), status("secret")))

    def test_keys_dropped(self) -> None:
        """Where others reach the clients' port, the log warns when it needs no key any more, just as at the start."""
        self.stop(self.root)
        self.write(api_key_file="keys")
        self.reactor = Reactor()  # its ports listen at 0.0.0.0, whatever it is told
        with capturedLogs() as logs:
            self.root = self.start("--config", str(self.file))
            self.reload()
        said = "the clients' port is open to everyone"
        self.assertNotIn(said, "\n".join(logged(logs)))
        for settings, warned in (({}, True), ({}, False), ({"api_key_file": "keys"}, False), ({}, True)):
            self.write(**settings)
            with capturedLogs() as logs:
                self.reload()
            self.assertEqual(warned, any(said in text for text in logged(logs)), settings)

    def test_signal(self) -> None:
        """SIGHUP does the same, also where the file is wrong; after the end of the service the signal is as before."""
        self.write(prefixes={"@story": "story.txt"})
        os.kill(os.getpid(), signal.SIGHUP)
        self.reactor.advance(0)
        self.assertEqual(["story"], self.templates())
        self.file.write_text("{")
        os.kill(os.getpid(), signal.SIGHUP)
        self.reactor.advance(0)
        self.assertEqual(["story"], self.templates())

    def test_not_by_reading(self) -> None:
        """A GET changes nothing, nor does a page of another site."""
        self.write(prefixes={})
        self.assertEqual(405, self.operate("GET /reload").status)
        self.assertEqual(403, self.operate("POST /reload", "Origin: http://elsewhere\r\n").status)
        self.assertEqual(["code"], self.templates())


class LeftOver(WorldTest):
    """A request on a template that is removed meanwhile."""

    def test_request_goes_on(self) -> None:
        """It is answered as it came; afterwards no number of the template is left."""
        world = self.ready_world()
        world.llama_server.pause_at.add("/v1/chat/completions")
        call = world.chat("@code why?")
        world.poller.set_templates([])
        world.llama_server.go_on()
        world.settle()
        self.assertEqual((200, "code"), (call.status, call.headers["x-bioproxy-template"]))
        self.successResultOf(world.start(world.poller.poll))
        self.successResultOf(world.start(world.warmer.round))
        self.assertNotIn(b'template="code"', world.metrics.text())
        world.chat("@code why?")
        self.assertIn("@code why?", json.dumps(world.llama_server.requests[-1][1]))
