"""llama.cpp dies again and again, at random moments, while clients ask and templates are edited.

What is done is drawn from a seed, so a run can be repeated, as far as the moments go that the machine has a say in:
`BIOPROXY_SEED=7 BIOPROXY_KILLS=300 pytest tests/integration/test_faults.py`.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from random import Random

from twisted.internet.defer import gatherResults

from tests.integration.support import (
    PATIENCE,
    Answer,
    Call,
    LlamaServer,
    RunningProxy,
    async_test,
    conversation,
    defer,
    eventually,
    pause,
    reactor,
    until,
)

ProxyOf = Callable[..., RunningProxy]

SEED = int(os.environ.get("BIOPROXY_SEED", "1"))
KILLS = int(os.environ.get("BIOPROXY_KILLS", "20"))
CLIENTS = 8

TEMPLATES = {
    "code": "You know this code. <{code.notes}> Answer: <{message}>",
    "story": "You write stories. <{story.notes}> About: <{message}>",
}
SENTENCE = "The server keeps one slot and a file for each text. "

ENDINGS = ("whole", "left", "error event", "502")
"""How requests end, each of them now and then: the storm goes on until all were seen."""

KINDS = {502: "upstream_error", 503: "unavailable_error", 504: "timeout_error"}


class Storm:
    """One run.  `ended` counts how requests ended, `caches` what whole answers say of the slot."""

    def __init__(self, llama: LlamaServer, proxy: RunningProxy, folder: Path) -> None:
        self.ended: Counter[str] = Counter()
        self.caches: Counter[str | None] = Counter()
        self._llama = llama
        self._proxy = proxy
        self._folder = folder
        self._over = False

    async def run(self) -> None:
        """Let everything happen at the same time; fires when the last kill was made and everybody has an answer."""
        others = [defer(self._client(chance(f"client {number}"))) for number in range(CLIENTS)]
        others.append(defer(self._editor(chance("editor"))))
        try:
            await self._fate(chance("fate"))
        finally:
            self._over = True
            await gatherResults(others, consumeErrors=True)

    def _saw_everything(self) -> bool:
        return all(self.ended[how] for how in ENDINGS) and self.caches["restored"] > 0

    async def _fate(self, chance: Random) -> None:
        kills = 0
        while kills < KILLS or (kills < 3 * KILLS and not self._saw_everything()):
            kills += 1
            await self._whole_answers(chance.randint(0, 3))
            await pause(chance.uniform(0.05, 0.6))
            self._llama.kill()
            await pause(chance.uniform(0, 0.3))
            await self._llama.start()

    async def _editor(self, chance: Random) -> None:
        edition = 0
        while not self._over:
            edition += 1
            sentences = [SENTENCE] * 60
            sentences.insert(chance.randrange(60), f"This is edition {edition}. ")
            notes(self._folder, chance.choice(list(TEMPLATES))).write_text("".join(sentences))
            await self._whole_answers(chance.randint(2, 12))

    async def _whole_answers(self, count: int) -> None:
        """Wait until there were so many more whole answers, or all is over.

        By work done and not by time alone: on a busy machine, nothing would come far enough to be saved and restored
        before the next edit or kill.
        """
        wanted = self.ended["whole"] + count
        await until(lambda: self._over or self.ended["whole"] >= wanted, 10 * PATIENCE)

    async def _client(self, chance: Random) -> None:
        messages = [""]
        while not self._over:
            if len(messages) % 2 == 0 and chance.random() < 0.5:
                messages = [*messages, "and then?"]
            else:
                messages = [chance.choice(["@code why?", "@story a chair", "hello"])]
            stream, hasty = chance.random() < 0.5, chance.random() < 0.25
            call = self._proxy.ring(*messages, stream=stream, max_tokens=chance.choice([4, 40, 400]))
            if hasty:
                await pause(chance.uniform(0, 0.3))
            if hasty and not call.over.called:
                call.hang_up()
                self.ended["left"] += 1
            await call.over.addTimeout(PATIENCE, reactor)
            if not hasty:
                how = judged(call, stream)
                self.ended[how] += 1
                if how == "whole":
                    self.caches[call.answer.cache] += 1
                    messages = [*messages, call.answer.text]
            await pause(chance.uniform(0, 0.1))


def judged(call: Call, stream: bool) -> str:
    """Return how a request ended, having checked that this is one of the ways in which it may."""
    answer = call.answer
    assert answer.header("X-Bioproxy-Request-Id"), f"no answer at all: {answer}"
    if answer.status != 200:
        error = answer.json()["error"]
        assert call.whole and error["message"]
        assert (error["code"], error["type"]) == (answer.status, KINDS[answer.status])
        return str(answer.status)
    if not stream:
        return "whole" if call.whole and is_whole(answer) else "broken off"
    assert call.whole, "what goes wrong in a stream is told in the stream"
    *_, last = answer.events()
    if last == "[DONE]":
        assert answer.timings["predicted_n"] > 0
        assert json.loads(answer.events()[-2])["choices"][0]["finish_reason"] in ("length", "stop")
        return "whole"
    assert json.loads(last)["error"]["type"] in KINDS.values()
    assert "[DONE]" not in answer.events()
    return "error event"


def is_whole(answer: Answer) -> bool:
    """Check that a plain answer that looks whole is whole, and say so."""
    assert answer.json()["choices"][0]["finish_reason"] in ("length", "stop")
    assert answer.timings["predicted_n"] > 0
    return True


def chance(about: str) -> Random:
    """Return what somebody draws from, independent of the others."""
    return Random(f"{SEED} {about}")


def notes(folder: Path, name: str) -> Path:
    """Return the file that a template includes."""
    return folder / f"{name}.notes"


@async_test
async def test_killed_again_and_again(llama: LlamaServer, proxy_of: ProxyOf, tmp_path: Path) -> None:
    """Every request ends in a whole answer or a clear error, and afterwards everything is warm, as it is on disk."""
    for name in TEMPLATES:
        notes(tmp_path, name).write_text(SENTENCE)
    proxy = proxy_of(llama.url, TEMPLATES, slot_save_path=str(llama.slots))
    await proxy.warm(*TEMPLATES)
    storm = Storm(llama, proxy, tmp_path)
    try:
        await storm.run()
    finally:
        print(f"seed {SEED}, {KILLS} kills: {dict(storm.ended)}, {dict(storm.caches)}")

    assert all(storm.ended[how] for how in ENDINGS)
    assert storm.caches["restored"] > 0
    assert llama.alive
    await proxy.look(*TEMPLATES)
    await proxy.warm(*TEMPLATES)
    await eventually(lambda: proxy.gate(None, 0))
    answers = {}
    for name in TEMPLATES:
        tokens = await proxy.warm(name)
        answers[name] = await proxy.chat(f"@{name} what?")
        assert answers[name].status == 200
        assert answers[name].cache in ("hot", "restored")
        assert answers[name].timings["cache_n"] >= tokens
    await llama.restart()
    for name, template in TEMPLATES.items():
        text = template.replace(f"<{{{name}.notes}}>", notes(tmp_path, name).read_text())
        truth = await llama.call("POST", "/v1/chat/completions", conversation(text.replace("<{message}>", "what?")))
        assert answers[name].text == truth.text
        assert total(answers[name]) == total(truth)


def total(answer: Answer) -> int:
    """Return how many tokens the prompt had."""
    return int(answer.timings["cache_n"] + answer.timings["prompt_n"])
