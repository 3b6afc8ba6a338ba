"""TLS to llama-server, endpoints to listen at, and the key that llama-server wants: on real sockets."""

from __future__ import annotations

import datetime
import http.client
import json
import socket
import ssl
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import pytest
import trustme
from twisted.internet.defer import Deferred
from twisted.internet.endpoints import SSL4ServerEndpoint
from twisted.internet.ssl import CertificateOptions, PrivateCertificate
from twisted.internet.threads import deferToThread
from twisted.logger import ILogObserver, globalLogPublisher
from twisted.protocols.portforward import ProxyFactory
from zope.interface import implementer

from bioproxy.runtime.errors import CannotStart
from tests.integration.conftest import LlamaOf, ProxyOf, Run
from tests.integration.support import (
    FOREGROUND,
    PATIENCE,
    REST,
    TWISTD,
    LlamaServer,
    RunningProxy,
    Twistd,
    answers,
    async_fixture,
    async_test,
    conversation,
    environment,
    eventually,
    fetch,
    free_port,
    prose,
    reactor,
    until,
)

CODE = f"{prose(600, seed=1)}\nAnswer: <{{message}}>"
STORY = f"{prose(300, seed=2)}\nAbout: <{{message}}>"
BOTH = {"code": CODE, "story": STORY}


@dataclass(frozen=True)
class Authority:
    """A certificate authority of the test's own; `file` has its certificate."""

    ca: trustme.CA
    folder: Path

    @property
    def file(self) -> Path:
        """The certificate that a client has to trust."""
        path = self.folder / "ca.pem"
        self.ca.cert_pem.write_to_path(str(path))
        return path

    def certificate(self, *names: str, **more: Any) -> Path:
        """Return a file with a key and a certificate for these names."""
        path = self.folder / f"{'-'.join(names)}.pem"
        self.ca.issue_cert(*names, **more).private_key_and_cert_chain_pem.write_to_path(str(path))
        return path


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    """Return a certificate authority that nobody trusts yet."""
    folder = tmp_path / "certificates"
    folder.mkdir()
    return Authority(trustme.CA(), folder)


FrontOf = Callable[[LlamaServer, Path], "Deferred[int]"]


@async_fixture
async def front_of() -> AsyncIterator[FrontOf]:
    """Return a function that puts TLS in front of a llama-server, and gives the port."""
    ports: list[Any] = []

    async def make(llama: LlamaServer, certificate: Path) -> int:
        options: CertificateOptions = PrivateCertificate.loadPEM(certificate.read_bytes()).options()
        factory = ProxyFactory("127.0.0.1", llama.port)
        factory.noisy = False
        endpoint = SSL4ServerEndpoint(reactor, 0, options, interface="127.0.0.1")
        ports.append(await cast("Deferred[Any]", endpoint.listen(factory)))
        return int(ports[-1].getHost().port)

    yield lambda llama, certificate: Deferred.fromCoroutine(make(llama, certificate))
    for port in ports:
        await port.stopListening()


# TLS to llama-server.


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1"])
@async_test
async def test_trusted(
    llama: LlamaServer, proxy_of: ProxyOf, authority: Authority, front_of: FrontOf, host: str
) -> None:
    """A llama-server whose certificate is by somebody in `llama_ca_file` is used: by clients, and for warm-ups."""
    port = await front_of(llama, authority.certificate(host))
    proxy = proxy_of(f"https://{host}:{port}", BOTH, llama_ca_file=str(authority.file))
    tokens = await proxy.warm("story", "code")
    await proxy.chat("@story a chair")
    answer = await proxy.chat("@code why?")
    assert (answer.status, answer.cache, answer.timings["cache_n"]) == (200, "restored", tokens)
    stream = await proxy.chat("@code how?", stream=True)
    assert (stream.status, stream.cache, stream.events()[-1]) == (200, "hot", "[DONE]")


def too_old(authority: Authority) -> Path:
    """Return a certificate that was good until yesterday."""
    return authority.certificate("localhost", not_after=datetime.datetime.now() - datetime.timedelta(days=1))


