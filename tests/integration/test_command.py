"""The command `bioproxy` as a new user has it: in an empty home, on a terminal, with a real llama.cpp."""

from __future__ import annotations

import json
import re
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from bioproxy import __version__
from tests.integration.support import (
    LlamaServer,
    Twistd,
    answers,
    async_test,
    conversation,
    environment,
    eventually,
    fetch,
    free_port,
    prose,
    until,
)
from tests.support.command import command
from tests.support.terminal import CTRL_C, CTRL_D, Terminal

COMMAND = str(Path(sys.executable).with_name("bioproxy"))
"""The script that an installation makes."""

Run = Callable[..., Twistd]
Type = Callable[..., Terminal]


@pytest.fixture
def typed(tmp_path: Path) -> Iterator[Type]:
    """Return a function that types ``bioproxy WORDS`` on a terminal, in the home of a user without settings."""
    opened: list[Terminal] = []

    def start(*words: str, columns: int = 80, rows: int = 24, **more: str) -> Terminal:
        env = environment(tmp_path, **more)
        opened.append(Terminal(tmp_path, [COMMAND, *words], env, columns, rows))
        return opened[-1]

    yield start
    for each in opened:
        each.close()


def files(folder: Path) -> set[str]:
    """Return all files and folders of the user, but for the outputs of commands."""
    paths = (path.relative_to(folder) for path in folder.rglob("*"))
    return {str(path) for path in paths if path.suffix not in (".out", ".err")}


def document(folder: Path) -> Path:
    """Write a document of the user's."""
    path = folder / "My Notes.md"
    path.write_text(prose(300, seed=1))
    return path


# A new user's way.


@async_test
async def test_a_new_user(typed: Type, run: Run, llama: LlamaServer, tmp_path: Path) -> None:
    """From three answers to a warm answer: `init` on a terminal, `run` without options, `status` while it works."""
    document(tmp_path)
    port, admin_port = free_port(), free_port()
    init = typed("init")
    init.wait_for("Model file (GGUF)")
    init.type(f"{llama.url}\n")
    init.wait_for(f"llama-server at {llama.url} is up")
    init.wait_for("Text file")
    init.type("My Notes.md\n")
    init.wait_for("[@my-notes]: ")
    init.type("\n")
    assert init.ended() == 0
    file = tmp_path / "config" / "bioproxy" / "conf.json"
    template = file.with_name("my-notes.txt")
    assert json.loads(file.read_text()) == {"llama_url": llama.url, "prefixes": {"@my-notes": "my-notes.txt"}}
    assert f"<{{{tmp_path / 'My Notes.md'}}}>" in template.read_text()
    assert [path.stat().st_mode & 0o777 for path in (file, template, file.parent)] == [0o600, 0o600, 0o700]
    # The two commands that come next: the first is run as it is printed, but for the ports, which others may use here.
    first, second = re.findall(r"^    (.+)$", init.seen.replace("\r", ""), re.MULTILINE)
    assert first == f"{COMMAND} run"
    assert second.startswith("curl -s http://127.0.0.1:8081/v1/chat/completions -d ")
    process = run(*first.split(), "--port", str(port), "--admin-port", str(admin_port))
    admin = f"http://127.0.0.1:{admin_port}"
    await eventually(lambda: answers(f"{admin}/healthz"))
    # On a terminal it goes on until the template is warm, and leaves only the last state on the screen.
    status = typed("status", "--admin", admin)
    assert status.ended() == 0
    screen = status.screen
    assert screen[0].endswith(f"bioproxy {__version__}, up for {screen[0].rpartition('for ')[2]}")
    row = next(line for line in screen if line.startswith("my-notes"))
    assert re.sub(r"\x1b\[\d+m", "", row).split()[1:4] == ["warm", "##############", "100"]
    assert "no requests yet" in screen
    question = json.loads(second.partition(" -d ")[2].strip("'"))["messages"][0]["content"]
    answer = await fetch("POST", f"http://127.0.0.1:{port}/v1/chat/completions", conversation(question))
    assert (answer.status, answer.cache) == (200, "hot")
    # Once, and in plain text, where the output is no terminal.
    piped = run(COMMAND, "status", "--admin", admin)
    assert await piped.ended() == 0
    assert re.search(r"^my-notes +hot +\d+\.\d\d", piped.output, re.MULTILINE)
    assert "\x1b" not in piped.output
    as_json = run(COMMAND, "status", "--admin", admin, "--json")
    assert await as_json.ended() == 0
    assert json.loads(as_json.output)["requests"][0]["cache"] == "hot"
    assert await process.terminate() in (0, 128 + signal.SIGTERM)
    assert "Traceback" not in process.output
    assert not (tmp_path / "twistd.pid").exists()
    gone = typed("status", "--admin", admin)
    assert gone.ended() == 1
    assert gone.seen == f"bioproxy status: no answer from bioproxy at {admin}: Connection refused\r\n"


