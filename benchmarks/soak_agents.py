"""Coding agents in front of a bioproxy that may be killed: what the soak parts about slot files have in common.

A `Shelf` is a bioproxy with a real llama.cpp behind it, both processes of their own.  Each of them may be killed and
started again at any moment, with the same ports, folders and records.  `Traffic` has conversations meanwhile, in a
thread, and does not mind that somebody dies.  Afterwards `check_agreement` compares bioproxy's record with its folder,
and `answers` asks questions whose answers must be those of before.

The record is read from the disk, and the folder is listed: what bioproxy says of itself is not what is in question.

Does not know who is killed, and when (`benchmarks.soak_shelf`, `benchmarks.soak_shared`).
"""

from __future__ import annotations

import http.client
import json
import re
import threading
from contextlib import ExitStack, suppress
from pathlib import Path

from benchmarks.agents_day import Llama, all_warm, post, shelf, write_model
from benchmarks.servers import Child, Children, free_ports, get, wait_for
from benchmarks.soak_clients import look_for_trouble
from tests.support.agents import CHAT, DIALECTS, Client, Session, agent, prose, sub_agent

CONVERSATIONS_LIMIT = 6 << 20
"""Bytes: four or five conversations of these models, about 2,400 tokens of 512 bytes each.

Halved, hardly two would fit, and nothing could be found again; doubled, fewer saves remove something.
"""

WORDS = 300
"""Of a question: enough that its conversation is worth a file."""

LEARNED_FILE = re.compile(r"auto-[0-9a-f]{12}(\.chat|\.part)?(\.new)?\.bin")
"""The file names of learned prompts and conversations."""


class Shelf:
    """A llama.cpp, a bioproxy that may be killed, and an agent with its sub-agent, whose prompts were learned.

    Invariant: ports and folders never change, so clients and the other process find whoever was started again.
    """

    def __init__(self, stack: ExitStack, folder: Path, kind: str = "dense", *more: object) -> None:
        """Start both in `folder`, with a model of this kind; `more` are bioproxy's further options."""
        folder.mkdir(parents=True, exist_ok=True)
        self._more = more
        self._children = Children(stack, folder)
        self._folder = folder
        self._starts = 0
        self.llama = Llama(self._children, folder, write_model(folder, kind))
        self.port, self.admin = free_ports(2)
        self.start()
        self.clients = [each for dialect in DIALECTS for each in (agent(dialect), sub_agent(agent(dialect)))]

    def start(self) -> None:
        """Start bioproxy, for the first time or after a kill; returns when it has found llama-server.

        Each start has a log of its own, and all have the same ports and folders.
        """
        self._starts += 1
        limit = ("--conversations-limit", CONVERSATIONS_LIMIT, "--slot-save-path", self.llama.slots)
        state = ("--state-dir", self._folder / "state")
        url = f"http://127.0.0.1:{self.llama.port}"
        self.name = f"bioproxy-{self._starts}"
        self.proxy: Child = self._children.bioproxy(self.name, self.port, self.admin, url, *limit, *state, *self._more)
        self.wait_up()

    def wait_up(self) -> None:
        """Wait until bioproxy has found llama-server."""
        wait_for("bioproxy to see llama.cpp", lambda: get(self.admin, "/status")["llama"]["up"])

    def kill(self) -> None:
        """End bioproxy the hard way, as the system does when memory runs out: it gets no chance to write anything."""
        self.proxy.process.kill()
        self.proxy.process.wait()

    def look_for_trouble(self) -> None:
        """Fail if the log of the bioproxy that runs has an error."""
        look_for_trouble(self._folder / f"{self.name}.log")

    def learn(self) -> set[str]:
        """Have the prompts of all clients learned; return their names.

        Two conversations each: that is when a prompt without tools counts as shared.
        """
        for client in self.clients:
            for number in range(2):
                self.ask(client, prose(20, f"first {number}"))
        wait_for("the prompts to be learned", lambda: len(shelf(self.admin, "learned")) >= 2 and all_warm(self.admin))
        return {each["name"] for each in shelf(self.admin, "learned")}

    def ask(self, client: Client, question: str, stream: bool = False) -> Session:
        """Ask the first question of a conversation, and hear the answer."""
        # The session notes what was said, so that a next turn could go on with it.
        session = client.session()
        session.ask(question)
        session.hear(post(self.port, session.path, session.body(stream))[0])
        return session

    def one_shot(self, number: int) -> None:
        """Have a conversation of one question that nobody had before.

        All clients in turn, half of the answers as streams: each API and each way has its part of the load.
        """
        client = self.clients[number % len(self.clients)]
        self.ask(client, prose(WORDS, f"one shot {number}"), stream=number % 2 == 1)

    def files(self) -> dict[str, int]:
        """Return names and sizes of the files in the slot folder."""
        # A file may go between the listing and the look; then it does not count.
        found = {}
        for path in self.llama.slots.iterdir():
            with suppress(FileNotFoundError):
                found[path.name] = path.stat().st_size
        return found

    def record(self) -> dict[str, int]:
        """Return names and sizes of the files in bioproxy's record."""
        # Read from the disk and not asked of bioproxy: it is what the next process will believe.
        found = {}
        for path in (self._folder / "state" / "shelf").glob("*.*.json"):
            with suppress(FileNotFoundError):
                entry = json.loads(path.read_text())
                found[str(entry["filename"])] = int(entry["size"])
        return found