REFUSED: dict[str, tuple[Callable[[Authority], Path], bool, str]] = {
    "unknown": (lambda authority: authority.certificate("localhost"), False, "certificate"),
    "other-name": (lambda authority: authority.certificate("llama.example"), True, "not for the host"),
    "expired": (too_old, True, "certificate"),
}
"""A certificate, whether its authority is trusted, and what an error has to say."""


@pytest.mark.parametrize("name", REFUSED)
@async_test
async def test_refused(
    llama: LlamaServer, proxy_of: ProxyOf, authority: Authority, front_of: FrontOf, name: str
) -> None:
    """A certificate of a stranger, for another name, or too old is refused: nothing is sent, and clients hear why."""
    certificate, trusted, word = REFUSED[name]
    port = await front_of(llama, certificate(authority))
    ca_file = {"llama_ca_file": str(authority.file)} if trusted else {}
    proxy = proxy_of(f"https://localhost:{port}", **ca_file)
    answer = await proxy.chat("hello?")
    assert (answer.status, answer.json()["error"]["type"]) == (502, "upstream_error")
    for message in (answer.json()["error"]["message"], (await fetch("GET", proxy.admin_url + "/readyz")).body.decode()):
        assert word in message
        assert "certificate" in message
        assert "[" not in message and "Error(" not in message, f"this is for a program: {message}"
    status = (await proxy.status())["llama"]
    assert status["up"] is False
    assert word in json.dumps(status), "/status says why"
    assert "llama_ca_file" in status["help"], "/status says what helps"
    assert "id_task" not in await llama.slot(), "llama-server has had nothing to do"


@async_test
async def test_no_certificates_in_the_file(run: Run, tmp_path: Path) -> None:
    """A `llama_ca_file` that is missing, or has no certificate in it, ends the start, and is told by `--check`."""
    (tmp_path / "empty.pem").write_text("nothing")
    url = ["--llama-url", "https://localhost:8443"]
    started = {
        (name, check): run(*FOREGROUND, *url, "--llama-ca-file", name, *check)
        for name in ("missing.pem", "empty.pem")
        for check in ((), ("--check",))
    }
    for (name, _), process in started.items():
        assert await process.ended() == 1
        assert f"llama_ca_file: {tmp_path / name}: " in one_line(process)


def one_line(process: Twistd) -> str:
    """Return the one line that says what is wrong."""
    assert "Traceback" not in process.output
    lines = [line for line in process.output.splitlines() if "bioproxy: " in line]
    assert len(lines) == 1, process.output
    return lines[0]


def ports() -> list[str]:
    """Return options for the operator's port, and for a llama-server that is not there."""
    return ["--admin-port", str(free_port()), "--llama-url", f"http://127.0.0.1:{free_port()}"]


# Where to listen.


def https(port: int, ca_file: Path) -> tuple[int, str, dict[str, Any]]:
    """Ask a chat over https; return status, TLS's protocol and the answer.  Blocking: for a thread."""
    context = ssl.create_default_context(cafile=str(ca_file))
    context.set_alpn_protocols(["h2", "http/1.1"])
    connection = http.client.HTTPSConnection("localhost", port, timeout=PATIENCE, context=context)
    try:
        connection.request("POST", "/v1/chat/completions", json.dumps(conversation("@code why?")))
        chosen = connection.sock.selected_alpn_protocol()
        response = connection.getresponse()
        return response.status, str(chosen), json.loads(response.read())
    finally:
        connection.close()


@async_test
async def test_listening_with_tls(llama: LlamaServer, proxy_of: ProxyOf, authority: Authority) -> None:
    """With an `ssl:` endpoint clients speak https, and HTTP/1.1 inside."""
    port, certificate = free_port(), authority.certificate("localhost")
    proxy = proxy_of(
        llama.url,
        {"code": CODE},
        listen=f"ssl:{port}:privateKey={certificate}:certKey={certificate}:interface=127.0.0.1",
    )
    tokens = await proxy.warm("code")
    status, protocol, answer = await deferToThread(https, port, authority.file)
    assert (status, protocol) == (200, "http/1.1")
    assert answer["timings"]["cache_n"] >= tokens


