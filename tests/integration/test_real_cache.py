"""bioproxy's main promise on the real llama.cpp: a question on a template computes the question only."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bioproxy.demo import tiny_model
from tests.integration.support import (
    REST,
    LlamaServer,
    RunningProxy,
    async_test,
    begin,
    conversation,
    defer,
    eventually,
    until,
)

LlamaOf = Callable[..., LlamaServer]
ProxyOf = Callable[..., RunningProxy]

CODE = "You know this code. " + "The server keeps one slot and a file for each text. " * 40 + "\nAnswer: <{message}>"
STORY = "You write stories. " + "The old mill by the river has a wheel that sounds odd. " * 30 + "\nAbout: <{message}>"
BOTH = {"code": CODE, "story": STORY}
NOTES = "The notes say that the house by the sea is small. " * 40

LONG = "The people of the valley read all day and write all night. " * 200 + "<{message}>"
"""Takes about three seconds on the slow model."""

QUESTION_TOKENS = 60 + REST
"""More than any question here has, with what the chat template puts behind it; far less than a template."""


def filled(template: str, message: str) -> str:
    """Return what llama-server should get."""
    return template.replace("<{message}>", message)


async def holds(llama: LlamaServer, text: str) -> bool:
    """Tell whether the slot holds a chat that begins with exactly this user message: then asking it costs nothing."""
    answer = await llama.call("POST", "/v1/chat/completions", conversation(text, max_tokens=1))
    return bool(answer.timings["prompt_n"] == 1)


def nonsense(tokens: int) -> dict[str, Any]:
    """Return a request that leaves exactly so many tokens in the slot, none of them of use."""
    return {"prompt": list(range(300, 300 + tokens)), "n_predict": 0, "id_slot": 0}


@async_test
async def test_warm_by_itself(llama: LlamaServer, proxy_of: ProxyOf) -> None:
    """After the start every template is processed and saved without anybody asking."""
    proxy = proxy_of(llama.url, BOTH)
    await proxy.warm("code", "story")
    await until(lambda: (llama.slots / "code.bin").exists() and (llama.slots / "story.bin").exists())
    assert await proxy.sample("warmups_total", result="done") == 2
    assert await proxy.sample("slot_saves_total", result="ok") == 2
    assert await proxy.sample("template_warm") == 2
    status = await proxy.status()
    assert status["llama"] | {"build": None} == {
        "url": llama.url,
        "up": True,
        "model": str(llama.model),
        "build": None,
        "slot_save": True,
        "note": None,
        "trouble": None,
        "help": None,
        "child": None,
    }
    assert status["gate"] == {"busy": None, "waiting": 0, "lingering": False, "inside": None, "queue": []}
    assert {each["progress"] for each in status["templates"]} == {1}


@async_test
async def test_restored_then_hot(llama: LlamaServer, proxy_of: ProxyOf) -> None:
    """A question gets its template from the file, the next one from the slot; both compute the question only."""
    proxy = proxy_of(llama.url, BOTH)
    await proxy.warm("story")
    tokens = await proxy.warm("code")
    other = await proxy.chat("@story a chair")
    restored = await proxy.chat("@code why?")
    assert (other.status, restored.status, restored.cache, restored.miss) == (200, 200, "restored", None)
    assert restored.header("X-Bioproxy-Template") == "code"
    assert float(restored.header("X-Bioproxy-Restore-Ms") or -1) > 0
    assert float(restored.header("X-Bioproxy-Queue-Ms") or -1) >= 0
    assert restored.timings["cache_n"] == tokens
    assert 0 < restored.timings["prompt_n"] < QUESTION_TOKENS

    hot = await proxy.chat("@code how?")
    assert (hot.cache, hot.miss, hot.header("X-Bioproxy-Restore-Ms")) == ("hot", None, None)
    assert hot.timings["cache_n"] >= tokens
    assert hot.header("X-Bioproxy-Request-Id") != restored.header("X-Bioproxy-Request-Id")

    newest, before = (await proxy.status())["requests"][:2]
    assert (newest["id"], newest["cache"]) == (hot.header("X-Bioproxy-Request-Id"), "hot")
    assert (before["cached_tokens"], before["template"]) == (tokens, "code")
    assert before["prompt_tokens"] == tokens + restored.timings["prompt_n"]


@async_test
async def test_the_right_text(llama: LlamaServer, proxy_of: ProxyOf) -> None:
    """What llama-server gets is the template with the message in its place, and nothing else."""
    proxy = proxy_of(llama.url, BOTH, warmup=False)
    for name, text in BOTH.items():
        await proxy.chat(f"@{name}   what is it? ")
        assert await holds(llama, filled(text, "what is it?"))
        assert not await holds(llama, filled(text, "what is that?"))


@async_test
async def test_restored_after_llama_restart(llama: LlamaServer, proxy_of: ProxyOf) -> None:
    """A llama-server that was killed and started again gets the template from the file, even when asked at once."""
    proxy = proxy_of(llama.url, {"code": CODE})
    tokens = await proxy.warm("code")
    await proxy.chat("@code why?")
    await llama.restart()
    answer = await proxy.chat("@code why?")
    assert (answer.status, answer.cache, answer.timings["cache_n"]) == (200, "restored", tokens)
    await proxy.warm("code")
    assert await proxy.sample("slot_saves_total", result="ok") == 1, "the file was good, nothing had to be saved"


@async_test
async def test_restored_after_both_restart(llama: LlamaServer, proxy_of: ProxyOf) -> None:
    """When everything was restarted, the machine too perhaps, the files are still of use."""
    proxy = proxy_of(llama.url, {"code": CODE})
    await proxy.warm("code")
    await proxy.stop()
    await llama.restart()
    proxy = proxy_of(llama.url, {"code": CODE})
    tokens = await proxy.warm("code")
    answer = await proxy.chat("@code why?")
    assert answer.cache in ("restored", "hot")
    assert answer.timings["cache_n"] == tokens
    assert await proxy.sample("slot_saves_total") == 0


@async_test
async def test_restored_after_proxy_restart(llama: LlamaServer, proxy_of: ProxyOf) -> None:
    """A proxy that is started again uses the files that it left: nothing is computed or saved again."""
    proxy = proxy_of(llama.url, BOTH)
    await proxy.warm("code", "story")
    await proxy.chat("@story a chair")
    await proxy.stop()
    written = {file.name: file.stat().st_mtime_ns for file in llama.slots.iterdir()}

    proxy = proxy_of(llama.url, BOTH)
    answer = await proxy.chat("@code why?")
    tokens = await proxy.warm("code")
    await proxy.warm("story")
    await proxy.rounds()
    assert (answer.cache, answer.timings["cache_n"]) == ("restored", tokens)
    assert await proxy.sample("slot_saves_total") == 0
    assert await proxy.sample("warmups_total") == 0, "to find good files is no warm-up"
    assert {file.name: file.stat().st_mtime_ns for file in llama.slots.iterdir()} == written


@async_test
async def test_second_turn(llama: LlamaServer, proxy_of: ProxyOf) -> None:
    """A conversation keeps its template: in every turn it is filled again and found in the cache."""
    proxy = proxy_of(llama.url, {"code": CODE})
    tokens = await proxy.warm("code")
    first = await proxy.chat("@code why?")
    second = await proxy.chat("@code why?", first.text, "and then?")
    assert (second.status, second.cache) == (200, "hot")
    assert second.timings["cache_n"] >= tokens + first.timings["prompt_n"] - 1
    await proxy.chat("something else")
    third = await proxy.chat("@code why?", first.text, "and then?", second.text, "really?")
    assert third.cache == "restored"
    assert third.timings["cache_n"] >= tokens


@async_test
async def test_streaming(llama: LlamaServer, proxy_of: ProxyOf) -> None:
    """A streamed answer says the same in its head, and llama-server's timings prove it in its last chunk."""
    proxy = proxy_of(llama.url, {"code": CODE})
    tokens = await proxy.warm("code")
    await proxy.chat("something else")
    answer = await proxy.chat("@code why?", stream=True)
    assert (answer.header("Content-Type"), answer.cache) == ("text/event-stream", "restored")
    assert answer.header("X-Bioproxy-Template") == "code"
    assert answer.timings["cache_n"] == tokens
    assert answer.events()[-1] == "[DONE]"
    assert answer.text == (await proxy.chat("@code why?")).text
    again = await proxy.chat("@code how?", stream=True)
    assert again.cache == "hot"
    assert again.timings["cache_n"] >= tokens


