"""The edge: what the example's HAProxy does with requests, in front of stand-ins for the pairs that take notes."""

from __future__ import annotations

import http.client
import json
import os
import re
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from email.message import Message
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from benchmarks.fleet_parts import KEY, Balancer, find_haproxy
from benchmarks.servers import PATIENCE, ROOT, wait_for

CHAT = "/v1/chat/completions"


class StandIn(ThreadingHTTPServer):
    """Both ports of a pair.  It keeps requests that say ``hold`` until `let_go` is set."""

    daemon_threads = True
    request_queue_size = 400

    def __init__(self, name: str) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.name = name
        self.port = self.admin = int(self.server_address[1])
        self.ready = True
        self.status = 200
        self.let_go = threading.Event()
        self.seen: list[tuple[str, Message, bytes]] = []

    def bodies(self) -> list[Any]:
        """Return the bodies that came, decoded."""
        return [json.loads(body) for _, _, body in self.seen]


class Handler(BaseHTTPRequestHandler):
    """Answers one request of `StandIn`."""

    protocol_version = "HTTP/1.1"
    server: StandIn

    def do_GET(self) -> None:
        """Answer the check of HAProxy."""
        self._answer(200 if self.server.ready else 503)

    def do_POST(self) -> None:
        """Note the request, and answer at once or later."""
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.seen.append((self.path, self.headers, body))
        if b'"stream": true' in body:
            self.send_response(200)
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            self.wfile.write(b"6\r\nfirst\n\r\n")
            self.server.let_go.wait()
            # Half a piece, and the end of the connection.
            self.wfile.write(b"6\r\nsec" if b"break" in body else b"7\r\nsecond\n\r\n0\r\n\r\n")
            self.close_connection = b"break" in body
            return
        if b"hold" in body:
            self.server.let_go.wait()
        self._answer(self.server.status)

    def _answer(self, status: int) -> None:
        self.send_response(status)
        self.send_header("Content-Length", "2")
        self.end_headers()
        self.wfile.write(b"{}")

    def log_message(self, *_: Any) -> None:
        """Say nothing."""


class Edge:
    """A HAProxy and three stand-ins."""

    def __init__(self, stack: ExitStack, folder: Path) -> None:
        self.pairs = [StandIn(f"pair{number}") for number in (1, 2, 3)]
        for pair in self.pairs:
            threading.Thread(target=pair.serve_forever, daemon=True).start()
            stack.callback(pair.server_close)
            stack.callback(pair.shutdown)
            stack.callback(pair.let_go.set)
        self.balancer = Balancer(stack, folder, *self.pairs)
        wait_for("HAProxy to see the pairs", lambda: all(self.balancer.sees(pair) for pair in self.pairs))

    def begin(self, body: Any, path: str = CHAT, key: str = KEY, **headers: str) -> http.client.HTTPConnection:
        """Send a request."""
        connection = http.client.HTTPConnection("127.0.0.1", self.balancer.port, timeout=PATIENCE)
        sent = {"Authorization": f"Bearer {key}"} if key else {}
        more = {name.replace("_", "-"): value for name, value in headers.items()}
        connection.request("POST", path, json.dumps(body), {**sent, **more})
        return connection

    def ask(self, body: Any, path: str = CHAT, key: str = KEY, **headers: str) -> http.client.HTTPResponse:
        """Send a request; return the answer, with its body as `body`."""
        connection = self.begin(body, path, key, **headers)
        response = connection.getresponse()
        response.body = response.read()  # type: ignore[attr-defined]
        connection.close()
        return response

    def place(self, body: Any, path: str = CHAT, **headers: str) -> str | None:
        """Return which pair a request comes to when nobody else asks."""
        # HAProxy counts the request before for a moment longer than its client does, and a pair that is busy gives its
        # sessions to others.
        wait_for("HAProxy to be idle", lambda: not any(self.busy(proxy) for proxy in ("line", "pairs")))
        response = self.ask(body, path, **headers)
        assert response.status == 200
        return response.getheader("X-Fleet-Pair")

    def busy(self, proxy: str) -> float:
        """Return how many requests a backend of HAProxy counts."""
        return self.balancer.metric("backend_current_sessions", proxy=proxy)

    def seen(self) -> list[Any]:
        """Return the bodies that came to the pairs."""
        return [body for pair in self.pairs for body in pair.bodies()]

    def fill(self) -> list[http.client.HTTPConnection]:
        """Take all places at the pairs."""
        taken = [self.begin({"hold": number}, X_Session_Id=str(number)) for number in range(6)]
        name = "server_current_sessions"
        wait_for("all places to be taken", lambda: self.balancer.metric(name, proxy="line", server="turns") == 6)
        return taken

    def waiting(self) -> float:
        """Return how many requests wait in HAProxy."""
        return self.balancer.metric("backend_current_queue", proxy="line")


