"""llama-server's own endpoints as functions: read the slot's state, save it, restore it, evaluate tokens, and so on.

The only module that knows how these calls are spelled, and the only one that reads their answers, but for
`bioproxy.llama.prompt_progress`.  Everything else in bioproxy sees the values of `bioproxy.llama.answers`.  An answer
of another shape (another program listens there, a new version renamed a field) is an `UpstreamError`, exactly as no
answer would be; `bioproxy.runtime.expect` does these checks.

Where the facts come from: llama.cpp's tools/server/README.md has the endpoints, and what it does not say was measured
with builds b11434 (the program ``llama-server``) and b11549 (the wheel ``xllamacpp``).

On Twisted: each method is a coroutine.  The coroutine that awaits it is suspended until the answer is here, while the
rest of the process goes on.  A caller that stops waiting *cancels* the call, which raises `CancelledError` at the
innermost `await`, in `bioproxy.llama.upstream`, and closes the connection.  For llama-server a closed connection is the
only way to be told that an answer is no longer wanted.

This module knows how to ask, not when.  That is decided in `bioproxy.slot.slot` and `bioproxy.warmup.warmup`.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence

from bioproxy.llama.answers import FIXED_MARKER, Evaluated, Props, SlotFile, Witness
from bioproxy.llama.upstream import Upstream
from bioproxy.runtime.errors import LlamaError
from bioproxy.runtime.expect import Table, listed, misfit, shown, tables, to_compare

TOKEN_BYTES = 12
"""Bytes that a tokenizer's answer may have for each byte of its question.

A token stands for at least one byte of the text, and is a number of at most ten digits (31 bits) and a comma.  Half of
it would reject honest answers to texts with one token for each byte; double would only allow a broken server more
memory.
"""

PROMPT_BYTES = 12
"""Bytes of a prompt, in an answer, for each byte of the question.

A chat template may write tools in a longer way than they came, and where the question is a list of tokens, one that
takes two bytes there may stand for a long word.  Half of it is too little for the latter; double would only cost
memory.
"""

LIKELIEST = 4
"""How many of the likeliest tokens a fingerprint has.

