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
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from benchmarks.agents_day import Llama, all_warm, shelf
from benchmarks.real_clients import CLIENTS, CONTEXT, Installed, NotInstalled, install, prepare
from benchmarks.servers import Children, free_ports, get, wait_for
from benchmarks.soak_clients import look_for_trouble
from bioproxy.demo import tiny_model

TURN_SECONDS = 600
"""Seconds that a client may take for a turn.

Cold, 43,000 tokens take 30 s on one free core, and minutes on a busy one.  With half as many, a client may fail for
that; with twice as many, a client that hangs holds up the others for longer.
"""

WARM_SECONDS = 120
"""Seconds in which a prompt that was learned must be warm.

Its tokens are mostly in the slot already.  Halved, a busy machine fails; doubled, a fault is found later.
"""

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

ENDS = 3
"""How much the score of the token that ends an answer varies, compared with other tokens: three times as much.

An answer then has seven tokens on average.  With half as much most answers would only end at their limit; with twice as
much many would be empty.
"""

PREDICT = 256
"""Tokens of an answer that does not end by itself, where the client sets no limit.

Halved, more answers are cut; doubled, a turn may take seconds longer.
"""

TEMPLATE = (
    "{% set ns = namespace(first=0) %}{{ '<|im_start|>system\\n' }}"
    "{% if messages[0]['role'] == 'system' %}{% set ns.first = 1 %}{{ messages[0]['content'] + '\\n' }}{% endif %}"
    "{% if tools %}{{ 'You may call:\\n' }}{% for tool in tools %}{{ tool | tojson + '\\n' }}{% endfor %}{% endif %}"
    "{{ '<|im_end|>\\n' }}"
    "{% for message in messages[ns.first:] %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' }}"
    "{% if message['content'] is string %}{{ message['content'] }}"
    "{% elif message['content'] %}{% for part in message['content'] %}{{ part['text'] }}{% endfor %}{% endif %}"
    "{% for call in message['tool_calls'] or [] %}{{ '\\ncall ' + (call['function'] | tojson) }}{% endfor %}"
    "{{ '<|im_end|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
"""A chat template in the usual order: the system message first, then the tools, as Qwen's and Llama's have it."""


@dataclass(frozen=True)
class Turn:
    """The longest request of a turn, as `/status` tells of it."""

    what: str
    """Which turn it was, for the table."""

    request: dict[str, Any]
    """The request as one of `requests` in `/status`."""

    @property
    def computed(self) -> int:
        """Tokens of the prompt that llama-server computed."""
        return int(self.request["prompt_tokens"]) - int(self.request["cached_tokens"])

    def __str__(self) -> str:
        """Return the turn as a line of text."""
        said = self.request
        counts = (
            f"{said['prompt_tokens']:6} tokens, {self.computed:6} computed, first word after {said['ttft_ms']:6.0f} ms"
        )
        return f"  {self.what:16}{counts}  {said['cache'] or '-':9}{said['prompt'] or said['miss'] or ''}"


def write_model(path: Path) -> Path:
    """Write a model with room for an agent's prompt, whose answers end by themselves."""
    import gguf
    import numpy

    tiny_model.write_model(path, replace(tiny_model.TINY, context=CONTEXT), chat_template=TEMPLATE)
    # An answer of the generated models never ends: the score of the token that ends it is always 0.  Here it is random.
    row = tiny_model.vocabulary()[0].index("<|im_end|>")
    random = numpy.random.default_rng(1)
    for tensor in gguf.GGUFReader(str(path), "r+").tensors:
        if tensor.name == "output.weight":
            tensor.data[row] = random.standard_normal(tensor.data.shape[1]) * tensor.data.std() * ENDS
    return path


class Place:
    """A client's home and project, and the servers that it talks to."""

    def __init__(self, stack: ExitStack, folder: Path, installed: Installed, model: Path, record: bool) -> None:
        """Start the servers; with `record` a recorder in front of them."""
        # An empty home, so that nothing of this machine's owner is used, and a project with one file to read.
        self.home, self.project = folder / "home", folder / "project"
        for each in (self.home, self.project):
            each.mkdir(parents=True)
        (self.project / "README.md").write_text("# Notes\n\nThe house by the sea is small.\n")
        self._installed = installed
        self._log = folder / "client.log"
        children = Children(stack, folder)
        # Without llama-server's own memory of prompts: what is found must come from bioproxy's files or from the slot.
        more = ("--ctx-size", CONTEXT, "--predict", PREDICT, "--cache-ram", 0)
        (folder / "slots").mkdir(mode=0o700)
        self.llama = Llama(children, folder, model, *more)
        self._port, self.admin, recorder = free_ports(3)
        url = f"http://127.0.0.1:{self.llama.port}"
        children.bioproxy("bioproxy", self._port, self.admin, url, "--slot-save-path", self.llama.slots)
        wait_for("bioproxy to see llama.cpp", lambda: get(self.admin, "/status")["llama"]["up"])
        if record:
            client = installed.client
            hidden = (f"{self.home}=/home/user", f"{self.project}=/home/user/project", f"{folder}=/tmp/folder")
            to = ("--to", f"http://127.0.0.1:{self._port}", "--port", recorder)
            named = ("--client", f"{client.package} {installed.version}")
            hide = [word for each in hidden for word in ("--hide", each)]
            children.start("recorder", ["-m", "tools.record_client", client.name, *named, *to, *hide], recorder)
            self._port = recorder

    def ask(self, what: str, arguments: Sequence[str], question: str) -> Turn:
        """Run the client for one turn.  Raises `AssertionError` if it fails, or if nothing of it was answered."""
        client = self._installed.client
        environment = prepare(client, self.home, f"http://127.0.0.1:{self._port}")
        command = [str(self._installed.program), *(each.replace("{question}", question) for each in arguments)]
        # bioproxy's own list tells which requests a client has sent; its output does not.
        before = {each["id"] for each in get(self.admin, "/status")["requests"]}
        with self._log.open("ab") as log:
            try:
                done = subprocess.run(
                    command,
                    cwd=self.project,
                    env=environment,
                    timeout=TURN_SECONDS,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                )
            except subprocess.TimeoutExpired:
                raise AssertionError(f"{client.name}: {what} took more than {TURN_SECONDS} s{self.said()}") from None
        # A client that ends with an error has not been served as it wants, whatever llama-server did.
        assert done.returncode == 0, f"{client.name}: {what} ended with {done.returncode}{self.said()}"
        # A client may end with the last event of its answer, before bioproxy has noted the request.
        self._idle()
        new = [each for each in get(self.admin, "/status")["requests"] if each["id"] not in before]
        # 499: Codex closes its connection at the last event, sometimes before the end of the body has arrived.
        answered = [each for each in new if each["status"] in (200, 499) and each["prompt_tokens"]]
        assert answered, f"{client.name}: {what} sent nothing that was answered{self.said()}"
        return Turn(what, max(answered, key=lambda each: int(each["prompt_tokens"])))

    def said(self) -> str:
        """Return the end of what the client printed, for the words of an error."""
        return ": ..." + self._log.read_text(errors="replace")[-1500:]

    def rest(self, sessions: int) -> None:
        """Wait until what was learned from so many sessions is warm and in files."""
        # A prompt with tools is learned at once, any other one with the second session.
        client = self._installed.client
        if client.learned and (client.has_tools or sessions > 1):

            def warm() -> bool:
                return bool(shelf(self.admin, "learned")) and all_warm(self.admin)

            wait_for("what was learned to be warm", warm, WARM_SECONDS)
        if client.shares:
            wait_for("the conversation to be saved", lambda: bool(shelf(self.admin, "conversation")), WARM_SECONDS)
        self._idle()

    def _idle(self) -> None:
        """Wait until no request and no warm-up uses the slot."""
        wait_for("bioproxy to be at rest", lambda: get(self.admin, "/status")["gate"]["busy"] is None)


def turns(folder: Path, installed: Installed, model: Path, record: bool = False) -> list[Turn]:
    """Run a client's turns in a folder of their own, and check them.  `AssertionError` says what is wrong."""
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
        assert place.llama.alive
        look_for_trouble(folder / "bioproxy.log")
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
        if names and client.name not in names:
            continue
        try:
            installed = install(client, folder / client.name / "installed")
        except NotInstalled as error:
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