@pytest.fixture
def edge(tmp_path: Path) -> Iterator[Edge]:
    """Return a running HAProxy with nobody at it."""
    if find_haproxy() is None:
        pytest.fail("haproxy is missing") if os.environ.get("CI") == "true" else pytest.skip("haproxy is missing")
    with ExitStack() as stack:
        yield Edge(stack, tmp_path)


def error_of(response: http.client.HTTPResponse) -> tuple[int, str]:
    """Return status and type of an error that both OpenAI's and Anthropic's clients understand."""
    error = json.loads(response.body)  # type: ignore[attr-defined]
    assert (error["type"], error["error"]["code"]) == ("error", response.status)
    assert error["error"]["message"]
    return response.status, error["error"]["type"]


FORMS: dict[str, Any] = {
    "chat": {"messages": [{"role": "system", "content": 'say "hi"'}, {"role": "user", "content": "@W go"}]},
    "chat with parts": {"messages": [{"role": "user", "content": [{"type": "text", "text": "  @W other words"}]}]},
    "messages": {"system": "x", "messages": [{"role": "user", "content": [{"text": "@W\nx", "type": "text"}]}]},
    "a later turn": {"messages": [{"role": "user", "content": "@W a"}, {"role": "user", "content": "@other b"}]},
    "quoted": {"messages": [{"role": "system", "content": '"role": "user", "content": "@no"'}], "prompt": "@W x"},
    "responses": {"model": "m", "input": "@W please"},
    "responses with parts": {"input": [{"role": "user", "content": [{"type": "input_text", "text": "@W x"}]}]},
    "completion": {"prompt": "@W"},
}
"""Requests whose first user message begins with the same word."""


def test_keys_of_requests(edge: Edge) -> None:
    """The first word of the first user message decides, in every form; a session or `prompt_cache_key` comes before."""
    places = {}
    for word in map(str, range(8)):
        forms = {name: json.loads(json.dumps(form).replace("@W", f"@{word}")) for name, form in FORMS.items()}
        found = {name: edge.place(form) for name, form in forms.items()}
        assert len(set(found.values())) == 1, found
        places[word] = found["chat"]
    assert len(set(places.values())) == 3

    # Each of these headers comes before the next ones, and before all that is in the body.
    body, keys = FORMS["chat"], "abcdefgh"
    names = ["X_Session_Id", "x_session_affinity", "x_claude_code_session_id", "X_Conversation_Id"]
    for number, name in enumerate(names):
        later = dict.fromkeys(names[number + 1 :], "z")
        first = [edge.place(body, **{name: key}) for key in keys]
        assert len(set(first)) == 3
        assert first == [edge.place(body | {"prompt_cache_key": "z"}, **later, **{name: key}) for key in keys]
    chosen = [edge.place({"prompt_cache_key": key} | body) for key in keys]
    assert len(set(chosen)) == 3
    assert chosen == [edge.place(FORMS["responses"] | {"prompt_cache_key": key}) for key in keys]
    # Sub-agents of one session may spread.
    agents = [edge.place(body, x_claude_code_session_id="s", x_claude_code_agent_id=key) for key in keys]
    assert len(set(agents)) == 3
    # Where no word is a prefix, chats with the same first word have keys of their own, turn after turn.
    chats = [[{"role": "user", "content": f"What is {key}?"}] for key in keys]
    asked = [edge.place({"messages": chat}) for chat in chats]
    assert len(set(asked)) == 3
    assert asked == [edge.place({"messages": [*chat, {"role": "user", "content": "x"}]}) for chat in chats]
    # All else goes by the client's address, of which there is one here.
    others: list[Any] = [{}, [], "x", {"messages": []}, {"prompt": [1, 2]}, {"prompt": ""}]
    assert len({edge.place(each) for each in others}) == 1


def test_client_keys(edge: Edge) -> None:
    """Keys are checked here and go no further; without one there is a 401, also at Anthropic's API."""
    for key in ("", "wrong", f"{KEY}x"):
        assert error_of(edge.ask({}, key=key)) == (401, "authentication_error")
        assert error_of(edge.ask({}, "/v1/messages", key, x_api_key=key)) == (401, "authentication_error")
    assert edge.ask({}, key="").getheader("Retry-After") is None
    assert not edge.seen()
    assert edge.ask({}).status == edge.ask({}, key="", x_api_key=KEY).status == 200
    assert edge.ask({}, key=KEY.upper()).status == 401
    for pair in edge.pairs:
        for _, headers, _ in pair.seen:
            assert not {"authorization", "x-api-key", "x-fleet-key"} & {name.lower() for name in headers}


def test_streams(edge: Edge) -> None:
    """The first piece passes before there is a second one, and a stream that breaks off does not look whole."""
    for more in ({}, {"break": True}):
        connection = edge.begin({"stream": True, **more})
        response = connection.getresponse()
        assert response.readline() == b"first\n"
        for pair in edge.pairs:
            pair.let_go.set()
        if not more:
            assert response.read() == b"second\n"
        else:
            with pytest.raises(http.client.IncompleteRead):
                response.read()
        connection.close()
        for pair in edge.pairs:
            pair.let_go.clear()