@async_test
async def test_a_new_user_with_a_model(typed: Type, run: Run, tiny: Path, tmp_path: Path) -> None:
    """The same with nothing but a model file: `run` starts llama.cpp itself, and `status` waits until all is warm."""
    words = ("--model", str(tiny), "--document", str(document(tmp_path)), "--prefix", "@notes")
    init = run(COMMAND, "init", *words)
    assert await init.ended() == 0, init.output
    file = tmp_path / "config" / "bioproxy" / "conf.json"
    assert json.loads(file.read_text()) == {"model": str(tiny), "prefixes": {"@notes": "notes.txt"}}
    port, admin_port = free_port(), free_port()
    ports = ("--port", str(port), "--admin-port", str(admin_port))
    # One thread: with more, llama.cpp's threads wait for each other in busy loops, slow where others work too.
    process = run(COMMAND, "run", *ports, "--llama-args", "--threads 1")
    admin = f"http://127.0.0.1:{admin_port}"
    await eventually(lambda: answers(f"{admin}/healthz"))
    status = typed("status", "--admin", admin)
    assert status.ended() == 0
    assert "############## 100 %" in next(line for line in status.screen if line.startswith("notes"))
    answer = await fetch("POST", f"http://127.0.0.1:{port}/v1/chat/completions", conversation("@notes What is it?"))
    assert (answer.status, answer.cache) == (200, "hot")
    assert await process.terminate() in (0, 128 + signal.SIGTERM)


# `bioproxy init`.


def test_init_asks_again(typed: Type, tmp_path: Path) -> None:
    """A wrong answer is asked again with the reason, and a model file is known by its first bytes."""
    (tmp_path / "empty.txt").touch()
    (tmp_path / "text.gguf").write_text("no model")
    document(tmp_path)
    init = typed("init")
    for wrong, reason in (
        ("text.gguf", "not a GGUF file"),
        ("missing.gguf", "No such file or directory"),
        ("http://h:x", "must be an address like"),
        ("", "must be a text"),
    ):
        init.wait_for("8080: ")
        init.type(f"{wrong}\n")
        init.wait_for(reason)
    init.wait_for("8080: ")
    init.type("http://127.0.0.1:1\n")
    init.wait_for("http://127.0.0.1:1 does not answer yet (Connection refused)")
    for wrong, reason in (("empty.txt", "is empty"), ("nothing.txt", "No such file"), (".", "Is a directory")):
        init.wait_for("ask about: ")
        init.type(f"{wrong}\n")
        init.wait_for(reason)
    init.wait_for("ask about: ")
    # Tab completes names of files, spaces in them included.
    init.type("My\t\n")
    init.wait_for("[@my-notes]: ")
    init.type("@a b\n")
    init.wait_for("gives no name")
    init.type("@mine\n")
    assert init.ended() == 0
    assert {"config/bioproxy/conf.json", "config/bioproxy/mine.txt"} < files(tmp_path)


