"""The life of a request, in memory."""

from __future__ import annotations

import json

from twisted.internet.defer import fail

from bioproxy.http.targets import GATED
from tests.slot_files.test_client_calls import CAREFUL, NO_WRITE, WRITE
from tests.support.network import Call, Wire
from tests.support.world import CODE, KEY, PREFIX, World, WorldTest

CHAT = "/v1/chat/completions"


class Templates(WorldTest):
    """Requests that name a template."""

    def test_filled_and_hot(self) -> None:
        """A request on a warm template goes out filled, on slot 0, and computes only the question."""
        world = self.warm_world()
        call = world.chat("@code why?")
        self.assertEqual(200, call.status)
        path, sent = world.llama_server.requests[-2]
        self.assertEqual(CHAT, path)
        self.assertEqual({"id_slot": 0, "messages": [{"role": "user", "content": "Know this: abc. why?"}]}, sent)
        self.assertEqual("hot", call.headers["x-bioproxy-cache"])
        self.assertEqual("code", call.headers["x-bioproxy-template"])
        self.assertEqual(len(PREFIX), call.json()["timings"]["cache_n"])

    def test_every_turn(self) -> None:
        """Every user message that names a template is filled; what the assistant said is left alone."""
        world = self.warm_world({"code": CODE, "story": "Tell: <{message}>"})
        call = world.chat("@code one", "@code no", "two", "no", "@story three", temperature=1)
        self.assertEqual("code", call.headers["x-bioproxy-template"])
        sent = next(body for path, body in world.llama_server.requests if path == CHAT)
        texts = [message["content"] for message in sent["messages"]]
        self.assertEqual(["Know this: abc. one", "@code no", "two", "no", "Tell: three"], texts)
        self.assertEqual(1, sent["temperature"])

    def test_reuse_not_wanted(self) -> None:
        """Who asks for everything to be computed anew is not told of a cache, and pays for no restore."""
        world = self.warm_world()
        call = world.chat("@code why?", cache_prompt=False)
        self.assertEqual(("cold", "ineffective"), (call.headers["x-bioproxy-cache"], call.headers["x-bioproxy-miss"]))
        self.assertEqual(0, world.sample("slot_restores_total", template="code", result="ok"))

    def test_second_turn(self) -> None:
        """The second turn of a conversation goes on from the first: all of it is in the slot."""
        world = self.warm_world()
        world.chat("@code why?")
        held = len(world.llama_server.tokens)
        call = world.chat("@code why?", "fine", "and then?")
        self.assertEqual("hot", call.headers["x-bioproxy-cache"])
        self.assertGreaterEqual(call.json()["timings"]["cache_n"], held - 1)

    def test_headers(self) -> None:
        """The answer tells how the slot came to hold the template, and never more than is known."""
        world = self.warm_world()
        world.content.forget()
        restored = world.chat("@code why?")
        self.assertEqual("restored", restored.headers["x-bioproxy-cache"])
        self.assertEqual("0.0", restored.headers["x-bioproxy-restore-ms"])
        self.assertNotIn("x-bioproxy-miss", restored.headers)
        plain = world.chat("hello")
        for call, names in (
            (restored, ["cache", "prompt", "queue-ms", "request-id", "restore-ms", "template"]),
            (plain, ["queue-ms", "request-id"]),
        ):
            found = sorted(name.lower() for name in call.headers if name.lower().startswith("x-bioproxy-"))
            self.assertEqual([f"x-bioproxy-{name}" for name in names], found)
        self.assertNotEqual(restored.headers["x-bioproxy-request-id"], plain.headers["x-bioproxy-request-id"])
        self.assertEqual(world.request_log.latest()[0]["id"], plain.headers["x-bioproxy-request-id"])

    def test_cold(self) -> None:
        """A request on a template that is not warm is served all the same, and told why it had to wait."""
        world = self.ready_world()
        call = world.chat("@code why?")
        self.assertEqual(("cold", "first"), (call.headers["x-bioproxy-cache"], call.headers["x-bioproxy-miss"]))
        self.assertEqual("hot", world.chat("@code again").headers["x-bioproxy-cache"])

    def test_newest_text(self) -> None:
        """The text is never older than the files, whenever they were last polled."""
        world = self.warm_world()
        self.template("code", "Changed: <{message}>")
        world.chat("@code why?")
        self.assertIn(b"Changed: why?", world.llama_server.raw[-2][2])

    def test_slot_unknown(self) -> None:
        """A request without a template makes the slot unknown; so does one that llama-server refuses."""
        world = self.warm_world()
        world.chat("hello")
        self.assertFalse(world.content.has(KEY))
        world.chat("@code why?")
        self.assertTrue(world.content.has(KEY))
        world.llama_server.context = 5
        self.assertEqual(400, world.chat("@code too long").status)
        self.assertFalse(world.content.has(KEY))

    def test_broken_off_and_asked_again(self) -> None:
        """A client that stops an answer and asks again finds what was computed: nothing is restored over it."""
        world = self.warm_world()
        for place in ("stream", "body"):
            world.llama_server.pause_at = {place}
            world.chat("@code why?", stream=place == "stream").hang_up()
            world.llama_server.pause_at = set()
            call = world.chat("@code why?")
            self.assertEqual("hot", call.headers["x-bioproxy-cache"])
            self.assertEqual(1, call.json()["timings"]["prompt_n"])

    def test_clients_own_slot_calls(self) -> None:
        """A client's save over a file of ours makes that file's record go, and any such call the slot unknown."""
        for action, filename, kept in (
            ("save", "code.bin", False),
            ("%73ave", "code.bin", False),
            ("save", "mine.bin", True),
            ("restore", "mine.bin", True),
            ("erase", "", True),
        ):
            world = self.warm_world(state_dir=self.folder / action / filename)
            world.send("POST", f"/slots/0?action={action}", json.dumps({"filename": filename}).encode())
            self.assertFalse(world.content.has(KEY))
            self.assertEqual(kept, world.slot.facts.saved("code", KEY) is not None, (action, filename))
            self.assertIsNone(world.gate.busy)

    def test_adapters(self) -> None:
        """A request with adapters of its own reuses nothing and leaves nothing of use; a change of them forgets all."""
        world = self.warm_world()
        for _ in range(2):
            call = world.chat("@code why?", lora=[{"id": 0, "scale": 0}])
            self.assertEqual(
                ("cold", "ineffective"), (call.headers["x-bioproxy-cache"], call.headers["x-bioproxy-miss"])
            )
            self.assertEqual((None, None), (world.content.known, world.content.probable))
        self.assertEqual("restored", world.chat("@code why?").headers["x-bioproxy-cache"])
        world.send("POST", "/lora-adapters", b"[]")
        self.assertEqual((None, None), (world.content.known, world.identity.current))
        self.assertEqual("restored", world.chat("@code why?").headers["x-bioproxy-cache"])

    def test_slot_calls_in_doubt(self) -> None:
        """A save over a file of ours goes unnoticed in no form; where its file cannot be told, all records go."""
        for name, ask in {**WRITE, **NO_WRITE, **CAREFUL}.items():
            world = self.warm_world(state_dir=self.folder / name)
            more = {} if ask.kind is None else {"content_type": ask.kind.decode()}
            world.send("POST", ask.target, ask.body, **more)
            passed = world.llama_server.raw[-1][2] == ask.body
            self.assertEqual(name != "an odd escape", passed, name)  # that is refused
            self.assertEqual(not passed or ask.written == "", world.slot.facts.saved("code", KEY) is not None, name)
        self.flushLoggedErrors()  # the fake's: it is not prepared for such bodies

    def test_odd_slot_calls(self) -> None:
        """A call for the slot whose body says nothing useful is llama-server's to judge."""
        world = self.warm_world()
        for body in (b"", b"no json", b"[1]", b"{}", b'{"filename": 5}', b"[" * 100000):
            self.assertIn(world.send("POST", "/slots/0?action=save", body).status, (200, 400, 500), body)
            self.assertEqual("/slots/0?action=save", world.llama_server.paths()[-1])
        self.flushLoggedErrors()  # the fake's: it is not prepared for such bodies
        self.assertIsNotNone(world.slot.facts.saved("code", KEY))


