"""The operator's port."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone

from prometheus_client.parser import text_string_to_metric_families

from bioproxy import __version__
from tests.support.network import Call
from tests.support.world import CODE, PREFIX, World, WorldTest


class Routes(WorldTest):
    """Each route."""

    def test_odd_path(self) -> None:
        """A path that is not even UTF-8 is not found, like any other that is not there."""
        world = self.ready_world()
        for path in ("/%ff", "/nothing"):
            self.assertEqual(404, world.operate("GET", path).status)
        self.assertEqual([], self.flushLoggedErrors())

    def test_alive(self) -> None:
        """`/healthz` answers as long as the process runs, whatever llama-server does."""
        world = self.world()
        world.llama_server.down = True
        call = world.operate("GET", "/healthz")
        self.assertEqual((200, b"ok\n"), (call.status, call.body))

    def test_ready(self) -> None:
        """`/readyz` asks llama-server now: 200 when it is up with its model loaded, else 503 and why."""
        world = self.world()
        server = world.llama_server
        self.assertEqual(200, world.operate("GET", "/readyz").status)
        server.loading = True
        call = world.operate("GET", "/readyz")
        self.assertEqual((503, b"503: Loading model\n"), (call.status, call.body))
        server.loading, server.down = False, True
        call = world.operate("GET", "/readyz")
        self.assertEqual(503, call.status)
        self.assertIn(b"refuses connections", call.body)
        server.down = False
        self.assertEqual(200, world.operate("GET", "/readyz").status)

    def test_stopping(self) -> None:
        """From the moment on in which bioproxy is told to stop, `/readyz` is 503, whatever llama-server is like."""
        world = self.world()
        self.assertEqual(200, world.operate("GET", "/readyz").status)
        world.gate.close()
        call = world.operate("GET", "/readyz")
        self.assertEqual((503, b"shutting down\n"), (call.status, call.body))
        self.assertEqual(200, world.operate("GET", "/healthz").status)

    def test_metrics(self) -> None:
        """`/metrics` is Prometheus' text format, with the numbers of this proxy."""
        world = self.warm_world()
        world.chat("@code why?")
        call = world.operate("GET", "/metrics")
        self.assertTrue(call.headers["content-type"].startswith("text/plain; version=0.0.4"))
        samples = {
            (sample.name, sample.labels.get("template")): sample.value
            for family in text_string_to_metric_families(call.body.decode())
            for sample in family.samples
        }
        self.assertEqual(1, samples["bioproxy_requests_total", "code"])
        self.assertEqual(1, samples["bioproxy_template_warm", "code"])
        self.assertEqual(1, samples["bioproxy_upstream_up", None])

    def test_head(self) -> None:
        """Each route answers HEAD, too."""
        world = self.world()
        for path in ("/healthz", "/readyz", "/metrics", "/status"):
            call = world.operate("HEAD", path)
            self.assertEqual((200, b""), (call.status, call.received.split(b"\r\n\r\n", 1)[1]), path)

    def test_nothing_else(self) -> None:
        """What is not there is 404, a method that is not meant 405; llama-server's paths are not here."""
        world = self.world()
        absent = world.operate("GET", "/v1/models")
        self.assertEqual((404, "text/plain; charset=utf-8"), (absent.status, absent.headers["content-type"]))
        meant = world.operate("POST", "/status")
        self.assertEqual((405, "text/plain; charset=utf-8"), (meant.status, meant.headers["content-type"]))
        self.assertEqual({"GET", "HEAD"}, set(meant.headers["allow"].split(", ")))