@pytest.mark.parametrize(("key", "code"), [(CTRL_C, 130), (CTRL_D, 1)])
def test_init_given_up(typed: Type, tmp_path: Path, key: str, code: int) -> None:
    """Ctrl-C and the end of the input write nothing, at whichever question."""
    document(tmp_path)
    before = files(tmp_path)
    for answers_before in range(3):
        init = typed("init")
        for question, text in (("8080: ", "http://127.0.0.1:1"), ("ask about: ", "My Notes.md"))[:answers_before]:
            init.wait_for(question)
            init.type(f"{text}\n")
        init.wait_for(("8080: ", "ask about: ", "[@my-notes]: ")[answers_before])
        init.type(key)
        # A signal that comes just before Python waits for input is noticed with the next one, as a user would send it.
        assert init.ended(again=key) == code
        assert "Traceback" not in init.seen
        assert files(tmp_path) == before


# `bioproxy run`.


@async_test
async def test_run_as_a_module(run: Run) -> None:
    """`python -m bioproxy` is the command, too, and a port in use ends it with one line."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        words = ("run", "--admin-port", port, "--port", "0", "--llama-url", "http://127.0.0.1:1")
        process = run(sys.executable, "-m", "bioproxy", *words)
        assert await process.ended() == 1
    assert "Traceback" not in process.output
    assert port in process.output.splitlines()[-1]


def test_run_on_a_terminal(typed: Type) -> None:
    """Ctrl-C ends it, as it ends twistd in the foreground."""
    process = typed("run", "--port", "0", "--admin-port", "0", "--llama-url", "http://127.0.0.1:1")
    # The first line that comes from the running reactor.  Before that, Ctrl-C would be Python's and not Twisted's.
    process.wait_for("refuses connections")
    process.type(CTRL_C)
    assert process.ended() in (0, 128 + signal.SIGINT)
    assert "Traceback" not in process.seen


# `bioproxy status`.


class Canned(BaseHTTPRequestHandler):
    """Answers every GET with the next of the server's answers, the last one again and again."""

    def do_GET(self) -> None:
        """Answer.  Called by the server."""
        todo = self.server.answers  # type: ignore[attr-defined]
        status, body = todo.pop(0) if len(todo) > 1 else todo[0]
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Log nothing.  Called by the server for each request."""


Serve = Callable[..., str]


@pytest.fixture
def serve() -> Iterator[Serve]:
    """Return a function that starts a server with these answers, each a status and a body, and returns its address."""
    servers: list[HTTPServer] = []

    def start(*given: tuple[int, bytes]) -> str:
        server = HTTPServer(("127.0.0.1", 0), Canned)
        server.answers = list(given)  # type: ignore[attr-defined]
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        servers.append(server)
        return f"http://127.0.0.1:{server.server_address[1]}"

    yield start
    for each in servers:
        each.shutdown()
        each.server_close()


def body(progress: float = 1.0, busy: str | None = None, prompts: int = 1) -> bytes:
    """Return a `/status`."""
    state = "warm" if progress == 1.0 else "warming"
    prompt = {"kind": "template", "state": state, "progress": progress, "tokens": 6012, "hits": 3, "error": None}
    inside = {"prompt": "p0", "template": None, "path": None, "since": "2026-03-01T12:00:00+00:00", "progress": None}
    return json.dumps(
        {
            "version": "1",
            "uptime_s": 5,
            "llama": {"url": "http://h", "up": True, "model": "m", "note": None, "trouble": None},
            "gate": {"busy": busy, "waiting": 0, "lingering": False, "inside": inside if busy else None},
            "prompts": [{"name": f"p{n}", "warmup": None, **prompt} for n in range(prompts)],
            "requests": [],
        }
    ).encode()


def test_status_moves(typed: Type, serve: Serve) -> None:
    """While something warms up, the lines are replaced in place; when nothing does, it ends by itself."""
    address = serve((200, body(0.25, "warmup")), (200, body(0.5, "warmup")), (200, body()))
    status = typed("status", "--admin", address)
    for progress in ("###...........  25 %", "#######.......  50 %", "############## 100 %"):
        status.wait_for(progress)
    assert status.ended() == 0
    assert len([line for line in status.screen if "p0" in line]) == 1
    assert "\x1b[36mwarming\x1b[0m" in status.seen


def test_status_on_small_terminals(typed: Type, serve: Serve) -> None:
    """Lines are cut to the terminal's width, and to its height: what scrolled away could not be replaced."""
    address = serve((200, body(0.5, "warmup", prompts=30)), (200, body(prompts=30)))
    status = typed("status", "--admin", address, columns=40, rows=10, NO_COLOR="1")
    assert status.ended() == 0
    assert len(status.screen) == 9
    assert max(map(len, status.screen)) <= 40
    assert "\x1b[32m" not in status.seen


