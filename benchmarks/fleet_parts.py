"""A fleet on this machine: HAProxy in front of pairs of bioproxy and a real llama.cpp, which share one shelf.

``make fleet`` (`benchmarks.fleet_demo`) and the tests run it.  HAProxy has the configuration of `examples/haproxy` as
it stands; its addresses come from the environment.  Each pair has folders of its own; common to all are the model, the
templates, and the folder of the shared shelf.

There is no Twisted in here: processes are started, asked over HTTP and ended, all from ordinary threads.  Every process
belongs to the `ExitStack` that the caller gives, which ends it whatever happens.

The processes are real, because what is in question is how they behave together: what HAProxy does when a pair is killed
in the middle of an answer, whether its configuration can be reloaded while requests run, whether a lease of a dead
process blocks the others.  The model is small, since nothing of that depends on it.

Does not know what the clients ask for (`benchmarks.fleet_clients`).
"""

from __future__ import annotations

import os
import random
import re
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Protocol

from benchmarks.agents_day import Llama, metric
from benchmarks.servers import ROOT, Child, Children, free_ports, get, listens, wait_for
from bioproxy.demo.vocabulary import COMMON_WORDS

CONFIGURATION = ROOT / "examples/haproxy/haproxy.cfg"
"""The configuration that everybody is told to use."""

KEY = "key-of-the-fleet"
"""The one key that HAProxy accepts."""

PATIENCE = 30.0
"""Seconds that HAProxy may take to start or to reload.

It needs less than one; on a machine that is overloaded, some.
"""


def find_haproxy() -> str | None:
    """Return where the program HAProxy is, `None` if nowhere; Debian has it where only root looks for programs."""
    return shutil.which("haproxy", path=os.environ.get("PATH", "") + ":/usr/sbin:/usr/local/sbin")


class Pair:
    """A bioproxy and its llama-server, both processes of their own.

    Ports and folders stay the same over `kill` and `start`, so that HAProxy finds the pair again.
    """

    def __init__(
        self, children: Children, folder: Path, name: str, model: Path, templates: Mapping[str, Path], *options: object
    ) -> None:
        """Start both; returns when bioproxy listens.  `templates` are files by prefix."""
        # HAProxy and the tables call it by this name.
        self.name = name
        self.port, self.admin = free_ports(2)
        # Its own disk, as on a machine of its own.  Only the folder "shelf" is common to all.
        own = folder / name
        own.mkdir()
        self.llama = Llama(children, own, model, "--ctx-size", 8192)
        self._children = children
        self._options = [
            *("--slot-save-path", self.llama.slots, "--shared-shelf", folder / "shelf"),
            *(word for prefix, file in templates.items() for word in ("--prefix", f"{prefix}={file}")),
            *options,
        ]
        self.start()

    def start(self) -> None:
        """Start bioproxy, for the first time or after its end; returns when it listens.

        It finds its slot folder and its records as it has left them.
        """
        url = f"http://127.0.0.1:{self.llama.port}"
        self.proxy: Child = self._children.bioproxy(self.name, self.port, self.admin, url, *self._options)

    def kill(self) -> None:
        """End both processes the hard way, as a machine that loses its power does."""
        for child in (self.proxy, self.llama.child):
            child.process.kill()
            child.process.wait()

    def drain(self) -> None:
        """Ask bioproxy to stop, as systemd does; returns at once.

        It finishes its answers and refuses new requests, which HAProxy then sends elsewhere.
        """
        self.proxy.process.send_signal(signal.SIGTERM)

    @property
    def running(self) -> bool:
        """Whether bioproxy's process is there."""
        return self.proxy.process.poll() is None

    def metric(self, name: str, **labels: str) -> float:
        """Return the sum of a metric's values that have these labels, by bioproxy's own count."""
        return metric(self.admin, name, **labels)

    def warm(self) -> bool:
        """Tell whether it has all templates in files, computed or fetched."""
        templates = get(self.admin, "/status")["templates"]
        return all(each["state"] == "warm" and each["warmed_at"] for each in templates)

    def published(self) -> bool:
        """Tell whether all that was saved here is on the shelf."""
        return not get(self.admin, "/status")["shared_shelf"]["to_publish"]


class Place(Protocol):
    """What HAProxy must know of a pair: its name, and the two ports.

    A protocol, so that tests can put a plain program in the place of a pair.
    """

    name: str
    port: int
    admin: int