class Templates(WorldTest):
    """What can be done with a template."""

    def test_render(self) -> None:
        """The filled text is shown as it would be sent, whatever the message is; the files are read now."""
        world = self.ready_world()
        call = world.operate("GET", "/templates/code/render?message=why%3F%20%C3%A4%0A%3C{message}%3E")
        self.assertEqual((200, "Know this: abc. why? ä\n<{message}>"), (call.status, call.body.decode()))
        self.assertEqual("text/plain; charset=utf-8", call.headers["content-type"])
        self.assertEqual("nosniff", call.headers["x-content-type-options"])
        self.template("code", "New: <{message}>")
        self.assertEqual(b"New: ", world.operate("GET", "/templates/code/render").body)
        for odd in ("?message=%ff", "?message=%ED%A0%80"):
            self.assertEqual(200, world.operate("GET", f"/templates/code/render{odd}").status)

    def test_render_broken(self) -> None:
        """A template that cannot be read says why; an unknown one is not found."""
        world = self.ready_world({"bad": "no place"})
        call = world.operate("GET", "/templates/bad/render")
        self.assertEqual(500, call.status)
        self.assertIn(b"no <{message}> in it", call.body)
        for path in ("/templates/none/render", "/templates/%ff/render", "/templates//render", "/templates/b/a/render"):
            self.assertEqual(404, world.operate("GET", path).status, path)

    def test_warm(self) -> None:
        """A template that is warm is warmed up once more; `/status` tells meanwhile that it is wanted."""
        world = self.warm_world()
        call = world.operate("POST", "/templates/code/warm")
        self.assertEqual((202, b"template code is warmed up next\n"), (call.status, call.body))
        self.assertTrue(world.operate("GET", "/status").json()["templates"][0]["wanted"])
        self.successResultOf(world.start(world.warmer.round))
        self.assertEqual(2, world.sample("warmups_total", template="code", result="done"))
        self.assertFalse(world.operate("GET", "/status").json()["templates"][0]["wanted"])

    def test_warm_refused(self) -> None:
        """An unknown template is not found, and a GET changes nothing."""
        world = self.warm_world()
        self.assertEqual(404, world.operate("POST", "/templates/none/warm").status)
        self.assertEqual(405, world.operate("GET", "/templates/code/warm").status)
        self.assertEqual(set(), world.schedule.wanted)


