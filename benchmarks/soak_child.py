"""The llama.cpp that bioproxy starts itself, killed at random moments under load: part of ``make soak``.

This is about bioproxy as a parent: whether it notices each death, starts again with the right pause, keeps requests
waiting meanwhile instead of failing them, and believes nothing of a slot that is gone.  Both processes are on one
machine, so the operating system is part of what is tried.

Clients ask without a pause, on a template and without one, while llama.cpp is killed again and again, at moments that
the seed decides.  Each request must have an answer, or an error with words; llama.cpp must be back each time; and at
the end what is restored from files must give the tokens and odds of a cold run.

The short form is `tests.integration.test_own_llama`.
"""

from __future__ import annotations

import http.client
import json
import os
import random
import signal
import threading
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from benchmarks.servers import TWISTD, Children, free_ports, get, wait_for
from benchmarks.soak_clients import look_for_trouble
from bioproxy.demo import tiny_model
from bioproxy.demo.vocabulary import COMMON_WORDS

KEY = "soak"
"""The key that this llama.cpp asks for."""

CLIENTS = 4
"""Clients that ask at the same time: one is answered and three wait, so that each kill meets both."""

LONGEST = 20.0
"""Seconds that llama.cpp may live at most, once it answers.

Half of its lives are then long enough for a crash to count as the first one; the others have growing pauses.  Halved,
all would; doubled, a run takes twice as long.
"""


def ask(port: int, message: str, **more: Any) -> tuple[int, Any]:
    """Send a chat; return status and body.  `more` are further fields of the request.

    Waits for two minutes: llama.cpp may be loading its model, in which bioproxy keeps the request waiting.
    """
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
    body = {"messages": [{"role": "user", "content": message}], "max_tokens": 8, "temperature": 0, **more}
    # The key is for llama.cpp itself, which is asked directly once; bioproxy asks its clients for none.
    try:
        connection.request("POST", "/v1/chat/completions", json.dumps(body), {"Authorization": f"Bearer {KEY}"})
        response = connection.getresponse()
        return response.status, json.loads(response.read())
    finally:
        connection.close()


def odds(body: Any) -> dict[str, float]:
    """Return the likeliest first tokens of an answer, with the logarithms of their probabilities."""
    top = body["choices"][0]["logprobs"]["content"][0]["top_logprobs"]
    return {each["token"]: each["logprob"] for each in top}


def own_llama(folder: Path, kills: int, seed: int) -> None:
    """Kill llama.cpp so many times.  `AssertionError` says what is wrong.

    `folder` gets the model, the template and all that bioproxy writes; `seed` decides the moments.
    """
    moments = random.Random(seed)
    folder.mkdir()
    model, template, key = folder / "model.gguf", folder / "code.txt", folder / "key"
    key.write_text(KEY)
    tiny_model.write_model(model, tiny_model.TINY)
    know = " ".join(random.Random(1).choices(COMMON_WORDS, k=1500))
    template.write_text(f"{know} <{{message}}>")
    # Filled by all clients; appending to a list is one step in Python.
    results: list[tuple[int, Any]] = []
    over = threading.Event()

    def client(number: int) -> None:
        """Ask until all is over."""
        while not over.is_set():
            # Half of the questions are on the template, so that the slot changes hands all the time.
            words = f"@code what about {len(results)}?" if len(results) % 2 else f"{number} says {len(results)}"
            results.append(ask(port, words))

    # Only bioproxy is started here.  llama.cpp is its child, and must end with it, whatever happens.
    with ExitStack() as stack:
        children = Children(stack, folder)
        port, admin = free_ports(2)
        # A key of the user's: without one bioproxy makes its own, and nobody could ask llama.cpp past it.
        flags = ["--llama-args", f"--threads 1 --cache-ram 256 --api-key {KEY}", "--llama-api-key-file", key]
        options = ["--model", model, *flags, "--prefix", f"@code={template}"]
        where = ["--port", port, "--admin-port", admin, "--state-dir", folder / "state"]
        children.start("bioproxy", [*TWISTD, "bioproxy", *where, *options], port)

        def child() -> Any:
            """Return what bioproxy says of its llama.cpp."""
            return get(admin, "/status")["llama"]["child"]

        def back(restarts: int) -> bool:
            """Tell whether it runs again, after so many restarts."""
            now = child()
            return bool(now["state"] == "running" and now["restarts"] == restarts)

        # It loads its model first; from then on clients ask without a pause.
        wait_for("llama.cpp to answer", lambda: back(0))
        threads = [threading.Thread(target=client, args=(number,), daemon=True) for number in range(CLIENTS)]
        for thread in threads:
            thread.start()
        slowest = 0.0
        # From 0 to `LONGEST` seconds: in the middle of loading the model, of a warm-up, of an answer, or at rest.
        for number in range(kills):
            time.sleep(moments.uniform(0, LONGEST))
            # llama.cpp itself, whose id bioproxy tells, and not the small process that watches over a program.
            os.kill(child()["pid"], signal.SIGKILL)
            began = time.monotonic()
            wait_for(f"llama.cpp to be back after kill {number + 1}", lambda number=number: back(number + 1), 90)  # type: ignore[misc]
            # Told at the end: it should be the pause and the time that loading takes, and nothing else.
            slowest = max(slowest, time.monotonic() - began)
        # Each request in progress must come to an end, with an answer or with an error that says what happened.
        over.set()
        for thread in threads:
            thread.join(60)
            assert not thread.is_alive(), "a request has no answer"
        # A request that met a kill gets an error, and must be told why; all others are answered, however long they
        # waited.
        good = sum(status == 200 for status, _ in results)
        bad = [body["error"]["message"] for status, body in results if status != 200]
        assert all("llama" in words for words in bad), f"an error without a reason: {bad}"
        assert good > kills, f"only {good} requests were answered"

        # At last the question that matters most: is what comes from a file the same as what is computed?  llama.cpp is
        # asked directly for that, without bioproxy and without reuse.
        wait_for("the template to be warm", lambda: get(admin, "/status")["templates"][0]["state"] == "warm")
        ask(port, "something else")
        status, restored = ask(port, "@code why?", logprobs=True, top_logprobs=10)
        direct = int(get(admin, "/status")["llama"]["url"].rpartition(":")[2])
        _, cold = ask(direct, f"{know} why?", logprobs=True, top_logprobs=10, cache_prompt=False)
        # Not only the token that was chosen: a wrong state often chooses the same one, with other probabilities.
        one, other = odds(restored), odds(cold)
        assert status == 200 and restored["timings"]["cache_n"] > 1000, "the template's file was not used"
        assert all(abs(one[token] - other[token]) < 0.1 for token in one.keys() & other.keys()), "another answer"
        # Each death is a warning in there, and none of them may be an error of bioproxy's own.
        look_for_trouble(folder / "bioproxy.log")
        print(
            f"llama.cpp of bioproxy's own: killed {kills} times, back after {slowest:.1f} s at most;"
            f" {good} requests answered, {len(bad)} told what happened",
            flush=True,
        )
