"""Is a shared shelf safe while those who share it are killed?  The part of `benchmarks.soak` about several bioproxies.

Two pairs of a bioproxy and a real llama.cpp share a folder.  In each turn the text of a template is another one, so
both pairs want to warm it up at the same moment: one of them computes it and publishes the file, and the other one
fetches that.  Meanwhile conversations come and go at both, which are published as well.  At a random moment one of the
four processes is killed, so this hits warm-ups, publications and fetches.

Kills and not stops, because a process that is told to stop puts everything in order.  What is in question is the order
in which things are written (`bioproxy.shared.folder`): after ``kill -9`` at any moment the shelf may have a file too
many, and never an entry that promises too much.

Checked after each kill: both pairs have the template warm within a minute, whoever died with the lease; the record of
each pair agrees with its folder; each entry on the shelf has its file; and the answers, at temperature 0, are those of
before, and those of a llama-server that has computed everything itself.
"""

from __future__ import annotations

import json
import random
import time
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

from benchmarks.agents_day import Llama, metric, post
from benchmarks.servers import get, wait_for
from benchmarks.soak_agents import Shelf, Traffic, answers, check_agreement
from tests.support.agents import prose

BLOCKED = 60.0
"""Seconds after a kill in which both pairs must be warm: no lease may be held for longer by somebody dead.

A dead holder's lease counts for nothing after 20 s (`DEAD_AFTER`); starting again and a warm-up take the rest.
"""

WORDS = 700
"""Words of the template: enough for a warm-up of some pieces, so that a kill may come between two of them."""


def shared_kills(folder: Path, count: int, seed: int) -> None:
    """Kill one of four processes so many times.  `AssertionError` says what is wrong.

    `seed` decides who dies, and when; `folder` gets both pairs and the shelf.
    """
    folder.mkdir(parents=True, exist_ok=True)
    moments, template, shelf = random.Random(seed), folder / "code.txt", folder / "shelf"
    # A text that depends on the seed and the turn, so that each turn has a prompt that neither pair has seen.
    write_text(template, seed, 0)
    with ExitStack() as stack:
        more = ("--shared-shelf", shelf, "--prefix", f"@code={template}", "--poll-interval", 0.2)
        pairs = [Shelf(stack, folder / name, "dense", *more) for name in ("a", "b")]
        wait_warm(pairs, "the start")
        # What all later answers are compared with: the same questions, at temperature 0, on the same model.
        before = answers(pairs[0])
        assert answers(pairs[1]) == before, "the two pairs answer differently"
        fetched, slowest = 0.0, 0.0
        for turn in range(1, count + 1):
            # Somebody talks at both, while the template changes and before somebody dies.
            here = moments.choice(pairs)
            victim: Llama | Shelf = moments.choice((here.llama, here))
            traffic = [Traffic(each, 10_000 * turn + 1000 * number) for number, each in enumerate(pairs)]
            for each in traffic:
                each.start()
            write_text(template, seed, turn)
            time.sleep(moments.uniform(0, 2.5))  # a random moment, not a condition
            # Its counter begins anew with its next start.
            fetched += sum(tokens(each) for each in pairs if each is here)
            # No warning: whatever it was doing ends in the middle.
            victim.kill()
            died = time.monotonic()
            # The other pair has to go on alone for a while: nobody gives up the dead one's lease.
            time.sleep(moments.choice((0.0, 3.0)))
            victim.start()
            for each in traffic:
                each.end()
            # From here on everything must come to rest by itself, and then be right.
            when = f"kill {turn} of {count}, of {type(victim).__name__}"
            for pair in pairs:
                pair.wait_up()
            wait_warm(pairs, when)
            # The slowest recovery is printed: it should be near `DEAD_AFTER`, where the dead one had a lease.
            slowest = max(slowest, time.monotonic() - died)
            # First each pair by itself, then what they share, and at last what users get.
            for pair in pairs:
                check_agreement(pair, set(), when)
            check_shelf(shelf, when)
            for pair in pairs:
                now = answers(pair)
                assert now == before, f"{when}: other answers: {now} instead of {before}"
            check_template(pairs, template, when)
        for pair in pairs:
            pair.look_for_trouble()
        fetched += sum(tokens(pair) for pair in pairs)
        print(
            f"{count} kills of two pairs with one shelf (seed {seed}): records, folders and answers agree; warm after"
            f" {slowest:.0f} s at most; {fetched:.0f} tokens were fetched instead of computed",
            flush=True,
        )
        # Otherwise all of this would hold for two bioproxies that do not share anything.
        assert fetched > 0, "nothing was fetched"


def tokens(pair: Shelf) -> float:
    """Return how many tokens a pair has fetched since its start; 0 if it does not answer."""
    # At a random moment somebody may just be dead.
    with suppress(OSError):
        return metric(pair.admin, "shared_tokens_total")
    return 0.0


def write_text(template: Path, seed: int, turn: int) -> None:
    """Give the template another text."""
    # Renamed into place: a poll must never see half of it.
    draft = template.with_suffix(".draft")
    draft.write_text(f"{prose(WORDS, f'{seed} {turn}')}\nAnswer: <{{message}}>")
    draft.replace(template)


def wait_warm(pairs: list[Shelf], when: str) -> None:
    """Wait until the template is warm at both; `when` is for the words of the error."""

    def warm() -> bool:
        """Tell whether both say so."""
        return all(get(pair.admin, "/status")["templates"][0]["state"] == "warm" for pair in pairs)

    wait_for(f"both pairs to be warm after {when}", warm, BLOCKED)


def check_shelf(shelf: Path, when: str) -> None:
    """Check that each entry on the shelf has its file, of the right size."""
    wrong: list[str] = []

    def agrees() -> bool:
        """Compare now, and note what is wrong."""
        wrong.clear()
        for entry in (shelf / "entries").glob("*.json"):
            file = shelf / "files" / f"{entry.stem}.bin"
            with suppress(FileNotFoundError):
                size = json.loads(entry.read_text())["size"]
                if not file.exists() or file.stat().st_size != size:
                    wrong.append(f"{file.name} is not a file of {size} bytes")
        return not wrong

    # A removal may be in progress: what differs for good is wrong.
    with suppress(SystemExit):
        wait_for("the shelf to agree", agrees)
    assert not wrong, f"{when}: {wrong}"


def check_template(pairs: list[Shelf], template: Path, when: str) -> None:
    """Check that an answer on the template is that of a llama-server that computes everything.

    With ``cache_prompt`` off nothing is reused, so the slot files have no part in that answer.
    """
    # The whole text is sent to llama-server itself, as bioproxy would have filled it in.
    question = "what of it?"
    text = template.read_text().replace("<{message}>", question)
    cold = ask(pairs[0].llama.port, text, cache_prompt=False)
    for pair in pairs:
        found = ask(pair.port, f"@code {question}")
        assert found == cold, f"{when}: {found!r} instead of {cold!r}"


def ask(port: int, text: str, **more: Any) -> str:
    """Return the answer to a question; `more` are further fields of the request."""
    body = {"messages": [{"role": "user", "content": text}], "temperature": 0, "max_tokens": 8, **more}
    answer = json.loads(post(port, "/v1/chat/completions", body)[0])
    return str(answer["choices"][0]["message"]["content"])