class Errors(WorldTest):
    """The proxy's own errors."""

    def check(self, call: Call, status: int, kind: str, words: str) -> None:
        """Check status, type and text of an error, its shape, and that web pages may read it."""
        self.assertEqual(status, call.status)
        error = call.json()["error"]
        self.assertEqual({"message", "type", "code"}, set(error))
        self.assertEqual((kind, status), (error["type"], error["code"]))
        self.assertIn(words, error["message"])
        self.assertEqual("application/json; charset=utf-8", call.headers["content-type"])
        self.assertEqual("http://page", call.headers["access-control-allow-origin"])

    def ask(self, world: World, text: str = "hello", target: str = CHAT) -> Call:
        """Send a chat, as a web page does."""
        body = json.dumps({"messages": [{"role": "user", "content": text}]}).encode()
        return world.send("POST", target, body, Origin="http://page")

    def test_template(self) -> None:
        """A template that cannot be read is an error, its request does not go out, and is listed under its name."""
        world = self.warm_world()
        before = len(world.llama_server.requests)
        for spoil in (lambda: self.template("code", "no place"), (self.folder / "code.txt").unlink):
            spoil()
            self.check(self.ask(world, "@code why?"), 500, "template_error", "code.txt")
            self.assertEqual("code", world.operate("GET", "/status").json()["requests"][0]["template"])
        self.assertEqual(before, len(world.llama_server.requests))
        self.assertEqual(200, self.ask(world, "@codex why?").status)

    def test_too_large(self) -> None:
        """A body over `max_body` is refused, one of just that size is not, on any path."""
        world = self.ready_world(max_body=100)
        for target in (CHAT, "/tokenize"):
            self.check(
                world.send("POST", target, b"x" * 101, Origin="http://page"), 413, "invalid_request_error", "100"
            )
            self.assertEqual(400, world.send("POST", target, b"x" * 100).status)
        self.assertEqual(b"x" * 100, world.llama_server.raw[-1][2])

    def test_unavailable(self) -> None:
        """Who finds the queue full, or has waited too long in it, is told when to come again."""
        world = self.ready_world(queue_limit=1, queue_timeout=20)
        world.llama_server.pause_at = {CHAT}
        inside, waiting, full = (self.ask(world) for _ in range(3))
        self.check(full, 503, "unavailable_error", "waiting already")
        world.advance(20)
        self.check(waiting, 503, "unavailable_error", "20 s")
        for call in (full, waiting):
            self.assertGreater(int(call.headers["retry-after"]), 0)
        world.llama_server.go_on()
        world.settle()
        self.assertEqual(200, inside.status)
        self.assertEqual([], self.flushLoggedErrors())

    def test_llama_away(self) -> None:
        """A llama-server that refuses connections, or breaks off before its answer, is 502, gated or not."""
        world = self.ready_world()
        for target in (CHAT, "/tokenize"):
            world.llama_server.pause_at = {target}
            call = self.ask(world, target=target)
            world.llama_server.break_off()
            world.settle()
            self.check(call, 502, "upstream_error", "broke off")
            world.llama_server.down = True
            self.check(self.ask(world, target=target), 502, "upstream_error", "refuses connections")
            self.check(self.ask(world, "@code x", target=target), 502, "upstream_error", "refuses connections")
            world.llama_server.down = False
            self.assertIsNone(world.gate.busy)

    def test_targets(self) -> None:
        """A request line that names no path of llama-server's is refused."""
        world = self.ready_world()
        before = len(world.llama_server.requests)
        for method, target in (
            ("CONNECT", "evil.example:443"),
            ("GET", "evil.example/"),
            ("GET", "@evil.example/"),
            ("GET", "ftp://evil.example/"),
            ("GET", "http://[evil.example/"),
        ):
            self.check(world.send(method, target, Origin="http://page"), 400, "invalid_request_error", "target")
        self.assertEqual(before, len(world.llama_server.requests))

    def test_bug(self) -> None:
        """A mistake of ours is logged, answered without its details, and frees the gate."""
        world = self.ready_world()
        world.in_thread = lambda work: fail(ZeroDivisionError("secret"))
        call = self.ask(world, "@code why?")
        self.check(call, 500, "server_error", "log")
        self.assertNotIn(b"secret", call.received)
        self.assertEqual(1, len(self.flushLoggedErrors(ZeroDivisionError)))
        self.assertEqual(200, self.ask(world).status)

    def test_request_id(self) -> None:
        """Errors of gated requests carry the request's id, too."""
        world = self.ready_world(max_body=200)
        world.llama_server.down = True
        for text in ("hello", "@code why?", "x" * 200):
            call = self.ask(world, text)
            self.assertEqual(world.request_log.latest()[0]["id"], call.headers["x-bioproxy-request-id"])


