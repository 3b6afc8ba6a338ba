"""What templates cost inside bioproxy: ``python -m benchmarks.bench.inside FOLDER LLAMA_URL TOKENS,... COUNTS,...``.

The cost of a poll or of filling is too small to be seen from outside, so bioproxy's own parts are called here, in a
process with a reactor, threads and connections as in the service.  The process prints one JSON object:

* ``large``, by tokens of a template: ``read_ms`` (its file has changed), ``poll_ms`` (it has not), ``find_ms`` and
  ``fill_ms`` (a request that names it), and ``prefix_s``, in which llama-server makes the exact prefix tokens;
* ``polls``, by number of templates: ``ms`` of a poll when no file has changed, and ``thread_ms`` when no thread takes
  part.

The Twisted idea: `react` runs a reactor until the coroutine that it was given has returned, which is what a script
needs.  A service has a reactor that runs until a signal.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Coroutine
from dataclasses import replace
from pathlib import Path
from typing import Any

from twisted.internet.defer import Deferred, maybeDeferred
from twisted.internet.task import react
from twisted.internet.threads import deferToThreadPool

from benchmarks.servers import invented
from bioproxy.llama.api import LlamaApi
from bioproxy.llama.connections import Agents
from bioproxy.llama.prefix_tokens import prefix_tokens
from bioproxy.llama.upstream import Upstream
from bioproxy.prompts.filling import NamedTemplates
from bioproxy.prompts.prompt_shape import USER_MESSAGE_ONLY
from bioproxy.prompts.request_search import read_request
from bioproxy.prompts.template_poller import InThread, TemplatePoller
from bioproxy.prompts.templates import Template
from bioproxy.runtime.metrics import Metrics
from bioproxy.settings.api_keys import ApiKeys

CALLS = 20
"""Calls of which the fastest counts."""

MAX_BODY = 64 << 20
"""Bytes of a filled request, at most: bioproxy's default."""

UNLIMITED = 1 << 30
"""Tokens of a context that everything fits."""


def least_ms(times: list[float]) -> float:
    """Return the least of seconds, in milliseconds: the work itself, without what gets in between on a busy machine."""
    return min(times) * 1000


async def polled(templates: list[Template], in_thread: InThread) -> tuple[float, float]:
    """Fire with the milliseconds of a poll that reads all templates, and of one that finds nothing changed."""
    poller = TemplatePoller(templates, in_thread, Metrics())
    began = time.perf_counter()
    await poller.poll()
    first = (time.perf_counter() - began) * 1000
    # In its first two seconds with a file, a poller reads it each time, because equal stamps do not prove enough yet.
    # What comes after that, for as long as bioproxy runs, is measured here.
    for name, reading in poller.readings.items():
        poller.readings[name] = replace(reading, settled=True)
    times = []
    for _ in range(CALLS):
        began = time.perf_counter()
        await poller.poll()
        times.append(time.perf_counter() - began)
    return first, least_ms(times)


def written(folder: Path, name: str, tokens: int) -> Template:
    """Return a template of so many words."""
    path = folder / f"{name}.txt"
    path.write_text(f"{invented(tokens)}\n<{{message}}>")
    return Template.of(f"@{name}", path)


async def large(template: Template, in_thread: InThread, llama: LlamaApi) -> dict[str, float]:
    """Fire with what a large template costs."""
    read, poll = await polled([template], in_thread)
    poller = TemplatePoller([template], in_thread, Metrics())
    text = await poller.read_current(template)
    body = json.dumps({"messages": [{"role": "user", "content": f"{template.prefix} why?"}]}).encode()
    finding, filling = [], []
    for _ in range(CALLS):
        began = time.perf_counter()
        found = read_request(body, "/v1/chat/completions", [template], None)
        finding.append(time.perf_counter() - began)
        assert isinstance(found, NamedTemplates)
        began = time.perf_counter()
        found.fill({template.name: text}, MAX_BODY)
        filling.append(time.perf_counter() - began)
    began = time.perf_counter()
    tokens = await prefix_tokens(llama, text.prefix, USER_MESSAGE_ONLY, UNLIMITED)
    seconds = time.perf_counter() - began
    milliseconds = {"find_ms": least_ms(finding), "fill_ms": least_ms(filling)}
    return {"tokens": len(tokens), "read_ms": read, "poll_ms": poll, **milliseconds, "prefix_s": seconds}


async def measure(reactor: Any, folder: Path, url: str, sizes: list[int], counts: list[int]) -> None:
    """Measure everything, and print it."""

    def threads(work: Any) -> Deferred[Any]:
        return deferToThreadPool(reactor, reactor.getThreadPool(), work)

    def here(work: Any) -> Deferred[Any]:
        return maybeDeferred(work)

    llama = LlamaApi(Upstream(url, Agents.over_network(reactor, url), reactor, ApiKeys(None, None)))
    await threads(int)  # the pool's threads are started when they are needed, which is no cost of a poll
    found: dict[str, dict[int, Any]] = {"large": {}, "polls": {}}
    for tokens in sizes:
        found["large"][tokens] = await large(written(folder, f"large{tokens}", tokens), threads, llama)
    for count in counts:
        templates = [written(folder, f"t{number}", 200) for number in range(count)]
        found["polls"][count] = {
            "ms": (await polled(templates, threads))[1],
            "thread_ms": (await polled(templates, here))[1],
        }
    print(json.dumps(found))


def main(reactor: Any, folder: str, url: str, sizes: str, counts: str) -> Deferred[None]:
    """Called by `react`."""
    numbers = [[int(each) for each in text.split(",")] for text in (sizes, counts)]
    work: Coroutine[Any, Any, None] = measure(reactor, Path(folder), url, *numbers)
    return Deferred.fromCoroutine(work)


if __name__ == "__main__":
    react(main, sys.argv[1:])
