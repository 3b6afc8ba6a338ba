"""Do the clients that people use gain what their recipes say?  Each is installed and asked something.

    python -m benchmarks.soak_real_clients [--record] [NAME ...]

A part of ``make soak``.  For each client of `benchmarks.real_clients`, in an empty home: a session with one question, a
second session, another turn of that, and after llama-server was killed and started again a third session.  No template
is configured.  Each line is the client's longest request in a turn, and what llama-server had to compute for it.

A recipe in `docs/clients` says what a client gains, and was true on the day when it was written.  Clients change each
week: a date that moves into a system message, or tools that are sent in another order, and nothing is found any more
without an error anywhere.  So the clients themselves are asked, in the versions that people would install today.

bioproxy and llama.cpp are real processes; the model is a small generated one whose answers are random words and end
after a few of them, so a client gets text and never a call of a tool.  A client that cannot be installed here is
reported and not counted as a failure: registries are not always there.

With ``--record``, `tools.record_client` stands between the client and bioproxy, and the fixtures of the tests are
written anew.
"""

from __future__ import annotations

import argparse
import re
import sys
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from benchmarks.real_clients import CLIENTS, Installed, NotInstalled, install
from benchmarks.real_clients_place import Place, Turn, write_model
from benchmarks.servers import get, wait_for
from benchmarks.soak_clients import look_for_trouble

COMPUTED = 5000
"""Tokens of a new session's request that llama-server may have to compute once the client's prompt is warm.

Claude Code has 3,200 behind the first words of the user, where they cannot be learned.  With half as many it would
fail; with twice as many a quarter of its prompt could be computed unnoticed.
"""

SHARE = 0.2
"""The same as a part of the request's prompt, which is what counts where the prompt is short.

With half as much, little but the question would be allowed; doubled, a client that shares only half of its prompt would
do.
"""

QUESTIONS = ("What does README.md say, the first time?", "Which files are here?", "Explain the notes in one sentence.")
"""What the sessions ask.  They have nothing in common: Claude Code makes a mark from letters of the first question."""


def turns(folder: Path, installed: Installed, model: Path, record: bool = False) -> list[Turn]:
    """Run a client's turns in a folder of their own, and check them.  `AssertionError` says what is wrong.

    With `record` the requests are recorded meanwhile, and the turn after a restart is left out.
    """
    client, found = installed.client, []
    with ExitStack() as stack:
        place = Place(stack, folder, installed, model, record)

        def turn(what: str, arguments: Sequence[str], question: str) -> None:
            """Run one turn, print it, and wait until what was learned from it is warm."""
            found.append(place.ask(what, arguments, question))
            print(found[-1], flush=True)
            place.rest(len(found))

        turn("first session", client.ask, QUESTIONS[0])
        turn("second session", client.ask, QUESTIONS[1])
        if client.goes_on:
            turn("it goes on", client.goes_on, "And now?")
        # A killed llama-server has an empty slot: what the third session finds comes from files.
        if not record:
            place.llama.kill()
            place.llama.start()
            wait_for("bioproxy to see llama.cpp again", lambda: get(place.admin, "/status")["llama"]["up"])
            turn("after a restart", client.ask, QUESTIONS[2])
        # A slot file that llama-server cannot read would have ended it.
        assert place.llama.alive
        look_for_trouble(folder / "bioproxy.log")
    # All but the first session must find most of their prompt.  Only for clients of which the recipe promises that.
    for number, each in enumerate(found[1:]) if client.learned or client.shares else ():
        allowed = min(COMPUTED, SHARE * int(each.request["prompt_tokens"]))
        assert each.computed <= allowed, f"{client.name}: {each.what}: too much was computed:\n{each}"
        named = re.fullmatch(r"auto-[0-9a-f]{12}", each.request["prompt"])
        # The second session is what proves a prompt without tools.
        assert named or client.shares or not (client.has_tools or number), f"{client.name}: no learned prompt:\n{each}"
    return found


def real_clients(folder: Path, names: Sequence[str] = (), record: bool = False) -> None:
    """Run the clients with these names, or all.  `AssertionError` says what is wrong.

    Each has a folder of its own below `folder`, in which its package is installed.
    """
    folder.mkdir(parents=True, exist_ok=True)
    model = write_model(folder / "model.gguf")
    for client in CLIENTS:
        # One after the other: each has a llama.cpp, and two would take each other's time.
        if names and client.name not in names:
            continue
        try:
            installed = install(client, folder / client.name / "installed")
        except NotInstalled as error:
            # Said, so that nobody takes it for tried.
            print(f"{client.name}: NOT RUN, {client.package} could not be installed from {client.registry}: {error}")
            continue
        print(f"{client.name}: {client.package} {installed.version} from {client.registry}", flush=True)
        turns(folder / client.name / "run", installed, model, record)


def main() -> int:
    """Run the clients that the command line names; return the status to exit with."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.soak_real_clients", description=__doc__.split("\n")[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help="clients (default: all)")
    parser.add_argument("--record", action="store_true", help="write the fixtures of the tests anew")
    options = parser.parse_args()
    if unknown := set(options.names) - {each.name for each in CLIENTS}:
        parser.error(f"no such client: {', '.join(sorted(unknown))}")
    with tempfile.TemporaryDirectory(prefix="bioproxy-clients-") as folder:
        try:
            real_clients(Path(folder), options.names, options.record)
        except (AssertionError, OSError) as error:
            print(f"FAILED: {error}")
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
