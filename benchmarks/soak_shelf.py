"""Does the shelf keep its limit, and what matters?  The part of `benchmarks.soak` about files in the slot folder.

A coding agent (`tests.support.agents`) talks to a real llama.cpp through bioproxy, with room for few conversations.

An agent that is asked something new each time fills any disk in a day, so the slot folder has limits.  In question are
the moments around a removal: a limit that is exceeded for a moment, a prompt that goes although all agents need it, a
record that still has what is gone.

`one_shots` has thousands of conversations of one question each, most of which nobody goes on with.  Checked are the
folder, all the time, by a thread that looks at it: never more than the limit and one file; the learned prompts, which
must stay; llama-server, which must live; and bioproxy's memory, which must not grow.

`kills` kills llama-server or bioproxy at random moments while conversations come and go.  Checked are bioproxy's record
and the folder after the next start: each file that is recorded is there with its size, and no file with the name of a
learned prompt or a conversation is without a record.  And the answers at temperature 0 are those of before.
"""

from __future__ import annotations

import http.client
import json
import random
import re
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path

from benchmarks.agents_day import Llama, all_warm, metric, post, shelf, write_model
from benchmarks.servers import Child, Children, free_ports, get, wait_for
from benchmarks.soak_clients import look_for_trouble
from tests.support.agents import CHAT, DIALECTS, Client, Session, agent, prose, sub_agent

CONVERSATIONS_LIMIT = 6 << 20
"""Bytes: four or five conversations of these models, about 2,400 tokens of 512 bytes each."""

WORDS = 300
"""Of a question: enough that its conversation is worth a file."""

GROWTH = 4.0
"""Megabytes that bioproxy may grow between the first quarter of the conversations and the end.

It keeps the record of what is on the disk, which has a limit, and the last requests for `/status`; both are full after
a quarter.
"""

LOOK = 0.005
"""Seconds between two looks at the folder: a save of these models takes longer, so none is missed."""

LEARNED_FILE = re.compile(r"auto-[0-9a-f]{12}(\.chat|\.part)?(\.new)?\.bin")
"""The file names of learned prompts and conversations."""


class Shelf:
    """A llama.cpp, a bioproxy that may be killed, and an agent with its sub-agent, whose prompts were learned."""

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


class Watch(threading.Thread):
    """Looks at the slot folder all the time, and notes the most that conversations took there."""

    def __init__(self, files: Callable[[], dict[str, int]]) -> None:
        """Look by calling `files`, which returns names and sizes."""
        super().__init__(daemon=True)
        self.most = self.largest = 0
        self._files = files
        self._over = threading.Event()

    def run(self) -> None:
        """Look until `end`.  Called by `start`, in its own thread."""
        while not self._over.wait(LOOK):
            sizes = [size for name, size in self._files().items() if ".chat." in name]
            # Of conversations only, since prompts have a limit of their own.
            self.most = max(self.most, sum(sizes))
            self.largest = max(self.largest, *sizes, 0)

    def end(self) -> None:
        """Stop looking."""
        self._over.set()
        self.join()


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
        """End it, after the request in progress."""
        self._over.set()
        self.join()


def one_shots(folder: Path, count: int) -> None:
    """Have so many conversations of one question each.  `AssertionError` says what is wrong."""
    folder.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        here = Shelf(stack, folder)
        learned = here.learn()
        watch = Watch(here.files)
        watch.start()
        # The first quarter fills caches and lists, so what grows is measured from there on.
        began, memory = time.monotonic(), 0.0
        for number in range(count):
            here.one_shot(number)
            if number == count // 4:
                memory = here.proxy.memory()
        took = time.monotonic() - began
        grown = here.proxy.memory() - memory
        watch.end()
        saved = metric(here.admin, "slot_bytes_total", direction="saved")
        kept = {each["name"] for each in shelf(here.admin, "learned")}
        still = here.files()
        print(
            f"{count} conversations of one question in {took:.0f} s: {saved / 1e6:.0f} MB saved, at most"
            f" {watch.most / 1e6:.1f} MB kept (limit {CONVERSATIONS_LIMIT / 1e6:.1f} MB, largest file"
            f" {watch.largest / 1e6:.1f} MB), bioproxy grew {grown:.1f} MB",
            flush=True,
        )
        assert here.llama.alive, "llama-server died"
        # The one file more is the newest one: older ones go only when it is complete (step 8 of a save).
        assert watch.most <= CONVERSATIONS_LIMIT + watch.largest, "more than the limit and one file"
        assert saved > 2 * CONVERSATIONS_LIMIT, "too little was saved for the limit to matter"
        assert learned <= kept, f"learned prompts were lost: {learned - kept}"
        assert all(any(file.startswith(f"{name}.") for file in still) for name in learned), "a learned file was lost"
        assert grown <= GROWTH, f"bioproxy grew by {grown:.1f} MB, at most {GROWTH} are all right"
        # The prompts still help: what was removed were conversations.
        session = here.ask(here.clients[0], prose(20, "afterwards"))
        computed = session.whole - reused(here.admin)
        assert computed <= 20 + 120, f"{computed} tokens were computed for a new session"
        here.look_for_trouble()


def reused(admin: int) -> int:
    """Return how many tokens of its prompt the latest request reused, by what bioproxy says of it."""
    return int(get(admin, "/status")["requests"][0]["cached_tokens"])


def kills(folder: Path, count: int, seed: int) -> None:
    """Kill llama-server or bioproxy so many times.  `AssertionError` says what is wrong."""
    folder.mkdir(parents=True, exist_ok=True)
    moments = random.Random(seed)
    with ExitStack() as stack:
        here = Shelf(stack, folder)
        learned = here.learn()
        number = 0
        # So full that saves remove something, which is what kills should meet.
        while sum(size for name, size in here.files().items() if ".chat." in name) < CONVERSATIONS_LIMIT / 2:
            here.one_shot(number)
            number += 1
            assert number < 200, "the shelf does not fill"
        before = answers(here)
        for turn in range(count):
            # A death of llama-server leaves a file that was being written, one of bioproxy a record that was.
            victim: Llama | Shelf = moments.choice((here.llama, here))
            traffic = Traffic(here, number)
            traffic.start()
            number += 1000
            time.sleep(moments.uniform(0, 0.6))  # a random moment, not a condition
            victim.kill()
            victim.start()
            traffic.end()
            here.wait_up()
            check_agreement(here, learned, f"after kill {turn + 1}, of {type(victim).__name__}")
            now = answers(here)
            assert now == before, f"kill {turn + 1}: other answers: {now} instead of {before}"
        here.look_for_trouble()
        print(f"{count} kills (seed {seed}): record and folder agree, and the answers are those of before", flush=True)


def answers(here: Shelf) -> list[str]:
    """Return the answers to some first questions of the agent.

    A wrong slot file shows here: at temperature 0 the same tokens give the same answer.
    """
    texts: list[str] = []
    for question in ("why?", "how?", prose(60, "a longer one")):
        session = here.ask(agent(CHAT), question)
        texts.append(session.said[-1].text)
    return texts


def check_agreement(here: Shelf, learned: Sequence[str] | set[str], when: str) -> None:
    """Check that record and folder agree: what is recorded is there as it says, and nothing else is.

    `learned` are prompts that must have a file; `when` is for the words of an error.
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
    lost = set(learned) - {name.partition(".")[0] for name in here.files()}
    assert not lost, f"{when}: learned prompts were lost: {lost}"