Half as many make it likelier that two models agree by chance.  Twice as many include unlikely tokens, whose
probabilities depend most on how the work was spread over cores.  The record on disk has fingerprints of this length,
and those of another length match none.
"""


class LlamaApi:
    """The proxy's own calls to llama-server, one method each.

    Invariant: each call fails with `LlamaError` (llama-server refused, with a status), `UpstreamError` (no answer, or
    one that is not understood) or `UpstreamTimeout` (llama-server was given up), and with nothing else.  The base of
    all three is `bioproxy.runtime.errors.LlamaCallFailed`.  Cancelling a call closes its connection.
    """

    def __init__(self, upstream: Upstream) -> None:
        self._upstream = upstream

    async def health(self) -> None:
        """Fire with `None` when llama-server is up with its model loaded; fail with status 503 while it loads it.

        Answered at once, also while a prompt is processed, without an api key, and without waking a sleeping model.
        """
        await self._upstream.ask("GET", "/health")

    async def props(self) -> Props:
        """Fire with the server's properties.  Neither needs the slot nor wakes a sleeping model."""
        props = Table(await self._upstream.ask("GET", "/props"))
        told = [props.values.get(name) for name in ("model_ftype", "build_info", "chat_template", "modalities")]
        model, build = props.text_or("model_path", None), props.text_or("build_info", None)
        # `n_ctx` stands where the defaults for requests are, and is the context of one slot, not of all together.
        # What is missing has a harmless value: older builds tell less, and are still supported.
        return Props(
            model if model is None else shown(model),
            build if build is None else shown(build),
            props.table_or_empty("default_generation_settings").whole_or("n_ctx", 0) or sys.maxsize,
            props.text_or("media_marker", FIXED_MARKER),
            to_compare(told),
            props.flag_or("is_sleeping", False),
            props.whole_or("total_slots", 1) or 1,
            props.flag_or("endpoint_slots", True),
        )

    async def model_facts(self) -> str:
        """Fire with the model's numbers (parameters, vocabulary, size) and its adapters, as text to be compared.

        Adapters (LoRA) change what the model computes, and can be switched over HTTP while the process runs
        (`POST /lora-adapters`).  So they are part of the identity, and this call is not made once for each process.
        """
        models = Table(await self._upstream.ask("GET", "/v1/models")).tables("data")
        adapters = listed(await self._upstream.ask("GET", "/lora-adapters"))
        if not models:
            raise misfit("it names no model")
        # Sorted, because the order of keys in a JSON object means nothing and may change from build to build.
        return to_compare([sorted(models[0].table_or_empty("meta").values.items()), adapters])

    async def witness(self) -> Witness | None:
        """Fire with the state of slot 0, or `None` where llama-server does not tell it (``--no-slots``).

        Answered within 20 ms while a prompt is processed.  It wakes a sleeping model, which `/health` and `/props` do
        not.
        """
        # Any error status counts as "not told": 501 is what ``--no-slots`` says, and for the caller the consequence of
        # another one is the same, that what the slot holds is unknown.
        try:
            answer = await self._upstream.ask("GET", "/slots")
        except LlamaError:
            return None
        slots = [slot for slot in tables(answer) if slot.whole("id") == 0]
        if len(slots) != 1:
            raise misfit("it has no slot 0, or more than one")
        [slot] = slots
        # `id_task` is absent before the first task in builds that were measured, -1 in others; both are a value of
        # their own here, and are only compared.
        task = slot.whole_or("id_task", None, least=-1)
        return Witness(task, slot.whole_or("n_prompt_tokens", 0), slot.flag("is_processing"))

    async def save(self, filename: str) -> SlotFile:
        """Write slot 0 to a file in llama-server's slot folder; fire with what was written.

        `filename` is a bare name: llama-server refuses slashes.  An existing file is overwritten in place, so a good
        file is never the target (`bioproxy.slot_files.saving`).  An empty slot is saved without complaint, as a file of
        0 tokens.

        Takes as long as writing takes: about 0.3 s for 100 MB, and more on a slow disk.  While the slot works for
        another request, the call waits for it inside llama-server.
        """
        answer = Table(await self._slot_action("save", filename))
        return SlotFile(answer.whole("n_saved"), answer.whole("n_written"))

    async def restore(self, filename: str) -> SlotFile:
        """Load slot 0 from a file; fire with what was read.

        A file that cannot be used leaves the slot empty, and the call fails with status 400.  Only for files that are
        known to be whole: one that was cut short ends the process of llama-server (seen with b11434 and b11549).
        """
        answer = Table(await self._slot_action("restore", filename))
        return SlotFile(answer.whole("n_restored"), answer.whole("n_read"))

    async def erase(self) -> None:
        """Empty slot 0; fires when that is done.  Needs a slot folder, as all actions do."""
        await self._slot_action("erase", "")

    async def slot_files_enabled(self) -> bool:
        """Fire with whether llama-server runs with ``--slot-save-path``, without touching any file or the slot."""
        try:
            # No file can have this name.  With a folder the name is refused (400); without one, all names are (501).
            await self._slot_action("restore", "/")
        except LlamaError as error:
            return error.status != 501
        return True

    async def _slot_action(self, action: str, filename: str) -> object:
        # On a fresh connection, so that Twisted never repeats it: a save that is carried out twice may write a file
        # after it was recorded, with other content.
        return await self._upstream.ask("POST", f"/slots/0?action={action}", {"filename": filename}, fresh=True)

    async def apply_template(self, request: Mapping[str, object]) -> str:
        """Fire with the prompt, as text, that the model's chat template makes of a request in OpenAI's chat form."""
        answer = await self._upstream.ask("POST", "/apply-template", request, fresh=True, growth=PROMPT_BYTES)
        return Table(answer).text("prompt")

    async def tokenize(self, prompt: str) -> list[int]:
        """Fire with the tokens of a prompt, as llama-server itself would make them for a completion."""
        # Both flags are what a completion does: a token for the beginning of the text where the model wants one, and
        # the chat template's markers (``<|im_start|>``) as one token each instead of as letters.
        question = {"content": prompt, "add_special": True, "parse_special": True}
        answer = await self._upstream.ask("POST", "/tokenize", question, fresh=True, growth=TOKEN_BYTES)
        return Table(answer).tokens("tokens")

    async def count_tokens(self, text: str) -> int | None:
        """Fire with the number of tokens of a user message, or `None` where this build of llama-server cannot count.

        For texts so long that the list of their tokens would be a burden.
        """
        question = {"messages": [{"role": "user", "content": text}]}
        # The count includes what the chat template puts around the message, as the prompt of a real question does.  An
        # error status means an older build without this endpoint (404), or a chat template that fails (500).
        try:
            answer = await self._upstream.ask("POST", "/v1/messages/count_tokens", question, fresh=True)
        except LlamaError:
            return None
        return Table(answer).whole("input_tokens")

    async def evaluate(self, tokens: Sequence[int], *, anew: bool = False) -> Evaluated:
        """Have slot 0 hold exactly these tokens; fire with what that took.

        What it holds of their beginning is reused, or computed `anew`.
        Cancelling closes the connection, and llama-server stops at the end of the batch that it works on (``-b``, 2048
        tokens by default).  What it has computed until then stays in the slot.
        """
        # `cache_prompt` reuses the longest common beginning of these tokens and the slot's; `id_slot` keeps
        # llama-server from choosing another slot whose content is more similar.  `n_predict: 0` adds no token to the
        # slot, although `predicted_n` in the answer says 1.  With ``--cache-reuse`` llama-server would also move what
        # stands behind a difference to other positions, which gives other numbers; no file should have those.
        question = {"prompt": list(tokens), "n_predict": 0, "cache_prompt": not anew, "id_slot": 0, "n_cache_reuse": 0}
        # Never streamed: llama-server notices that the client of a stream is gone only when it has something to write,
        # which is after the whole prompt.  For other requests it looks at the connection about once a second.
        answer = await self._upstream.ask("POST", "/completion", question, fresh=True, growth=PROMPT_BYTES)
        timings = Table(answer).table("timings")
        return Evaluated(timings.whole("cache_n"), timings.whole("prompt_n"), max(0.0, timings.number("prompt_ms")))

    async def next_token_odds(self, text: str) -> list[tuple[int, float]]:
        """Fire with the `LIKELIEST` tokens after `text`, as token ids with log-probabilities.

        Tokens whose log-probability is not finite are left out.  Slot 0 holds `text` afterwards, whatever it held
        before, so this is only for moments in which the slot is lost anyway.
        """
        # Without the cache, because reused tokens may give slightly different probabilities than computed ones.
        asked = {"n_predict": 1, "n_probs": LIKELIEST, "temperature": 0, "cache_prompt": False, "id_slot": 0}
        answer = await self._upstream.ask("POST", "/completion", {"prompt": text, **asked}, fresh=True)
        tokens = Table(answer).tables("completion_probabilities")
        if not tokens:
            raise misfit("it has no completion_probabilities")
        likeliest = [
            (each.token("id"), each.number_or("logprob", None)) for each in tokens[0].tables("top_logprobs")[:LIKELIEST]
        ]
        return [(token, odd) for token, odd in likeliest if odd is not None]