class UnixConnection(http.client.HTTPConnection):
    """A connection to a Unix socket."""

    def __init__(self, path: Path) -> None:
        super().__init__("localhost", timeout=PATIENCE)
        self._path = path

    def connect(self) -> None:
        """Open it."""
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(PATIENCE)
        self.sock.connect(str(self._path))


def over_unix(path: Path, method: str, target: str, body: Any = None) -> tuple[int, dict[str, Any]]:
    """Send a request to a Unix socket; return status and JSON.  Blocking: for a thread."""
    connection = UnixConnection(path)
    try:
        connection.request(method, target, None if body is None else json.dumps(body))
        response = connection.getresponse()
        return response.status, json.loads(response.read())
    finally:
        connection.close()


@async_test
async def test_listening_at_unix_sockets(llama: LlamaServer, proxy_of: ProxyOf, tmp_path: Path) -> None:
    """With `unix:` endpoints both ports are files, which are gone after the end."""
    clients, operators = tmp_path / "clients.sock", tmp_path / "operators.sock"
    proxy = proxy_of(llama.url, {"code": CODE}, listen=f"unix:{clients}", admin_listen=f"unix:{operators}")

    def state() -> str:
        status, answer = over_unix(operators, "GET", "/status")
        assert status == 200
        return str(answer["templates"][0]["state"])

    async def warm() -> bool:
        return await deferToThread(state) == "warm"

    await eventually(warm)
    status, answer = await deferToThread(over_unix, clients, "POST", "/v1/chat/completions", conversation("@code why?"))
    assert (status, answer["timings"]["prompt_n"] < 40 + REST) == (200, True)
    await proxy.stop()
    assert not clients.exists() and not operators.exists()


ACTIVATE = """
import os, socket, sys
listening = socket.socket(fileno=int(sys.argv[1]))
os.dup2(listening.fileno(), 3)
os.set_inheritable(3, True)
os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS="1", LISTEN_FDNAMES="clients")
os.execv(sys.argv[2], sys.argv[2:])
"""
"""What systemd does: has a program find an open socket as file 3, and says so in its environment."""