class Status(WorldTest):
    """`/status`."""

    def status(self, world: World) -> dict[str, object]:
        """Return it."""
        call: Call = world.operate("GET", "/status")
        self.assertEqual("application/json; charset=utf-8", call.headers["content-type"])
        status: dict[str, object] = call.json()
        return status

    def test_whole(self) -> None:
        """It has exactly what the contract says, all of it current."""
        part = self.template("part", "Know this: abc.")
        world = self.warm_world({"code": "<{part.txt}> <{message}>"})
        world.chat("@code why?")
        world.clock.advance(5)
        snapshot = world.snapshots.get("code")
        assert snapshot is not None
        status = self.status(world)
        self.assertLess(datetime.fromisoformat(str(status.pop("started_at"))), datetime.now(timezone.utc))
        requests = status.pop("requests")
        assert isinstance(requests, list)
        # These have tests of their own (`tests.operator.test_first_steps`, `tests.operator.test_prompts`).
        self.assertEqual(dict, type(status.pop("setup")))
        self.assertEqual((list, dict), (type(status.pop("prompts")), type(status.pop("shelf"))))
        self.assertEqual(
            {
                "version": __version__,
                "shared_shelf": None,
                "uptime_s": 5.0,
                "llama": {
                    "url": "http://llama",
                    "up": True,
                    "model": "/models/fake.gguf",
                    "build": "b1-fake",
                    "slot_save": True,
                    "note": None,
                    "trouble": None,
                    "help": None,
                    "child": None,
                },
                "gate": {"busy": None, "waiting": 0, "lingering": False, "inside": None, "queue": []},
                "head_start": [],
                "templates": [
                    {
                        "name": "code",
                        "prefix": "@code",
                        "path": str(self.folder / "code.txt"),
                        "includes": [str(part)],
                        "state": "warm",
                        "warmup": {"due": False, "reason": "warm", "until": None},
                        "progress": 1.0,
                        "tokens": len(PREFIX),
                        # The fake needs no time, so computing is worth nothing; the slot holds it.
                        "cold_s": None,
                        "now_s": 0.0,
                        "warmed_at": snapshot.saved_at,
                        "last_used": requests[0]["time"],
                        "wanted": False,
                        "error": None,
                        "note": None,
                    }
                ],
            },
            status,
        )
        keys = (
            "id time path template prompt status cache queue_ms estimate_ms restore_ms ttft_ms total_ms"
            " prompt_tokens cached_tokens saved_s miss miss_detail".split()
        )
        self.assertEqual([set(keys)], [set(request) for request in requests])
        for time in (snapshot.saved_at, requests[0]["time"]):
            self.assertEqual(timedelta(0), datetime.fromisoformat(time).utcoffset())

    def test_before_anything(self) -> None:
        """At the start it has all keys, too, and says what is not known."""
        world = self.world({"code": CODE, "bad": "no place"})
        status = self.status(world)
        llama = {"url": "http://llama", "up": False, "model": None, "build": None, "slot_save": None, "note": None}
        llama["trouble"] = "not asked yet"
        llama["help"] = None
        llama["child"] = None
        self.assertEqual(llama, status["llama"])
        expected = {"state": "cold", "progress": 0.0, "tokens": None, "warmed_at": None, "error": None, "includes": []}
        expected["note"] = None
        templates = status["templates"]
        assert isinstance(templates, list)
        for template in templates:
            self.assertEqual(expected, {key: template[key] for key in expected})
        self.assertEqual([], status["requests"])
        self.successResultOf(world.start(world.poller.poll))
        templates = self.status(world)["templates"]
        assert isinstance(templates, list)
        self.assertEqual("error", templates[1]["state"])
        # Without the name, which stands beside it.
        self.assertEqual(f"{self.folder / 'bad.txt'}: no <{{message}}> in it", templates[1]["error"])

    def test_at_work(self) -> None:
        """It tells who is inside, how many wait, and how far a warm-up is."""
        world = self.ready_world(warmup_chunk=10)
        self.successResultOf(world.start(world.identity.find_out))
        world.llama_server.pause_at = {"/completion"}
        world.start(world.warmer.round)
        world.llama_server.go_on()
        world.settle()
        status = self.status(world)
        gate = status["gate"]
        assert isinstance(gate, dict)
        self.assertEqual(("warmup", 0, []), (gate["busy"], gate["waiting"], gate["queue"]))
        self.assertEqual((None, None, "code"), tuple(gate["inside"][key] for key in ("id", "path", "template")))
        templates = status["templates"]
        assert isinstance(templates, list)
        self.assertEqual(("warming", round(10 / len(PREFIX), 3)), (templates[0]["state"], templates[0]["progress"]))
        world.llama_server.pause_at = {"/v1/chat/completions"}
        for message in ("hello", "@code hello", "hello"):
            world.chat(message)
        gate = self.status(world)["gate"]
        assert isinstance(gate, dict)
        self.assertEqual(("user", 2), (gate["busy"], gate["waiting"]))
        everybody = [gate["inside"], *gate["queue"]]
        self.assertEqual([None, "code", None], [each["template"] for each in everybody])
        self.assertEqual(3, len({each["id"] for each in everybody}))
        for each in everybody:
            self.assertEqual("/v1/chat/completions", each["path"])
            self.assertEqual(timedelta(0), datetime.fromisoformat(each["since"]).utcoffset())

    def test_newest_first(self) -> None:
        """The latest requests come newest first."""
        world = self.ready_world()
        for path in ("/v1/completions", "/v1/embeddings"):
            world.send("POST", path, b"{}")
        requests = self.status(world)["requests"]
        assert isinstance(requests, list)
        self.assertEqual(["/v1/embeddings", "/v1/completions"], [request["path"] for request in requests])