class PassThrough(WorldTest):
    """What the proxy does not touch."""

    def test_requests(self) -> None:
        """Requests without a template arrive byte for byte, whatever their method, path and body."""
        world = self.ready_world()
        odd = b'{ "messages":[{"role":"user","content":"@codex"}],"x":1e400, "x": 1.10}'
        for method, target, body in (
            ("POST", CHAT, odd),
            ("POST", CHAT, b'{"messages": [{"role": "user", "content": "@code \xff"}]}'),
            ("POST", CHAT, b"\0\xffno json"),
            ("POST", "/v1/embeddings", b"@code"),
            ("BREW", "/tea", b"x"),
            ("DELETE", "/v1/stream/1", b""),
            ("GET", "/a/../b/./%2F%2e?x=%00&&y", b""),
        ):
            world.send(method, target, body)
            self.assertEqual(target, world.llama_server.paths()[-1])
            self.assertEqual((method.encode(), body), world.llama_server.raw[-1][::2])

    def test_hosts(self) -> None:
        """Whatever host a client names, even one that nobody could have, is llama-server's to judge."""
        wire = Wire()
        world = self.world({}, wire.agents())
        for host in ("a..b", ".", "x" * 70 + ".example", "[::1]:8081", "", "%ff", "a:"):
            call = world.send("POST", "/tokenize", b"{}", Host=host)
            line = wire.accept()
            self.assertIn(f"Host: {host}\r\n".encode(), line.received)
            line.send(b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 0\r\n\r\n")
            self.assertEqual(200, call.status, host)

    def test_odd_escapes(self) -> None:
        """A path with a % that means nothing is refused: llama-server might take it for one that uses the slot."""
        world = self.ready_world({"code": CODE})
        before = len(world.llama_server.requests)
        for target in (
            "/v1/chat/completion%u0073",
            "/%",
            "/x%4",
            "/x%zz?y",
            "/slots/0?action=%u0073ave",
            "http://h/%u0041",
        ):
            call = world.send("POST", target, b'{"messages": [{"role": "user", "content": "@code x"}]}')
            self.assertEqual((400, "invalid_request_error"), (call.status, call.json()["error"]["type"]), target)
        self.assertEqual(before, len(world.llama_server.requests))
        for target in ("/tokenize?q=100%", "/%74okenize?%u0041"):
            self.assertEqual(200, world.send("POST", target, b'{"content": "x"}').status)
            self.assertEqual(target, world.llama_server.paths()[-1])

    def test_template_in_a_form(self) -> None:
        """llama-server takes a form for JSON, so a template named in one is refused; other forms go through."""
        world = self.ready_world({"code": CODE})
        for message, refused in (("@code why?", True), ("why @code?", False)):
            part = f'--B\r\nContent-Disposition: form-data; name="prompt"\r\n\r\n{message}\r\n--B--\r\n'
            call = world.send("POST", "/completion", part.encode(), content_type="multipart/form-data; boundary=B")
            self.assertEqual(refused, b"template_error" in call.body)
            self.assertEqual(not refused, part.encode() == world.llama_server.raw[-1][2])

    def test_forms(self) -> None:
        """A body that says it is a form and is none arrives as it is."""
        wire = Wire()
        world = self.world({}, wire.agents())
        for kind in ("multipart/form-data; boundary=x", "multipart/form-data", "application/x-www-form-urlencoded"):
            call = world.send("POST", "/v1/audio/transcriptions", b"--y\r\nbroken", Content_Type=kind)
            self.assertTrue(wire.accept().received.endswith(b"\r\n\r\n--y\r\nbroken"), kind)
            call.hang_up()

    def test_request_headers(self) -> None:
        """Headers arrive, repeated ones too, but for those that are about the client's own connection."""
        world = self.ready_world()
        world.send(
            "GET", "/health", X_Odd="1", Authorization="Bearer k", TE="trailers", Connection="x-mine", X_Mine="1"
        )
        headers = world.llama_server.raw[-1][1]
        self.assertEqual([b"1"], headers.getRawHeaders(b"x-odd"))
        self.assertEqual([b"Bearer k"], headers.getRawHeaders(b"authorization"))
        for name in ("te", "x-mine", "accept-encoding", "user-agent"):
            self.assertFalse(headers.hasHeader(name), name)

    def test_absolute_form(self) -> None:
        """A whole address as target names llama-server's path, not another host, and is gated and filled like it."""
        world = self.warm_world()
        world.send("GET", "http://evil.example/health?x")
        self.assertEqual("/health?x", world.llama_server.paths()[-1])
        world.send("GET", "HTTPS://evil.example")
        self.assertEqual("/", world.llama_server.paths()[-1])
        body = b'{"messages": [{"role": "user", "content": "@code why?"}]}'
        call = world.send("POST", f"http://evil.example{CHAT}", body)
        self.assertEqual("hot", call.headers["x-bioproxy-cache"])
        self.assertIn(b"Know this", world.llama_server.raw[-2][2])

    def test_other_spellings(self) -> None:
        """Other spellings of a path that llama-server takes for the same are gated and filled like it."""
        world = self.warm_world()
        body = b'{"messages": [{"role": "user", "content": "@code why?"}]}'
        for target in (f"{CHAT}?x=1", "/v1/chat/completion%73", f"{CHAT}#x"):
            call = world.send("POST", target, body)
            self.assertEqual("code", call.headers["x-bioproxy-template"], target)
            self.assertIn(b"Know this", next(sent for _, _, sent in world.llama_server.raw[::-1] if sent))

    def test_answers(self) -> None:
        """Answers come back with status, reason, headers and body as llama-server sent them, and nothing added."""
        answers = (
            (
                "GET",
                b"200 OK\r\nContent-Length: 3\r\nContent-Type: a/b\r\nContent-Encoding: gzip\r\n\r\n\x1f\x8b\0",
            ),
            (
                "GET",
                b"299 Odd\r\nContent-Length: 0\r\nServer: llama.cpp\r\nSet-Cookie: a\r\nSet-Cookie: b\r\n\r\n",
            ),
            ("GET", b"404 Not Found\r\nContent-Length: 2\r\n\r\nno"),
            ("GET", b"302 Found\r\nContent-Length: 0\r\nLocation: http://elsewhere/\r\n\r\n"),
            ("GET", b"304 Not Modified\r\nEtag: x\r\n\r\n"),
            ("OPTIONS", b"204 No Content\r\nAccess-Control-Allow-Methods: GET, POST\r\n\r\n"),
            ("HEAD", b"200 OK\r\nContent-Length: 12345\r\nContent-Type: text/html\r\n\r\n"),
            ("HEAD", b"200 OK\r\n\r\n"),
            ("POST", b"200 OK\r\nTransfer-Encoding: chunked\r\nX-Odd: 1\r\n\r\n3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n"),
            ("POST", b"500 Internal Server Error\r\nContent-Length: 4\r\nContent-Type: application/json\r\n\r\n{}\n\n"),
        )
        for number, (method, answer) in enumerate(answers):
            wire = Wire()
            world = self.world({}, wire.agents(), state_dir=self.folder / str(number))
            call = world.send(method, "/x")
            wire.accept().send(b"HTTP/1.1 " + answer)
            self.assertEqual(self.parts(b"HTTP/1.1 " + answer), self.parts(call.received))
            self.assertTrue(call.whole)
            self.assertFalse(call.aborted)

    def parts(self, answer: bytes) -> tuple[bytes, list[bytes], bytes]:
        """Return an answer's first line, its headers sorted, and what follows with chunks put together."""
        head, _, rest = answer.partition(b"\r\n\r\n")
        first, *headers = head.split(b"\r\n")
        if b"Transfer-Encoding: chunked" in headers:
            rest = rest.replace(b"3\r\nabc\r\n2\r\nde\r\n", b"5\r\nabcde\r\n")
        return first, sorted(header.title() for header in headers), rest

    def test_not_gated(self) -> None:
        """What does not use the slot never waits, and leaves it known; what does use it waits."""
        world = self.warm_world()
        world.llama_server.pause_at = {CHAT}
        world.chat("@code why?")
        for method, target in (
            ("GET", "/health"),
            ("GET", "/slots"),
            ("GET", "/v1/models"),
            ("POST", "/tokenize"),
            ("POST", "/v1/messages/count_tokens"),
            ("GET", "/v1/stream/1"),
            ("GET", "/"),
            ("OPTIONS", CHAT),  # a browser asks whether it may
        ):
            world.llama_server.pause_at = set()
            call = world.send(method, target, b'{"content": "x", "messages": []}' if method == "POST" else b"")
            self.assertNotEqual(0, call.status, target)
            self.assertNotIn("x-bioproxy-queue-ms", call.headers)
        gated = [*sorted(GATED), "/slots/0?action=erase"]
        calls = [world.send("POST", target, b"{}") for target in gated]
        self.assertEqual([0] * len(gated), [call.status for call in calls])
        for call in calls:
            call.hang_up()
        world.llama_server.go_on()
        world.settle()
        world.send("GET", "/health")
        world.send("OPTIONS", CHAT)
        self.assertTrue(world.content.has(KEY))


class Streaming(WorldTest):
    """Answers that come piece by piece."""

    def test_piece_by_piece(self) -> None:
        """Each piece of a stream is passed on as soon as it is here, as it is."""
        world = self.warm_world()
        world.llama_server.pause_at = {"stream"}
        call = world.chat("@code why?", stream=True)
        for count in range(1, 5):
            self.assertEqual(count, call.body.count(b"data: "))
            self.assertFalse(call.whole)
            world.llama_server.go_on()
            world.settle()
        self.assertTrue(call.whole)
        self.assertTrue(call.body.endswith(b"data: [DONE]\n\n"))
        self.assertEqual(len(PREFIX), world.request_log.latest()[0]["cached_tokens"])
        self.assertTrue(world.content.has(KEY))

    def test_broken_plain(self) -> None:
        """A plain answer that breaks off ends uncleanly: it does not look whole, and no page is appended."""
        world = self.warm_world()
        world.llama_server.pause_at = {"body"}
        call = world.chat("@code why?")
        before = call.body
        world.llama_server.break_off()
        world.settle()
        self.assertEqual((True, False, before), (call.aborted, call.whole, call.body))
        self.assertEqual(
            (None, 502, False), (world.gate.busy, world.request_log.latest()[0]["status"], world.content.has(KEY))
        )
        self.assertEqual([], self.flushLoggedErrors())

    def test_broken_stream(self) -> None:
        """A stream that breaks off gets one last event that says so, and ends."""
        world = self.warm_world()
        world.llama_server.pause_at = {"stream"}
        call = world.chat("@code why?", stream=True)
        before = call.body
        world.llama_server.break_off()
        world.settle()
        rest = call.body[len(before) :]
        self.assertTrue(call.body.startswith(before))
        self.assertRegex(rest, rb"\A\n\ndata: \{.*\}\n\n\Z")
        self.assertEqual("upstream_error", json.loads(rest.strip()[6:])["error"]["type"])
        self.assertTrue(call.whole)
        self.assertEqual(
            (None, 502, False), (world.gate.busy, world.request_log.latest()[0]["status"], world.content.has(KEY))
        )
        self.assertEqual([], self.flushLoggedErrors())

    def test_broken_before_the_first_byte(self) -> None:
        """An answer of which only the head came is replaced by a clean error: nothing of that head is left."""
        wire = Wire()
        world = self.world({}, wire.agents())
        call = world.send("GET", "/")
        line = wire.accept()
        line.send(b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nEtag: x\r\nContent-Length: 3\r\n\r\n")
        line.lose()
        self.assertEqual((502, True, "upstream_error"), (call.status, call.whole, call.json()["error"]["type"]))
        for name in ("content-encoding", "etag"):
            self.assertNotIn(name, call.headers)


class Numbers(WorldTest):
    """What is counted and kept."""

    def test_metrics(self) -> None:
        """Requests are counted by path, template and status, their tokens by where they came from."""
        world = self.warm_world()
        world.chat("@code " + "x" * 100)
        world.chat("hello")
        world.send("GET", "/nothing")
        self.assertEqual(1, world.sample("requests_total", endpoint=CHAT, template="code", code="200"))
        self.assertEqual(1, world.sample("requests_total", endpoint=CHAT, template="", code="200"))
        self.assertEqual(1, world.sample("requests_total", endpoint="other", template="", code="404"))
        computed = len("x" * 100 + "</><assistant>")
        self.assertEqual(len(PREFIX), world.sample("prompt_tokens_total", template="code", source="cache"))
        self.assertEqual(computed, world.sample("prompt_tokens_total", template="code", source="computed"))
        saved = world.sample("prefill_seconds_saved_total", template="code")
        self.assertAlmostEqual(len(PREFIX) * world.llama_server.ms_per_token / 1000, saved)
        for name in ("request_seconds", "ttft_seconds", "queue_seconds"):
            self.assertEqual(1, world.sample(f"{name}_count", template="code"), name)

    def test_times(self) -> None:
        """Waiting, the first byte and the end are measured from the request's arrival, in milliseconds."""
        world = self.warm_world()
        world.llama_server.pause_at = {CHAT, "stream"}
        first = world.chat("hello")
        second = world.chat("@code why?", stream=True)
        world.advance(1)
        world.llama_server.go_on()  # ends the first
        world.settle()
        self.assertTrue(first.whole)
        world.advance(2)
        world.llama_server.go_on()  # the second's first piece
        world.settle()
        world.llama_server.pause_at = set()
        world.advance(4)
        world.llama_server.go_on()
        world.settle()
        self.assertEqual("1000.0", second.headers["x-bioproxy-queue-ms"])
        record = world.request_log.latest()[0]
        self.assertEqual((1000, 3000, 7000), (record["queue_ms"], record["ttft_ms"], record["total_ms"]))
        self.assertEqual(1, world.sample("queue_seconds_sum", template="code"))
        self.assertEqual(3, world.sample("ttft_seconds_sum", template="code"))
        self.assertEqual(7, world.sample("request_seconds_sum", template="code"))

    def test_record(self) -> None:
        """A request's record has all about it but what was said."""
        world = self.warm_world()
        world.content.forget()
        world.chat("@code SECRET")
        record = world.request_log.latest()[0]
        tokens = len("SECRET</><assistant>")
        expected = {"path": CHAT, "template": "code", "status": 200, "cache": "restored", "miss": None}
        expected |= {"prompt_tokens": len(PREFIX) + tokens, "cached_tokens": len(PREFIX), "restore_ms": 0.0}
        self.assertEqual(expected, {key: record[key] for key in expected})
        self.assertNotIn("SECRET", json.dumps(world.request_log.latest()))