@async_test
async def test_a_socket_from_systemd(tmp_path: Path) -> None:
    """With a `systemd:` endpoint it answers at a socket that was open before it started."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port, admin_port = listening.getsockname()[1], free_port()
        command = [TWISTD, "--pidfile=", "-n", "bioproxy", "--listen", "systemd:domain=INET:index=0"]
        options = ["--admin-port", str(admin_port), "--llama-url", f"http://127.0.0.1:{free_port()}"]
        process = ActivatedTwistd(tmp_path, listening, [*command, *options])
    try:
        # Nobody but the process has the socket now.
        await eventually(lambda: answers(f"http://127.0.0.1:{admin_port}/healthz"))
        answer = await fetch("GET", f"http://127.0.0.1:{port}/health")
        assert (answer.status, answer.json()["error"]["type"]) == (502, "upstream_error")
        process.process.terminate()
        assert await until(lambda: process.process.poll() is not None)
        assert "Traceback" not in process.output
    finally:
        process.kill()


class ActivatedTwistd:
    """twistd with a socket that was opened for it."""

    def __init__(self, folder: Path, listening: socket.socket, command: list[str]) -> None:
        self._output = folder / "activated.out"
        with open(self._output, "wb") as output:
            self.process = subprocess.Popen(
                [sys.executable, "-c", ACTIVATE, str(listening.fileno()), sys.executable, *command],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env=environment(folder),
                cwd=folder,
                pass_fds=[listening.fileno()],
            )

    @property
    def output(self) -> str:
        """Return what it wrote so far."""
        return self._output.read_text()

    def kill(self) -> None:
        """End it the hard way, if it still runs."""
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait(timeout=PATIENCE)


@async_test
async def test_unix_socket_in_use(run: Run, tmp_path: Path) -> None:
    """A Unix socket at which another bioproxy listens is refused; one that a killed bioproxy has left is taken over."""
    path, admin_port = tmp_path / "clients.sock", free_port()
    options = ["--listen", f"unix:{path}", "--llama-url", f"http://127.0.0.1:{free_port()}"]
    first = run(*FOREGROUND, "--admin-port", str(admin_port), *options)
    await eventually(lambda: answers(f"http://127.0.0.1:{admin_port}/healthz"))
    second = run(*FOREGROUND, "--admin-port", str(free_port()), "--state-dir", "another", *options)
    assert await second.ended() == 1
    line = one_line(second)
    assert f"cannot listen on {path}: " in line or f"cannot listen on unix:{path}: " in line
    first.kill()
    assert path.exists()
    run(*FOREGROUND, "--admin-port", str(admin_port), *options)
    await eventually(lambda: answers(f"http://127.0.0.1:{admin_port}/healthz"))
    status, answer = await deferToThread(over_unix, path, "GET", "/health")
    assert (status, answer["error"]["type"]) == (502, "upstream_error")


@async_test
async def test_endpoints_that_are_none(proxy_of: ProxyOf, run: Run, tmp_path: Path, authority: Authority) -> None:
    """A mistake in `listen` or `admin_listen` ends the start with exit code 1 and one line that names it."""
    missing = f"unix:{tmp_path}/missing/clients.sock"
    # These are found out when listening begins.
    late = (missing, "tcp:99999", "nonsense:8081")
    in_processes = [run(*FOREGROUND, *ports(), "--listen", mistake) for mistake in late]
    broken, key = tmp_path / "broken.pem", tmp_path / "key.pem"
    broken.write_text("nothing")
    authority.ca.issue_cert("localhost").private_key_pem.write_to_path(str(key))
    for mistake in (
        "nonsense",
        "tcp:port",
        "tcp:",
        "systemd:domain=INET:index=0",
        f"ssl:8443:privateKey={tmp_path}/missing.pem",
        f"ssl:8443:privateKey={broken}",
        f"ssl:8443:privateKey={key}:certKey={broken}",
    ):
        for name in ("listen", "admin_listen"):
            with pytest.raises(CannotStart) as caught:
                proxy_of("http://127.0.0.1:1", **{name: mistake})
            assert str(caught.value).startswith(f"bioproxy: cannot listen on {mistake}: ")
            assert "\n" not in str(caught.value)
    for process, mistake in zip(in_processes, late, strict=True):
        assert await process.ended() == 1
        assert f"bioproxy: cannot listen on {mistake}: " in one_line(process)


@async_test
async def test_port_beats_the_files_endpoint(run: Run, tmp_path: Path) -> None:
    """`--port` on the command line beats the file's `listen`, and `--admin-port` its `admin_listen`."""
    port, admin_port = free_port(), free_port()
    file = tmp_path / "conf.json"
    file.write_text(
        json.dumps({"listen": f"unix:{tmp_path}/clients.sock", "admin_listen": f"unix:{tmp_path}/operators.sock"})
    )
    url = ["--llama-url", f"http://127.0.0.1:{free_port()}"]
    process = run(*FOREGROUND, "--config", str(file), "--port", str(port), "--admin-port", str(admin_port), *url)
    await eventually(lambda: answers(f"http://127.0.0.1:{admin_port}/healthz"))
    assert (await fetch("GET", f"http://127.0.0.1:{port}/health")).status == 502
    assert not list(tmp_path.glob("*.sock"))
    await process.terminate()


