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

import random
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

from benchmarks.agents_day import Llama, metric, shelf
from benchmarks.servers import get
from benchmarks.soak_agents import CONVERSATIONS_LIMIT, Shelf, Traffic, answers, check_agreement
from tests.support.agents import prose

GROWTH = 4.0
"""Megabytes that bioproxy may grow between the first quarter of the conversations and the end.

It keeps the record of what is on the disk, which has a limit, and the last requests for `/status`; both are full after
a quarter.
"""

LOOK = 0.005
"""Seconds between two looks at the folder: a save of these models takes longer, so none is missed."""


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
        """Stop looking, and wait until the last look is over."""
        self._over.set()
        self.join()


def one_shots(folder: Path, count: int) -> None:
    """Have so many conversations of one question each.  `AssertionError` says what is wrong.

    `folder` gets the model, the slot files and the logs.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        here = Shelf(stack, folder)
        learned = here.learn()
        # From here on the folder is never out of sight.
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
        # What the limit has made go: much more must have been saved than is there.
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
        # Prompts have a limit of their own, so however many conversations come, they stay.
        assert learned <= kept, f"learned prompts were lost: {learned - kept}"
        assert all(any(file.startswith(f"{name}.") for file in still) for name in learned), "a learned file was lost"
        assert grown <= GROWTH, f"bioproxy grew by {grown:.1f} MB, at most {GROWTH} are all right"
        # The prompts still help: what was removed were conversations.
        # A new session of a client computes its question and what a chat template puts around that.
        session = here.ask(here.clients[0], prose(20, "afterwards"))
        computed = session.whole - reused(here.admin)
        assert computed <= 20 + 120, f"{computed} tokens were computed for a new session"
        here.look_for_trouble()


def reused(admin: int) -> int:
    """Return how many tokens of its prompt the latest request reused, by what bioproxy says of it."""
    return int(get(admin, "/status")["requests"][0]["cached_tokens"])


def kills(folder: Path, count: int, seed: int) -> None:
    """Kill llama-server or bioproxy so many times.  `AssertionError` says what is wrong.

    `seed` decides who dies, and when, so a run that has failed can be made again, as far as a machine repeats itself.
    """
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
        # What is compared after each kill; these answers are computed, or come from files that nobody has killed.
        before = answers(here)
        for turn in range(count):
            # A death of llama-server leaves a file that was being written, one of bioproxy a record that was.
            victim: Llama | Shelf = moments.choice((here.llama, here))
            traffic = Traffic(here, number)
            traffic.start()
            number += 1000
            time.sleep(moments.uniform(0, 0.6))  # a random moment, not a condition
            # Conversations go on while it is dead and while it starts, as clients do.
            victim.kill()
            victim.start()
            traffic.end()
            here.wait_up()
            # A llama-server that dies while it restores a file may have died of it: that one is never tried again, and
            # the prompt is warmed up anew.
            may_lose = 1 if victim is here.llama else 0
            check_agreement(here, learned, f"after kill {turn + 1}, of {type(victim).__name__}", may_lose)
            now = answers(here)
            assert now == before, f"kill {turn + 1}: other answers: {now} instead of {before}"
        here.look_for_trouble()
        print(f"{count} kills (seed {seed}): record and folder agree, and the answers are those of before", flush=True)