class Traffic(threading.Thread):
    """Has one conversation after the other until it is told to end.  Failures are expected: somebody gets killed."""

    def __init__(self, here: Shelf, number: int) -> None:
        """Have conversations with `here`; `number` makes their texts, and counts up."""
        super().__init__(daemon=True)
        self._here = here
        self._number = number
        self._over = threading.Event()

    def run(self) -> None:
        """Have conversations.  Called by `start`, in its own thread."""
        while not self._over.is_set():
            self._number += 1
            # No connection, no answer, an error answer (`post` asserts that there is none), or half of one.
            with suppress(OSError, http.client.HTTPException, AssertionError, ValueError, LookupError):
                self._here.one_shot(self._number)

    def end(self) -> None:
        """End it, after the request in progress, which may fail like any other."""
        self._over.set()
        self.join()


def answers(here: Shelf) -> list[str]:
    """Return the answers to some first questions of the agent.

    A wrong slot file shows here: at temperature 0 the same tokens give the same answer.
    """
    texts: list[str] = []
    for question in ("why?", "how?", prose(60, "a longer one")):
        session = here.ask(agent(CHAT), question)
        texts.append(session.said[-1].text)
    return texts


def check_agreement(here: Shelf, learned: set[str], when: str, may_lose: int = 0) -> None:
    """Check that record and folder agree: what is recorded is there as it says, and nothing else is.

    `learned` are prompts that must have a file, all but `may_lose` of them; those must get a new one soon.  `when` is
    for the words of an error.
    """

    def disagreements() -> list[str]:
        """Return what differs, in words: a recorded file that is not as it should be, or a file without a record."""
        recorded, found = here.record(), here.files()
        wrong = [f"{name} of {size} is {found.get(name)}" for name, size in recorded.items() if found.get(name) != size]
        stray = [name for name in found if LEARNED_FILE.fullmatch(name) and name not in recorded]
        return [*wrong, *(f"{name} is not recorded" for name in stray)]

    # A save may be in progress: what differs for good is wrong.
    with suppress(SystemExit):
        wait_for("agreement", lambda: not disagreements(), 10)
    assert not (wrong := disagreements()), f"{when}: {wrong}"

    def lost() -> set[str]:
        """Return the learned prompts that have no file."""
        return learned - {name.partition(".")[0] for name in here.files()}

    names = lost()
    assert len(names) <= may_lose, f"{when}: learned prompts were lost: {names}"
    wait_for(f"{when}: a new file of {names}", lambda: not lost())