@async_test
async def test_edited_include(llama: LlamaServer, proxy_of: ProxyOf, tmp_path: Path) -> None:
    """After an edit of an included file the new text is warmed up, and a question computes only itself."""
    notes = tmp_path / "notes.md"
    notes.write_text(NOTES)
    proxy = proxy_of(llama.url, {"code": "Notes: <{notes.md}> Question: <{message}>"})
    before = await proxy.warm("code")
    assert (await proxy.template("code"))["includes"] == [str(notes)]

    notes.write_text(NOTES + "A new room was made. ")

    async def warm_again() -> bool:
        return await proxy.sample("warmups_total", result="done") == 2

    await eventually(warm_again)
    after = await proxy.warm("code")
    assert before < after < before + QUESTION_TOKENS
    answer = await proxy.chat("@code why?")
    assert answer.cache in ("hot", "restored")
    assert answer.timings["cache_n"] == after
    assert answer.timings["prompt_n"] < QUESTION_TOKENS
    assert await holds(llama, f"Notes: {NOTES}A new room was made.  Question: why?")


@async_test
async def test_asked_right_after_an_edit(llama: LlamaServer, proxy_of: ProxyOf, tmp_path: Path) -> None:
    """A question is answered from the text on disk, however long it is until the next look at the files."""
    notes = tmp_path / "notes.md"
    notes.write_text(NOTES)
    proxy = proxy_of(llama.url, {"code": "Notes: <{notes.md}> Question: <{message}>"}, poll_interval=600)
    await proxy.warm("code")
    notes.write_text("No notes any more, " + NOTES)
    answer = await proxy.chat("@code why?")
    assert (answer.status, answer.cache, answer.miss) == (200, "cold", "content-changed")
    assert await holds(llama, f"Notes: No notes any more, {NOTES} Question: why?")


