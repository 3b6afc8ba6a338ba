"""How long does a user wait for the first word?  The part of `tests.bench` with a real llama.cpp.

The prompt is a template of about 3,000 tokens and a short question, for the 112 MB model of the demonstration: words
without sense, but computed as those of any other model.  The answer is streamed, and the clock stops at the first
piece of text.  What is compared:

* *cold*: nobody has sent this text before; llama.cpp computes all of it;
* *hot*: the slot holds it still;
* *restored* (bioproxy only): the slot was used for another template since, and bioproxy gets it back from its file;
* *later* (direct only): the slot was used for other prompts since, and llama-server helps itself, from its memory
  (``--cache-ram``).  A restart would end that, and so would enough other prompts.

That a request was in the state that it is counted under is checked with what llama-server says of each.
"""

from __future__ import annotations

import http.client
import json
import random
import statistics
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from bioproxy.config import xdg_folder
from bioproxy.demo.tiny_model import COMMON_WORDS
from tests.bench_servers import Children, free_ports

TEMPLATE_TOKENS = 3000
RUNS = 5


@dataclass
class FirstWords:
    """Asks the real llama.cpp, directly or through bioproxy, and measures the time to the first word.

    `taken` has the seconds by what was asked for; `wrong` what did not go as intended and was counted all the same.
    """

    taken: dict[str, list[float]] = field(default_factory=dict)
    wrong: list[str] = field(default_factory=list)
    prompt: int = 0

    def ask(self, label: str, port: int, message: str) -> None:
        """Ask with a fresh connection, as llama-server closes each after a stream; `label` is ``way, state``."""
        # A question of its own each time: with the very same prompt there would be less to compute.
        text = f"{message} {random.choice(COMMON_WORDS)} {random.choice(COMMON_WORDS)}?"
        question = {"messages": [{"role": "user", "content": text}], "stream": True, "max_tokens": 4}
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        began = time.perf_counter()
        connection.request("POST", "/v1/chat/completions", json.dumps(question), {"Content-Type": "application/json"})
        response = connection.getresponse()
        first = None
        timings: dict[str, int] = {}
        for line in response:
            if line.startswith(b"data: {"):
                event = json.loads(line[6:])
                if first is None and any(choice["delta"].get("content") for choice in event["choices"]):
                    first = time.perf_counter() - began
                timings = event.get("timings", timings)
        connection.close()
        assert response.status == 200 and first is not None, (label, response.status)
        self.taken.setdefault(label, []).append(first)
        self._check(label, response.headers.get("X-Bioproxy-Cache"), timings["cache_n"], timings["prompt_n"])

    def _check(self, label: str, told: str | None, reused: int, computed: int) -> None:
        """Was it really hot, restored or cold?  llama-server's own numbers say so, beside bioproxy's header."""
        self.prompt = reused + computed
        way, state = label.split(", ")
        cold = state == "cold"
        if (told != state and way == "bioproxy") or cold != (computed > self.prompt / 2):
            self.wrong.append(f"{label}: {told}, {reused} tokens reused, {computed} computed")

    def median(self, label: str) -> float:
        """Return the median of the seconds."""
        return statistics.median(self.taken[label])


def invented(words: int) -> str:
    """Return a text that nobody has seen before.  The generated model has one token for each of its words."""
    return " ".join(random.choices(COMMON_WORDS, k=words))