def test_hang_up_in_line(edge: Edge) -> None:
    """A client that hangs up while it waits never reaches a pair; the next one does."""
    taken = edge.fill()
    gone = edge.begin({"who": "gone"})
    wait_for("the line", lambda: edge.waiting() == 1)
    stays = edge.begin({"who": "stays"})
    wait_for("the line", lambda: edge.waiting() == 2)
    gone.close()
    wait_for("the line", lambda: edge.waiting() == 1)
    for pair in edge.pairs:
        pair.let_go.set()
    assert stays.getresponse().status == 200
    assert [connection.getresponse().status for connection in taken] == [200] * 6
    assert {"who": "stays"} in edge.seen() and {"who": "gone"} not in edge.seen()


def test_all_full(edge: Edge) -> None:
    """No pair has more than its places; when hundreds wait, the next one is told when to try again."""
    taken = edge.fill()
    waiting = [edge.begin({"hold": "waits"}) for _ in range(300)]
    wait_for("the line", lambda: edge.waiting() == 300)
    refused = edge.ask({})
    assert error_of(refused) == (503, "unavailable_error")
    assert refused.getheader("Retry-After") == "10"
    assert all(len(pair.seen) <= 2 for pair in edge.pairs)
    # What needs no turn does not wait.
    assert edge.ask({}, "/tokenize").status == 200
    for connection in [*waiting, *taken]:
        connection.close()


def test_drained_by_hand(edge: Edge) -> None:
    """A pair that an operator drains finishes what it has and gets nothing new until it is ready again."""
    first = edge.pairs[0]
    names = [f"session {number}" for number in range(9)]
    at_first = [name for name in names if edge.place({}, X_Session_Id=name) == first.name]
    assert at_first
    running = edge.begin({"hold": "on"}, X_Session_Id=at_first[0])
    wait_for("an answer that takes long", lambda: {"hold": "on"} in first.bodies())
    assert edge.balancer.command(f"set server pairs/{first.name} state drain") == ""
    count = len(first.seen)
    for name in names:
        for path in (CHAT, "/tokenize"):
            assert edge.ask({}, path, X_Session_Id=name).status == 200
    assert len(first.seen) == count
    first.let_go.set()
    assert running.getresponse().status == 200
    assert edge.balancer.command(f"set server pairs/{first.name} state ready") == ""
    assert [name for name in names if edge.place({}, X_Session_Id=name) == first.name] == at_first


def test_bodies(edge: Edge) -> None:
    """Large bodies pass whole, also from a client that asks first."""
    body = {"prompt": "@code " + "x" * 3_000_000}
    assert edge.place(body) == edge.place({"prompt": "@code"})
    assert edge.place(body, Expect="100-continue") == edge.place({"prompt": "@code"})
    assert edge.seen().count(body) == 2


def test_numbers(edge: Edge) -> None:
    """All numbers of HAProxy that the dashboard and the alerts ask for are there, under these names and labels."""
    asked = set()
    for file in ("grafana/dashboards/bioproxy.json", "prometheus/rules.yml"):
        text = (ROOT / "examples" / file).read_text().replace("\\", "")
        asked |= set(re.findall(r"(haproxy_\w+)\{([^}]*)\}", text))
    assert len(asked) >= 3
    connection = http.client.HTTPConnection("127.0.0.1", edge.balancer.operators, timeout=PATIENCE)
    connection.request("GET", "/metrics")
    lines = connection.getresponse().read().decode().splitlines()
    for name, labels in asked:
        wanted = labels.split(",")
        assert any(line.startswith(name + "{") and all(each.strip() in line for each in wanted) for line in lines), name


def test_pairs_that_stop(edge: Edge) -> None:
    """A pair that stops, refuses or is gone costs nobody an answer; where no pair is left, there is a 503."""
    first, second, third = edge.pairs
    first.ready = False
    wait_for("the first one to be left alone", lambda: not edge.balancer.sees(first))
    # Between two checks: it is known to HAProxy as ready, and answers that it stops.
    second.status = 503
    assert {edge.place({}, X_Session_Id=str(number)) for number in range(9)} == {"pair3"}
    # Nobody listens any more.
    second.status = 200
    second.shutdown()
    second.server_close()
    assert {edge.place({}, X_Session_Id=str(number)) for number in range(9)} == {"pair3"}
    third.ready = False
    wait_for("nobody to be ready", lambda: not edge.balancer.sees(third))
    refused = edge.ask({})
    assert error_of(refused) == (503, "unavailable_error")
    assert refused.getheader("Retry-After") == "5"
    first.ready = True
    wait_for("the first one to come back", lambda: edge.balancer.sees(first))
    assert edge.place({}) == "pair1"