def test_status_on_a_dumb_terminal(typed: Type, serve: Serve) -> None:
    """A terminal without escape sequences gets none, and the lines once."""
    status = typed("status", "--admin", serve((200, body(0.5, "warmup"))), TERM="dumb")
    assert status.ended() == 0
    assert "\x1b" not in status.seen
    assert "warming" in status.seen


def test_status_ended_by_the_user(typed: Type, serve: Serve) -> None:
    """Ctrl-C ends it without a traceback."""
    status = typed("status", "--admin", serve((200, body(0.5, "warmup"))))
    status.wait_for("50 %")
    status.type(CTRL_C)
    assert status.ended() == 130
    assert "Traceback" not in status.seen


def test_status_of_others(serve: Serve, tmp_path: Path) -> None:
    """What is not the operator's port of bioproxy is said in one line, with the exit code 1."""
    for address, expected in (
        (serve((200, b"<html>")), "is not the operator's port of bioproxy"),
        (serve((200, b"[" * 100_000)), "is not the operator's port of bioproxy"),
        (serve((200, b'{"version": 1}')), "is not the operator's port of bioproxy"),
        (serve((404, b"")), "answered 404; is that the operator's port?"),
        (f"unix:{tmp_path}/none.sock", "none.sock: No such file or directory"),
    ):
        done = command("status", "--admin", address)
        assert (done.code, done.out) == (1, "")
        assert re.fullmatch(rf"bioproxy status: .*{re.escape(expected)}\n", done.err), done.err


def test_init_and_a_server(serve: Serve, tmp_path: Path) -> None:
    """`init` says what the server's `/health` answers, and goes on."""
    path = document(tmp_path)
    for status, expected in ((503, "is loading its model"), (404, "with status 404: is that a llama-server?")):
        file = tmp_path / str(status) / "conf.json"
        words = ("--llama-url", serve((status, b"")), "--document", str(path), "--config", str(file))
        done = command("init", *words)
        assert (done.code, done.err) == (0, "")
        assert expected in done.out
        assert file.exists()


@async_test
async def test_status_over_a_unix_socket(run: Run, tmp_path: Path) -> None:
    """An operator's port that is a Unix socket is found by the configuration."""
    settings = {"port": 0, "admin_listen": f"unix:{tmp_path}/admin.sock:mode=600", "llama_url": "http://127.0.0.1:1"}
    (tmp_path / "conf.json").write_text(json.dumps(settings))
    process = run(COMMAND, "run", "--config", "conf.json")
    await until(lambda: (tmp_path / "admin.sock").exists())
    status = run(COMMAND, "status", "--config", "conf.json")
    assert await status.ended() == 0
    assert "llama-server is not ready: " in status.output
    await process.terminate()


@async_test
async def test_status_into_a_pipe_that_closes(run: Run, serve: Serve, tmp_path: Path) -> None:
    """A reader that has enough, such as ``head``, causes no traceback."""
    # More than a pipe holds, so that the write really meets the end of the reader.
    address = serve((200, body(prompts=2000)))
    process = run("sh", "-c", f"{COMMAND} status --json --admin {address} | head -c 10")
    await process.ended()
    assert process.output == '{"version"'