@pytest.mark.parametrize(
    ("settings", "warned"),
    [
        ({}, False),
        ({"host": "0.0.0.0"}, True),
        ({"listen": "tcp:0"}, True),
        ({"host": "0.0.0.0", "keys": True}, False),
        ({"admin_host": "0.0.0.0", "keys": True}, True),
    ],
    ids=str,
)
@async_test
async def test_open_to_everybody(proxy_of: ProxyOf, tmp_path: Path, settings: dict[str, Any], warned: bool) -> None:
    """Listening for other machines without keys is told in a warning; with keys, or on this machine only, it is not."""
    keys = tmp_path / "keys"
    keys.write_text("a-key\n")
    keys.chmod(0o600)
    more = {name: value for name, value in settings.items() if name != "keys"}
    lines: list[Any] = []

    @implementer(ILogObserver)
    def observe(event: Any) -> None:
        lines.append(event)

    globalLogPublisher.addObserver(observe)
    try:
        proxy_of(
            f"http://127.0.0.1:{free_port()}", **more, **({"api_key_file": str(keys)} if "keys" in settings else {})
        )
        said = [line for line in lines if "is open to everyone" in str(line.get("log_format"))]
    finally:
        globalLogPublisher.removeObserver(observe)
    assert len(said) == warned


# llama-server's own key.


@async_test
async def test_llama_wants_a_key(llama_of: LlamaOf, proxy_of: ProxyOf, tmp_path: Path) -> None:
    """With `llama_api_key_file` warm-ups work, clients with a key of their own are served, and others are not."""
    for name, key in (("clients", "key-of-a-client"), ("llama", "key-of-llama")):
        (tmp_path / name).write_text(f"{key}\n")
        (tmp_path / name).chmod(0o600)
    llama = llama_of()
    llama.params = {"api_keys": ["key-of-llama"]}
    await llama.start()
    assert (await llama.call("GET", "/slots")).status == 401

    # Clients have llama-server's key themselves.
    proxy = proxy_of(llama.url, BOTH, llama_api_key_file=str(tmp_path / "llama"))
    tokens = await proxy.warm("story", "code")
    assert (await ask(proxy, None)).status == 401
    assert (await ask(proxy, "wrong")).status == 401
    answer = await ask(proxy, "key-of-llama")
    assert (answer.status, answer.timings["cache_n"] >= tokens) == (200, True)
    await proxy.stop()

    # Clients have keys of bioproxy's.
    both = {"api_key_file": str(tmp_path / "clients"), "llama_api_key_file": str(tmp_path / "llama")}
    proxy = proxy_of(llama.url, BOTH, **both)
    await proxy.warm("story", "code")
    for shown_key in (None, "wrong", "key-of-llama"):
        refusal = await ask(proxy, shown_key)
        assert (refusal.status, refusal.json()["error"]["type"]) == (401, "authentication_error")
        assert (await fetch("GET", f"{proxy.url}/slots", headers=shown(shown_key))).status == 401
    answer = await ask(proxy, "key-of-a-client")
    assert (answer.status, answer.timings["cache_n"] >= tokens) == (200, True)
    assert (await fetch("GET", f"{proxy.url}/health")).status == 200
    assert (await fetch("OPTIONS", f"{proxy.url}/v1/chat/completions")).status == 200


@async_test
async def test_llama_wants_a_key_that_is_not_there(llama_of: LlamaOf, proxy_of: ProxyOf) -> None:
    """Without its key llama-server is not ready for warm-ups, which is told; clients with the key are served."""
    llama = llama_of()
    llama.params = {"api_keys": ["key-of-llama"]}
    await llama.start()
    proxy = proxy_of(llama.url, {"code": CODE})
    assert (await ask(proxy, "key-of-llama")).status == 200
    ready = await fetch("GET", proxy.admin_url + "/readyz")
    assert (ready.status, "401" in ready.body.decode()) == (503, True)


def shown(key: str | None) -> dict[str, str]:
    """Return the header that shows a key."""
    return {} if key is None else {"Authorization": f"Bearer {key}"}


async def ask(proxy: RunningProxy, key: str | None) -> Any:
    """Ask a question on a template with a key."""
    return await fetch("POST", proxy.url + "/v1/chat/completions", conversation("@code why?"), shown(key))
