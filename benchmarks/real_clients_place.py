"""Where a real client runs: an empty home, a project with one file, and the servers that it talks to.

A client is an ordinary program that knows nothing of being watched.  It is started for one turn with the command that
its recipe gives, and waited for.  What it has sent is taken from bioproxy's `/status`: the requests that are there
after the turn and were not before.

The model is made on the spot.  Its answers are random words and end by themselves after a few of them, so a client gets
a text and is content; a model that would call tools, or never end, would need the patience of hours.

Does not know which clients there are (`benchmarks.real_clients`), nor what they may cost
(`benchmarks.soak_real_clients`).
"""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from benchmarks.agents_day import Llama, all_warm, shelf
from benchmarks.real_clients import CONTEXT, Installed, prepare
from benchmarks.servers import Children, free_ports, get, wait_for
from bioproxy.demo import tiny_model
from bioproxy.demo.vocabulary import vocabulary

TURN_SECONDS = 600
"""Seconds that a client may take for a turn.

Cold, 43,000 tokens take 30 s on one free core, and minutes on a busy one.  With half as many, a client may fail for
that; with twice as many, a client that hangs holds up the others for longer.
"""

WARM_SECONDS = 120
"""Seconds in which a prompt that was learned must be warm.

Its tokens are mostly in the slot already.  Halved, a busy machine fails; doubled, a fault is found later.
"""

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
    # The file is changed in place.  An answer of the generated models never ends: the score of the token that ends it
    # is always 0.  Here it is random.
    row = vocabulary()[0].index("<|im_end|>")
    random = numpy.random.default_rng(1)
    for tensor in gguf.GGUFReader(str(path), "r+").tensors:
        if tensor.name == "output.weight":
            tensor.data[row] = random.standard_normal(tensor.data.shape[1]) * tensor.data.std() * ENDS
    return path


class Place:
    """A client's home and project, and the servers that it talks to.

    Invariant: all that the client writes is below one folder, and all servers end with the `ExitStack`.
    """

    def __init__(self, stack: ExitStack, folder: Path, installed: Installed, model: Path, record: bool) -> None:
        """Start the servers; with `record` a recorder in front of them."""
        # An empty home, so that nothing of this machine's owner is used, and a project with one file to read.
        self.home, self.project = folder / "home", folder / "project"
        # What the client has printed is kept for the words of an error.
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
        """Run the client for one turn.

        `what` names the turn, and `arguments` are the command's, in which ``{question}`` stands for the question.
        Raises `AssertionError` if the client fails, or if nothing of it was answered.
        """
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
        # The longest one is the agent's own.  The others are for titles, or to find out which models there are.
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
                """Tell whether something was learned, and all of that is warm."""
                return bool(shelf(self.admin, "learned")) and all_warm(self.admin)

            wait_for("what was learned to be warm", warm, WARM_SECONDS)
        if client.shares:
            wait_for("the conversation to be saved", lambda: bool(shelf(self.admin, "conversation")), WARM_SECONDS)
        self._idle()

    def _idle(self) -> None:
        """Wait until no request and no warm-up uses the slot: what the turn has changed is then noted."""
        wait_for("bioproxy to be at rest", lambda: get(self.admin, "/status")["gate"]["busy"] is None)