@async_test
async def test_same_size_edit(llama: LlamaServer, proxy_of: ProxyOf) -> None:
    """An edit that keeps a file's size and comes right after another one is noticed too."""
    proxy = proxy_of(llama.url, {"code": CODE}, poll_interval=600)
    await proxy.warm("code")
    for word in ("each", "long", "good"):
        text = CODE.replace("each", word)
        proxy.path("code").write_text(text)
        assert (await proxy.chat("@code why?")).status == 200
        assert await holds(llama, filled(text, "why?"))


@async_test
async def test_another_model_at_the_same_path(llama: LlamaServer, proxy_of: ProxyOf, llama_of: LlamaOf) -> None:
    """Another model of the same shape never gets the old one's file: it answers as if it had been asked cold."""
    proxy = proxy_of(llama.url, {"code": CODE})
    await proxy.warm("code")
    old = await proxy.chat("@code why?", max_tokens=24)
    llama.kill()
    tiny_model.write_model(llama.model, tiny_model.TINY, seed=2)
    await llama.start()
    answer = await proxy.chat("@code why?", max_tokens=24)
    assert (answer.status, answer.cache, answer.miss) == (200, "cold", "other-model")

    direct = llama_of(model=llama.model)
    await direct.start()
    question = conversation(filled(CODE, "why?"), max_tokens=24)
    truth = await direct.call("POST", "/v1/chat/completions", question)
    assert answer.text == truth.text != old.text

    tokens = await proxy.warm("code")
    await proxy.chat("something else")
    again = await proxy.chat("@code why?", max_tokens=24)
    assert (again.cache, again.timings["cache_n"]) == ("restored", tokens)
    assert again.text == truth.text


@async_test
async def test_another_model_is_warmed_up(llama: LlamaServer, proxy_of: ProxyOf) -> None:
    """A template is warmed up for another model without anybody asking."""
    proxy = proxy_of(llama.url, {"code": CODE})
    await proxy.warm("code")
    llama.kill()
    tiny_model.write_model(llama.model, tiny_model.TINY, seed=2)
    await llama.start()

    async def noticed() -> bool:
        return await proxy.sample("warmups_total", result="done") == 2

    await eventually(noticed)
    tokens = await proxy.warm("code")
    answer = await proxy.chat("@code why?")
    assert answer.timings["cache_n"] == tokens
    assert await proxy.sample("slot_saves_total", result="ok") == 2


