"""Which keys open the clients' port, and which one opens llama-server."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

from twisted.logger import capturedLogs
from twisted.web.http_headers import Headers

from bioproxy.runtime.errors import ConfigError
from bioproxy.settings.api_keys import ApiKeys
from tests.support.raw import RawTest
from tests.support.world import World, logged

CHAT = "/v1/chat/completions"
ASK = json.dumps({"messages": [{"role": "user", "content": "x"}]}).encode()
LLAMA = "Bearer llama-key"


class KeysTest(RawTest):
    """A world that wants keys."""

    def file(self, text: str | bytes, name: str = "keys.txt", mode: int = 0o600) -> Path:
        """Write a file of keys."""
        path = self.folder / name
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        path.chmod(mode)
        return path

    def locked(self, text: str = "one\ntwo\n", llama: str | None = "llama-key\n") -> World:
        """Build one."""
        own = None if llama is None else self.file(llama, "llama.txt")
        return self.world(api_key_file=self.file(text), llama_api_key_file=own)

    def arrived(self, world: World) -> list[tuple[list[str], list[str]]]:
        """Return what each request that reached llama-server showed it, in both headers, and forget them."""
        found = []
        for _, headers, _ in world.llama_server.raw:
            shown = [headers.getRawHeaders(name, []) for name in ("authorization", "x-api-key")]
            found.append((list(shown[0]), list(shown[1])))
        world.llama_server.raw.clear()
        return found


class Shown(KeysTest):
    """What clients show."""

    RIGHT: tuple[dict[str, str], ...] = (
        {"authorization": "Bearer one"},
        {"authorization": "Bearer two"},
        {"authorization": "bearer one"},
        {"Authorization": "BEARER  one "},
        {"x-api-key": "one"},
        {"X-API-Key": "\ttwo "},
        {"x-api-key": "wrong", "authorization": "Bearer one"},
        {"x-api-key": "one", "authorization": "Bearer wrong"},
        {"x-api-key": "one", "authorization": "Basic b25lOg=="},
        {"x-api-key": "one", "authorization": "Bearer two"},
    )
    WRONG: tuple[dict[str, str], ...] = (
        {},
        {"authorization": ""},
        {"authorization": "Bearer"},
        {"authorization": "Bearer "},
        {"authorization": "Bearer three"},
        {"authorization": "Bearer On"},
        {"authorization": "Bearer onee"},
        {"authorization": "Bearer ONE"},
        {"authorization": "Bearer one two"},
        {"authorization": "Bearer one\ttwo"},
        {"authorization": "Bearer one, two"},
        {"authorization": "Bearer \xff"},
        {"authorization": "one"},
        {"authorization": "Bearerone"},
        {"authorization": "Basic one"},
        {"authorization": "Basic b25lOg=="},
        {"authorization": LLAMA},
        {"x-api-key": ""},
        {"x-api-key": "Bearer one"},
        {"x-api-key": "one,two"},
        {"x-api-key": "llama-key"},
        {"api-key": "one"},
        {"cookie": "x-api-key=one"},
        {"proxy-authorization": "Bearer one"},
    )

    def test_right(self) -> None:
        """Who shows one of the keys, in either header, is let in; the key stays here, llama-server gets its own."""
        world = self.locked()
        for headers in self.RIGHT:
            for path in (CHAT, "/props"):
                self.assertEqual(200, world.send("POST", path, ASK, **headers).status, headers)
            self.assertEqual({(LLAMA,): ()}, {tuple(a): tuple(b) for a, b in self.arrived(world)}, headers)

    def test_wrong(self) -> None:
        """Everybody else is not, is told how it is done, and reaches nobody."""
        world = self.locked()
        for headers in self.WRONG:
            for method, path in (("POST", CHAT), ("GET", "/props"), ("GET", "/"), ("POST", "/slots/0?action=save")):
                call = world.send(method, path, ASK if method == "POST" else b"", **headers)
                self.assertEqual(401, call.status, headers)
        self.assertEqual([], world.llama_server.raw)

    def test_several_headers(self) -> None:
        """A header that is there twice shows two keys; one of them will do, and neither goes on."""
        world = self.locked()
        lines = b"x-api-key: wrong\r\nX-Api-Key: one\r\nauthorization: Bearer wrong\r\nAuthorization: Bearer wrong\r\n"
        client = self.connect(world).say(b"GET /props HTTP/1.1\r\nHost: x\r\n" + lines + b"\r\n")
        self.assertEqual([200], client.statuses)
        self.assertEqual([([LLAMA], [])], self.arrived(world))

    def test_answer(self) -> None:
        """The answer has the API's shape, says what is needed, can be read by web pages, and is counted."""
        world = self.locked()
        for path in (CHAT, "/v1/messages", "/props"):
            call = world.send("POST", path, ASK, Origin="http://page")
            answer = call.json()
            self.assertEqual((401, "Bearer"), (call.status, call.headers["www-authenticate"]))
            self.assertEqual("http://page", call.headers["access-control-allow-origin"])
            self.assertEqual("authentication_error", answer["error"]["type"])
            self.assertEqual("error" if path == "/v1/messages" else None, answer.get("type"))
        self.assertEqual(1, world.sample("requests_total", endpoint=CHAT, template="", code="401"))
        requests = json.loads(world.operate("GET", "/status").body)["requests"]
        self.assertEqual([("/v1/messages", 401), (CHAT, 401)], [(each["path"], each["status"]) for each in requests])

    def test_no_body_without_a_key(self) -> None:
        """What needs no key has no body: who has no key cannot have anything kept."""
        world = self.locked()
        for method, path in (("OPTIONS", "/v1/models"), ("POST", "/health")):
            self.assertNotEqual(401, world.send(method, path).status)
            self.assertNotEqual(401, world.send(method, path, content_length="0").status)
            self.assertEqual(401, world.send(method, path, b"x").status)
            self.assertEqual(401, world.send(method, path, transfer_encoding="chunked").status)

    def test_before_the_body(self) -> None:
        """No key, no body: the answer comes before it, nobody is asked to send it, and the connection ends."""
        world = self.locked()
        head = f"POST {CHAT} HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: 1000000\r\n\r\n"
        client = self.connect(world).say(head.encode())
        self.assertTrue(client.received.startswith(b"HTTP/1.1 401 "))
        client.say(b"x" * 1_000_000).say(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n")
        world.http_clock.advance(2)
        self.assertEqual(([401], True), (client.statuses, client.closing))
        self.assertEqual(([], 0), (world.llama_server.raw, world.limits._bytes))

    def test_each_request(self) -> None:
        """A key is good for the request that shows it, not for the next one on that connection."""
        world = self.locked()
        get = b"GET /props HTTP/1.1\r\nHost: x\r\n"
        client = self.connect(world).say(get + b"x-api-key: one\r\n\r\n").say(get + b"\r\n")
        self.assertEqual([200, 401], client.statuses)


class Open(KeysTest):
    """What needs no key."""

    def test_open(self) -> None:
        """Health and a browser's question whether it may ask need none, and llama-server gets none with them."""
        world = self.locked()
        for method, path in (
            ("GET", "/health"),
            ("GET", "/health?x=/props"),
            ("GET", "/%68ealth"),
            ("GET", "http://elsewhere/health"),
            ("OPTIONS", CHAT),
            ("OPTIONS", "/props"),
        ):
            for headers in ({}, {"x-api-key": "wrong", "authorization": "Bearer wrong"}):
                self.assertNotEqual(401, world.send(method, path, b"", **headers).status, path)
                self.assertEqual([([], [])], self.arrived(world), path)

    def test_health_with_a_key(self) -> None:
        """Who shows one all the same gets llama-server's for it."""
        world = self.locked()
        world.send("GET", "/health", x_api_key="one")
        self.assertEqual([([LLAMA], [])], self.arrived(world))

    def test_not_open(self) -> None:
        """What only looks like these needs one."""
        world = self.locked()
        for path in (
            *("/health/", "//health", "/Health", "/healthz", "/v1/health", "/health/../props", "/health;x", "/"),
            *("/props?/health", "/props#/health", "/health%2f..%2fprops", "/health%00", "/health%3f", "/./health"),
        ):
            self.assertEqual(401, world.send("GET", path).status, path)
        for method in ("options", "OPTION", "HEAD", "TRACE"):
            self.assertEqual(401, world.send(method, "/props").status, method)
        self.assertEqual([], world.llama_server.raw)

    def test_bad_target(self) -> None:
        """What cannot be a path is refused as such, key or not."""
        world = self.locked()
        for method in ("GET", "OPTIONS"):
            statuses = [world.send(method, "health", b"", **each).status for each in ({}, {"x-api-key": "one"})]
            self.assertEqual([400, 400], statuses, method)


class LlamaApi(KeysTest):
    """The key that llama-server gets."""

    def test_own_calls(self) -> None:
        """The proxy's own calls carry it, whether clients need keys or not."""
        for clients in (None, self.file("one")):
            world = self.world(
                api_key_file=clients,
                llama_api_key_file=self.file("\n llama-key \nsecond\n", "llama.txt"),
                state_dir=self.folder / str(clients is None),
            )
            self.successResultOf(world.start(world.watch.look))
            arrived = self.arrived(world)
            self.assertEqual([([LLAMA], [])] * len(arrived), arrived)
            self.assertTrue(arrived)

    def test_none(self) -> None:
        """Where it has none, it gets none, neither with own calls nor with a client's."""
        world = self.locked(llama=None)
        self.successResultOf(world.start(world.watch.look))
        world.send("GET", "/props", x_api_key="one")
        self.assertEqual({((), ())}, {(tuple(a), tuple(b)) for a, b in self.arrived(world)})

    def test_untouched(self) -> None:
        """Where clients need none here, what they show is llama-server's business, and its own key stays here."""
        world = self.world(llama_api_key_file=self.file("llama-key", "llama.txt"))
        for headers in ({"authorization": "Bearer mine", "x-api-key": "mine"}, {"authorization": "Basic eA=="}, {}):
            self.assertEqual(200, world.send("GET", "/props", b"", **headers).status)
            expected = tuple([headers[name]] if name in headers else [] for name in ("authorization", "x-api-key"))
            self.assertEqual([expected], self.arrived(world))

    def test_other_keys_meanwhile(self) -> None:
        """What a request was let in with is settled when it comes: its key stays here, whatever is read meanwhile."""
        for clients in (self.file("another", "other.txt"), None):
            world = self.locked("one")
            world.llama_server.pause_at = {CHAT}
            for _ in range(2):
                world.send("POST", CHAT, ASK, authorization="Bearer one")
            world.keys.use(clients, self.folder / "llama.txt")
            world.go_on()
            self.assertEqual([(["Bearer llama-key"], [])] * 2, self.arrived(world))
            world.close()

    def test_another_key_of_llama_meanwhile(self) -> None:
        """A request that waits is sent with the key that llama-server has by then, in a file or as bioproxy's own."""
        for clients in (self.file("one"), None):
            world = self.world(api_key_file=clients, llama_api_key_file=self.file("old", "llama.txt"))
            if clients is None:
                world.keys.of_child = partial(str, "old")
            world.llama_server.pause_at = {CHAT}
            for _ in range(2):
                world.send("POST", CHAT, ASK, authorization="Bearer one")
            world.keys.use(clients, self.file("new", "llama.txt"))
            if clients is None:
                world.keys.of_child = partial(str, "new")
            world.llama_server.pause_at = set()
            world.llama_server.go_on()
            world.settle()
            self.assertEqual([(["Bearer old"], []), (["Bearer new"], [])], self.arrived(world))
            world.close()

    def test_nowhere(self) -> None:
        """No key shows up in an answer, in the list of requests, or in the log."""
        world = self.locked("secret-one\n", "secret-two\n")
        said: list[str] = []
        with capturedLogs() as events:
            for key in ("secret-one", "secret-wrong"):
                call = world.send("POST", CHAT, ASK, x_api_key=key, authorization=f"Bearer {key}")
                said.append(call.received.decode())
        said += [*logged(events), str(events)]
        said.append(world.operate("GET", "/status").body.decode())
        said.append(world.operate("GET", "/metrics").body.decode())
        self.assertIn(CHAT, "".join(said))
        self.assertNotIn("secret", "".join(said))


class Files(KeysTest):
    """`ApiKeys.read`."""

    def warnings(self, clients: Path | None, llama: Path | None = None) -> list[str]:
        """Read files, and return what is said about them in the log."""
        with capturedLogs() as events:
            ApiKeys(clients, llama).read()
        return logged(events)

    def test_lines(self) -> None:
        """One key a line, with whatever ends lines have, white space around it, and empty lines between."""
        keys = ApiKeys(self.file(b"\r\n  one\t\r\ntwo\n\n \nthree"), None)
        keys.read()
        self.assertEqual(3, len(keys._clients))

    def test_errors(self) -> None:
        """What is no file of keys is an error that names setting and file."""
        for number, content in enumerate(("", "\n \n", "two words\n", "k\xe9y\n", "\ufeffkey\n", "a\x00b", "a\x7f")):
            path = self.file(content, f"{number}.txt")
            for setting, files in (("api_key_file", (path, None)), ("llama_api_key_file", (None, path))):
                with self.assertRaises(ConfigError) as caught:
                    ApiKeys(*files).read()
                self.assertTrue(str(caught.exception).startswith(f"{setting}: {path}: "), str(caught.exception))
                self.assertNotIn("\n", str(caught.exception))
        for path in (self.folder / "missing", self.folder, self.folder / "missing" / "either"):
            with self.assertRaises(ConfigError) as caught:
                ApiKeys(path, None).read()
            self.assertTrue(str(caught.exception).startswith(f"api_key_file: {path}: "), str(caught.exception))

    def test_both_or_none(self) -> None:
        """Where the second file is bad, what was read from the first one before still counts."""
        clients, llama = self.file("one"), self.file("llama-key", "llama.txt")
        keys = ApiKeys(clients, llama)
        keys.read()
        before = keys._clients, keys.own
        clients.write_text("other")
        llama.write_text("")
        with self.assertRaises(ConfigError):
            keys.read()
        self.assertEqual(before, (keys._clients, keys.own))
        llama.write_text("another")
        keys.read()
        self.assertNotEqual(before[0], keys._clients)
        self.assertEqual([(b"Authorization", b"Bearer another")], keys.own)

    def test_own_llama(self) -> None:
        """A llama.cpp of bioproxy's own gets its key with each request, in the place of what the client has sent."""
        for clients in (None, self.file("one")):
            keys = ApiKeys(clients, self.file("other", "llama.txt"))
            keys.read()
            keys.of_child = lambda: "secret"
            for name, value in ((b"Authorization", b"Bearer one"), (b"x-api-key", b"one")):
                headers = Headers({name: [value]})
                keys.take(headers)
                keys.give(headers)
                self.assertEqual([(b"Authorization", [b"Bearer secret"])], list(headers.getAllRawHeaders()))
            # Where clients need a key, those without one get none of it.
            headers = Headers()
            keys.take(headers)
            keys.give(headers)
            self.assertEqual(clients is None, headers.hasHeader(b"Authorization"))
            self.assertEqual([(b"Authorization", b"Bearer secret")], keys.own)

    def test_permissions(self) -> None:
        """A file that others may read gets a word in the log, which names it; one for its owner alone gets none."""
        for mode, warned in ((0o600, 0), (0o400, 0), (0o640, 1), (0o604, 1), (0o644, 1), (0o620, 1)):
            path = self.file("one", "mode.txt", mode)
            for files in ((path, None), (None, path)):
                said = self.warnings(*files)
                self.assertEqual(warned, len(said), oct(mode))
                self.assertTrue(all(str(path) in each for each in said))
        self.assertEqual([], self.warnings(None))