class Balancer:
    """A real HAProxy, with a master process that can reload its configuration."""

    def __init__(self, stack: ExitStack, folder: Path, *pairs: Place, configuration: str | None = None) -> None:
        """Start HAProxy in front of three pairs, with the example's text or another `configuration`."""
        # What the configuration reads from its environment; the text itself is the one that users get.
        program = find_haproxy()
        if program is None:
            raise SystemExit("HAProxy is missing: apt-get install haproxy")
        self.file, self._log = folder / "haproxy.cfg", folder / "haproxy.log"
        self.file.write_text(configuration or CONFIGURATION.read_text())
        (folder / "fleet.keys").write_text(f"# One key a line.\n{KEY}\n")
        self.port, turns, self.operators = free_ports(3)
        # A path of more than about a hundred characters is too long for a socket.
        sockets = stack.enter_context(tempfile.TemporaryDirectory(prefix="fleet-"))
        self._socket = f"{sockets}/operators.sock"
        # The variables that the example's comments name.
        environment = {
            "FLEET_BIND": f"127.0.0.1:{self.port}",
            "FLEET_TURNS": f"127.0.0.1:{turns}",
            "FLEET_STATS": f"127.0.0.1:{self.operators}",
            "FLEET_KEYS": str(folder / "fleet.keys"),
            "FLEET_SOCKET": self._socket,
        }
        for number, pair in enumerate(pairs, 1):
            environment |= {f"PAIR{number}": f"127.0.0.1:{pair.port}", f"PAIR{number}_ADMIN": str(pair.admin)}
        # ``-W``: a master process stays, and starts a new worker at each reload.  The old one finishes its connections.
        self.process = subprocess.Popen(
            [program, "-W", "-f", str(self.file)],
            stdin=subprocess.DEVNULL,
            stdout=self._log.open("wb"),
            stderr=subprocess.STDOUT,
            cwd=folder,
            env={**os.environ, **environment},
        )
        stack.callback(Child(self.process, self.port).end)
        # It says nothing when it is ready, so its port is tried.
        deadline = time.monotonic() + PATIENCE
        while not listens(self.port):
            if self.process.poll() is not None or time.monotonic() > deadline:
                raise SystemExit(f"HAProxy did not start:\n{self.log}")
            time.sleep(0.05)

    @property
    def log(self) -> str:
        """What HAProxy has said so far: its own news, and a line for each request."""
        return self._log.read_text(errors="replace")

    def add(self, pair: Place, number: int) -> None:
        """Write one more pair into the configuration, with `number` as its id; `reload` makes it known."""
        # In both sections, as the comments in the example tell operators to do it.
        text = self.file.read_text()
        where = f"    server {pair.name} 127.0.0.1:{pair.port} id {number}"
        for section, rest in (("pairs", f"port {pair.admin}"), ("others", f"track pairs/{pair.name}")):
            text = re.sub(rf"(?ms)^(backend {section}\n.*?^    server pair3[^\n]*\n)", rf"\1{where} {rest}\n", text)
        self.file.write_text(text)

    def command(self, text: str) -> str:
        """Give HAProxy an operator's command over its socket; return what it says, without the line end."""
        with socket.socket(socket.AF_UNIX) as connection:
            connection.connect(self._socket)
            connection.sendall(text.encode() + b"\n")
            return connection.makefile().read().strip()

    def reload(self) -> None:
        """Have HAProxy read its configuration again; returns when the new process answers.

        Requests in progress are finished by the old one, which the tests look at.
        """
        # SIGUSR2 to the master.  A mistake in the file would leave the old worker in place, and this would wait in
        # vain.
        before = self._starts()
        self.process.send_signal(signal.SIGUSR2)
        wait_for("HAProxy to reload", lambda: self._starts() > before)

    def _starts(self) -> int:
        """Return how often HAProxy has loaded its configuration: it says so in its log, and nowhere else."""
        return self.log.count("Loading success")

    def metric(self, name: str, **labels: str) -> float:
        """Return the sum of a metric of HAProxy that has these labels, from its own Prometheus exporter."""
        return metric(self.operators, name, prefix="haproxy", **labels)

    def sees(self, pair: Place) -> bool:
        """Tell whether HAProxy takes a pair for ready, by what its own checks of ``/readyz`` have found."""
        return self.metric("server_status", proxy="pairs", server=pair.name, state="UP") == 1


def write_templates(folder: Path, count: int = 4, words: int = 900) -> dict[str, Path]:
    """Write templates of about so many tokens, each of its own words; return their files by prefix."""
    # The same words in each run, from a generator with a seed, so that two runs can be compared.
    made = {}
    for number in range(count):
        made[f"@t{number}"] = folder / f"t{number}.txt"
        text = " ".join(random.Random(number).choices(COMMON_WORDS, k=words))
        made[f"@t{number}"].write_text(f"{text}\nQuestion: <{{message}}>")
    return made


def round_robin() -> str:
    """Return the example's configuration, but with each request going to the next pair, whatever it is."""
    # The comparison is about this one thing.  So the text is changed in this place only, and an error says if that
    # place is not there any more.
    text = CONFIGURATION.read_text()
    start = text.index("backend pairs")
    hashed = re.compile(r"    balance hash var\(txn.key\)\n    hash-type.*?    hash-balance-factor 250\n", re.S)
    changed, count = hashed.subn("    balance roundrobin\n", text[start:])
    assert count == 1, "the configuration has changed"
    return text[:start] + changed