def first_words(folder: Path, latest: float) -> None:
    """Part d: the time to the first word, with a template of about 3,000 tokens on a real llama.cpp.

    No run begins after `latest`, a time of `time.monotonic`.
    """
    with ExitStack() as stack:
        children = Children(stack, folder)
        llama, ours, admin = free_ports(3)
        # The demonstration's model: 112 MB that are made once.
        model = xdg_folder("XDG_CACHE_HOME", ".cache") / "demo" / "model.gguf"
        print(f"\nStarting llama.cpp with {model}", "" if model.exists() else "(which is made now, once)", flush=True)
        arguments = ["--model", model, "--generate", "small", "--port", llama, "--slot-save-path", folder / "slots"]
        children.start("llama", ["-m", "bioproxy.demo.llama_child", *arguments], llama, 60)
        wait_for("llama.cpp", lambda: get(llama, "/health") is not None)

        files = {name: folder / f"{name}.txt" for name in ("one", "two")}
        for file in files.values():
            file.write_text(invented(TEMPLATE_TOKENS) + "\n<{message}>")
        prefixes = [word for name, file in files.items() for word in ("--prefix", f"@{name}={file}")]
        # Without warm-ups ahead a template is cold when it is asked for first; what was asked for is saved.
        options = [*prefixes, "--no-warmup", "--slot-save-path", folder / "slots"]
        children.bioproxy("bioproxy-llama", ours, admin, f"http://127.0.0.1:{llama}", *options)
        wait_for("bioproxy", lambda: (get(admin, "/status") or {"llama": {"up": False}})["llama"]["up"])
        words = FirstWords()
        for number in range(RUNS):
            if number and time.monotonic() > latest:
                print("  no time for more")
                break
            print(f"  run {number + 1} of {RUNS}", flush=True)
            one_run(words, files, llama, ours, admin)
        report(words)


def one_run(words: FirstWords, files: Mapping[str, Path], llama: int, ours: int, admin: int) -> None:
    """Have each state once or more, llama-server's own and bioproxy's."""
    text = invented(TEMPLATE_TOKENS)
    words.ask("direct, cold", llama, text)
    words.ask("direct, hot", llama, text)
    for name, file in files.items():
        file.write_text(invented(TEMPLATE_TOKENS) + "\n<{message}>")
        words.ask("bioproxy, cold", ours, f"@{name}")
        wait_for(f"the snapshot of {name}", partial(saved, admin, name))
        words.ask("bioproxy, hot", ours, f"@{name}")
    for name in files:
        words.ask("bioproxy, restored", ours, f"@{name}")
        words.ask("bioproxy, hot", ours, f"@{name}")
    # What llama-server does by itself: it has the prompt in memory still (--cache-ram), until it is restarted.
    words.ask("direct, later", llama, text)


def saved(admin: int, name: str) -> bool:
    """Tell whether bioproxy has a snapshot of the template's current text."""
    status = get(admin, "/status") or {"templates": []}
    return any(template["warmed_at"] for template in status["templates"] if template["name"] == name)


def get(port: int, path: str) -> Any:
    """Return the JSON answer of a GET request, `None` unless it is a success."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    try:
        connection.request("GET", path)
        response = connection.getresponse()
        return json.loads(response.read()) if response.status == 200 else None
    finally:
        connection.close()


def wait_for(what: str, ready: Callable[[], Any], patience: float = 30.0) -> None:
    """Wait until `ready` says so."""
    deadline = time.monotonic() + patience
    while not ready():
        if time.monotonic() > deadline:
            raise SystemExit(f"waited {patience:.0f} s for {what}")
        time.sleep(0.05)


def report(words: FirstWords) -> None:
    """Print part d."""
    print(f"Time to the first word with {words.prompt} prompt tokens, streaming, in milliseconds")
    print(f"  {'':20}{'p50':>9}{'best':>9}{'worst':>9}{'times':>7}")
    for label, values in sorted(words.taken.items()):
        middle = statistics.median(values) * 1000
        print(f"  {label:20}{middle:9.1f}{min(values) * 1000:9.1f}{max(values) * 1000:9.1f}{len(values):7}")
    hot = words.median("bioproxy, hot")
    print(f"  bioproxy, restored / hot: {words.median('bioproxy, restored') / hot:.2f}")
    print(f"  bioproxy, cold / hot: {words.median('bioproxy, cold') / hot:.1f}")
    print(f"  bioproxy, cold / restored: {words.median('bioproxy, cold') / words.median('bioproxy, restored'):.1f}")
    for text in words.wrong:
        print(f"  NOT AS INTENDED  {text}")