@pytest.mark.parametrize("visible", [True, False], ids=["folder-seen", "folder-not-seen"])
@async_test
async def test_slot_file_deleted(llama: LlamaServer, proxy_of: ProxyOf, visible: bool) -> None:
    """A file that is gone makes one question cold and is then made again."""
    proxy = proxy_of(llama.url, {"code": CODE}, **({"slot_save_path": str(llama.slots)} if visible else {}))
    await proxy.warm("code")
    await proxy.chat("something else")
    (llama.slots / "code.bin").unlink()
    answer = await proxy.chat("@code why?")
    assert (answer.status, answer.cache, answer.miss) == (200, "cold", "no-file")
    tokens = await proxy.warm("code")
    assert (llama.slots / "code.bin").exists()
    await proxy.chat("something else")
    again = await proxy.chat("@code why?")
    assert (again.cache, again.timings["cache_n"]) == ("restored", tokens)


@async_test
async def test_slot_file_cut_short(llama: LlamaServer, proxy_of: ProxyOf) -> None:
    """A file that was cut short, which would end llama-server, is never given to it where the folder can be seen."""
    proxy = proxy_of(llama.url, {"code": CODE}, slot_save_path=str(llama.slots))
    await proxy.warm("code")
    await proxy.chat("something else")
    file = llama.slots / "code.bin"
    os.truncate(file, file.stat().st_size // 2)
    answer = await proxy.chat("@code why?")
    assert llama.alive
    assert (answer.status, answer.cache, answer.miss) == (200, "cold", "no-file")
    tokens = await proxy.warm("code")
    await proxy.chat("something else")
    again = await proxy.chat("@code why?")
    assert (again.cache, again.timings["cache_n"]) == ("restored", tokens)


@async_test
async def test_user_before_warmup(llama_of: LlamaOf, proxy_of: ProxyOf, slow: Path) -> None:
    """A user who comes during a long warm-up is served before it is done, which it is afterwards."""
    llama = llama_of(model=slow)
    await llama.start()
    proxy = proxy_of(llama.url, {"code": LONG})

    async def under_way() -> bool:
        template = await proxy.template("code")
        return bool(template["state"] == "warming" and 0 < template["progress"] < 0.5)

    await eventually(under_way)
    answer = await proxy.chat("hello")
    assert answer.status == 200
    assert await proxy.sample("warmups_total", result="preempted") >= 1
    assert await proxy.sample("warmups_total", result="done") == 0
    assert await proxy.sample("preempt_seconds_count") == 1
    tokens = await proxy.warm("code")
    assert await proxy.sample("warmups_total", result="done") == 1
    last = await proxy.chat("@code why?", max_tokens=1)
    assert last.timings["cache_n"] == tokens


@async_test
async def test_restart_noticed_during_an_answer(llama_of: LlamaOf, proxy_of: ProxyOf, slow: Path) -> None:
    """A restart that is noticed while a question is being answered keeps no template from being saved."""
    llama = llama_of(model=slow)
    await llama.start()
    proxy = proxy_of(llama.url, {"code": LONG}, warmup=False)

    async def up() -> bool:
        return bool((await proxy.status())["llama"]["up"])

    await eventually(up)
    await llama.restart()
    # The watch looks every two seconds: while this is computed.
    assert (await proxy.chat("@code why?")).cache == "cold"
    tokens = await proxy.warm("code")
    await proxy.chat("something else")
    answer = await proxy.chat("@code why?")
    assert (answer.cache, answer.timings["cache_n"]) == ("restored", tokens)


@async_test
async def test_longer_than_the_context(llama_of: LlamaOf, proxy_of: ProxyOf) -> None:
    """A template that does not fit is an error with both numbers; it is left alone until it is shorter."""
    llama = llama_of("--ctx-size", "512")
    await llama.start()
    proxy = proxy_of(llama.url, {"code": CODE, "story": "A short one. <{message}>"})
    await proxy.warm("story")

    async def refused() -> bool:
        return bool((await proxy.template("code"))["state"] == "error")

    await eventually(refused)
    await proxy.rounds(2.6)
    template = await proxy.template("code")
    assert template["state"] == "error"
    assert template["tokens"] > 512
    assert "512" in template["error"] and str(template["tokens"]) in template["error"]
    assert await proxy.sample("warmups_total", template="code") == 1, "it is not tried again"

    proxy.path("code").write_text("Now it is short. <{message}>")
    await proxy.warm("code")
    assert (await proxy.template("code"))["error"] is None


@async_test
async def test_no_warmup(llama: LlamaServer, proxy_of: ProxyOf) -> None:
    """Without warm-ups nothing is evaluated before somebody asks."""
    proxy = proxy_of(llama.url, BOTH, warmup=False)
    first = await proxy.chat("@story a chair")
    assert (first.cache, first.miss) == ("cold", "first")
    # What somebody asked for is kept; by then the other one had its chance too.
    await proxy.warm("story")
    await proxy.rounds()
    assert (await proxy.template("code"))["state"] == "cold"
    assert not (llama.slots / "code.bin").exists()
    assert (await proxy.chat("@code why?")).miss == "first"


@async_test
async def test_without_slot_files(llama_of: LlamaOf, proxy_of: ProxyOf) -> None:
    """Where llama-server keeps no files, one template stays warm in the slot, and nothing is done in vain."""
    llama = llama_of(slots=False)
    await llama.start()
    proxy = proxy_of(llama.url, BOTH)
    tokens = await proxy.warm("code")
    task = (await llama.slot())["id_task"]
    await proxy.rounds()
    assert (await llama.slot())["id_task"] == task, "a warm slot is left alone"
    assert await proxy.sample("warmups_total") == 1
    assert (await proxy.status())["llama"]["slot_save"] is False
    assert (await proxy.template("story"))["state"] == "cold"

    hot = await proxy.chat("@code why?")
    assert (hot.cache, hot.timings["cache_n"]) == ("hot", tokens)
    assert (await proxy.chat("@story a chair")).cache == "cold"
    task = (await llama.slot())["id_task"]
    await proxy.rounds()
    assert (await llama.slot())["id_task"] == task, "now the other one is in the slot, and stays there"
    assert (await proxy.chat("@story a stone")).cache == "hot"
    assert await proxy.sample("slot_saves_total") == 0


@async_test
async def test_llama_comes_later(llama_of: LlamaOf, proxy_of: ProxyOf) -> None:
    """While llama-server is away clients get an error that says so; when it comes, all works by itself."""
    llama = llama_of()
    proxy = proxy_of(llama.url, {"code": CODE})
    for path in ("/v1/chat/completions", "/health"):
        answer = await proxy.call("POST", path, conversation("@code why?"))
        assert answer.status == 502
        assert (answer.json()["error"]["type"], answer.json()["error"]["code"]) == ("upstream_error", 502)
    assert (await proxy.template("code"))["state"] == "cold"
    assert await proxy.sample("upstream_up") == 0
    await llama.start()
    tokens = await proxy.warm("code")
    answer = await proxy.chat("@code why?")
    assert (answer.status, answer.timings["cache_n"]) == (200, tokens)
    assert await proxy.sample("upstream_up") == 1


@async_test
async def test_llama_goes_and_comes(llama: LlamaServer, proxy_of: ProxyOf) -> None:
    """A llama-server that dies in the middle of an answer costs that answer, which does not look whole."""
    proxy = proxy_of(llama.url, {"code": CODE})
    tokens = await proxy.warm("code")
    body = conversation("@code why?", max_tokens=15000, stream=True)
    response = await begin("POST", proxy.url + "/v1/chat/completions", body)
    received: list[bytes] = []
    reading = response.collect(received.append)
    await until(lambda: b"".join(received).count(b"data:") > 3)
    llama.kill()
    await reading
    last = b"".join(received).rstrip().rpartition(b"data: ")[2]
    assert json.loads(last)["error"]["type"] == "upstream_error"
    await llama.start()
    answer = await proxy.chat("@code why?")
    assert (answer.cache, answer.timings["cache_n"]) == ("restored", tokens)


@async_test
async def test_slot_taken(llama: LlamaServer, proxy_of: ProxyOf) -> None:
    """Somebody who uses llama-server past the proxy is noticed: the template comes from its file again."""
    proxy = proxy_of(llama.url, {"code": CODE})
    tokens = await proxy.warm("code")
    assert (await proxy.chat("@code why?")).cache == "hot"
    await llama.call("POST", "/v1/chat/completions", conversation("something else " * 50))
    answer = await proxy.chat("@code why?")
    assert (answer.cache, answer.timings["cache_n"]) == ("restored", tokens)
    assert (await proxy.chat("@code why?")).cache == "hot"


@async_test
async def test_slot_taken_without_files(llama_of: LlamaOf, proxy_of: ProxyOf) -> None:
    """Where there are no files, the answer after that says that the slot was taken, and that it was cold."""
    llama = llama_of(slots=False)
    await llama.start()
    proxy = proxy_of(llama.url, {"code": CODE}, warmup=False)
    assert (await proxy.chat("@code why?")).miss == "first"
    assert (await proxy.chat("@code how?")).cache == "hot"
    await llama.call("POST", "/v1/chat/completions", conversation("something else " * 50))
    answer = await proxy.chat("@code what?")
    assert (answer.cache, answer.miss) == ("cold", "slot-taken")


@async_test
async def test_client_changes_the_slot(llama: LlamaServer, proxy_of: ProxyOf) -> None:
    """A client's own restore through the proxy is not taken for the proxy's, even if the witness looks the same."""
    proxy = proxy_of(llama.url, {"code": CODE})
    tokens = await proxy.warm("code")
    await proxy.chat("@code why?")
    before = await llama.slot()
    await llama.call("POST", "/completion", nonsense(before["n_prompt_tokens"]))
    await llama.call("POST", "/slots/0?action=save", {"filename": "x.bin"})

    assert (await proxy.chat("@code why?")).cache == "restored"
    left = await llama.slot()
    assert left["n_prompt_tokens"] == before["n_prompt_tokens"]
    assert (await proxy.call("POST", "/slots/0?action=restore", {"filename": "x.bin"})).status == 200
    same = await llama.slot()
    assert (same["id_task"], same["n_prompt_tokens"]) == (left["id_task"], left["n_prompt_tokens"])
    answer = await proxy.chat("@code why?")
    assert (answer.cache, answer.timings["cache_n"]) == ("restored", tokens)


@async_test
async def test_client_overwrites_a_file(llama: LlamaServer, proxy_of: ProxyOf) -> None:
    """A slot file that a client had written again, with as many other tokens in it, is not restored."""
    proxy = proxy_of(llama.url, {"code": CODE})
    tokens = await proxy.warm("code")
    assert (await proxy.call("POST", "/completion", nonsense(tokens))).status == 200
    overwritten = await proxy.call("POST", "/slots/0?action=save", {"filename": "code.bin"})
    assert (overwritten.status, overwritten.json()["n_saved"]) == (200, tokens)
    answer = await proxy.chat("@code why?")
    assert (answer.status, answer.cache) == (200, "cold")
    assert await holds(llama, filled(CODE, "why?"))
    tokens = await proxy.warm("code")
    await proxy.chat("something else")
    again = await proxy.chat("@code why?")
    assert (again.cache, again.timings["cache_n"]) == ("restored", tokens)


@async_test
async def test_users_in_order(llama: LlamaServer, proxy_of: ProxyOf) -> None:
    """Many questions at the same time, on all templates and none, are all answered right and one at a time."""
    proxy = proxy_of(llama.url, BOTH)
    await proxy.warm("code", "story")
    questions = [("@code why?", "@story a chair", "hello")[number % 3] for number in range(12)]
    alone = {question: (await proxy.chat(question)).text for question in questions[:3]}
    asked = [defer(proxy.chat(question)) for question in questions]
    for question, answer in zip(questions, asked, strict=True):
        result = await answer
        assert (result.status, result.text) == (200, alone[question])
        assert result.cache == (None if question == "hello" else result.cache)
        assert result.cache != "cold"
    await eventually(lambda: proxy.gate(None, 0))
