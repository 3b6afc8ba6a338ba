"""llama-server's own endpoints as functions: what is in the slot, save it, restore it, evaluate tokens.

The only module that knows how these calls are spelled, and the only one that looks into their answers.  An answer
with the wrong shape (another program listens there, a version changed a field) is an `UpstreamError`, as good as
no answer.  Endpoints: llama.cpp, tools/server/README.md.

Knows how to ask, not when: that is decided in `bioproxy.slot.slot` and `bioproxy.warmup.warmup`.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field

from bioproxy.llama.upstream import Upstream
from bioproxy.prompts.prompt_shape import Shape
from bioproxy.runtime.errors import LlamaError
from bioproxy.runtime.expect import Table, listed, misfit, shown, tables, to_compare

STAND_INS = ("a", "7 b", "(c")
"""Messages with different first characters: where prompts made with them part, the message begins."""


@dataclass(frozen=True)
class Witness:
    """What `GET /slots` tells about slot 0: its last task, how many tokens it holds, and whether it is at work.

    `task` counts up with everything that llama-server does and is `None` as long as it has done nothing.  Two equal
    witnesses, both idle: nobody used the slot in between.
    """

    task: int | None
    tokens: int
    busy: bool


FIXED_MARKER = "<__media__>"
"""The `Props.marker` of builds that do not make one up."""


@dataclass(frozen=True)
class Props:
    """What `/props` tells: the model's file, llama.cpp's build, the tokens of context, and more.

    `marker` is made up anew by each process of llama-server.  `about_model` is all that the model is described by, as
    text to be compared.  `asleep` is true after some idle time with ``--sleep-idle-seconds``: the model is unloaded,
    and loaded again, from its file, for the next request.  `slots` is how many there are, and `tells_slots` whether
    `GET /slots` is answered.
    """

    model: str | None
    build: str | None
    context: int
    marker: str
    about_model: str
    asleep: bool = field(compare=False)
    slots: int = 1
    tells_slots: bool = True


@dataclass(frozen=True)
class Evaluated:
    """What an evaluation took: tokens reused and computed, and the milliseconds for the latter."""

    reused: int
    computed: int
    ms: float


@dataclass(frozen=True)
class SlotFile:
    """What a save wrote or a restore read: tokens and bytes."""

    tokens: int
    size: int


TOKEN_BYTES = 12
"""Bytes of a tokenizer's answer for each byte of its question: a token stands for at least one byte of the text, and a
number of 32 bits has ten digits at most, and a comma."""

PROMPT_BYTES = 12
"""Bytes of a prompt, in an answer, for each byte of the question.  A chat template may write tools in a longer way than
they came, and where tokens were asked for, one that takes two bytes may stand for a long word."""

LIKELIEST = 4
"""How many of the likeliest tokens are asked for."""


class LlamaApi:
    """The proxy's own calls.  Each fails with `LlamaError`, `UpstreamError` or `UpstreamTimeout`."""

    def __init__(self, upstream: Upstream) -> None:
        self._upstream = upstream

    async def health(self) -> None:
        """Fire when llama-server is up with its model loaded; fail otherwise."""
        await self._upstream.ask("GET", "/health")

    async def props(self) -> Props:
        """Fire with the server's properties."""
        props = Table(await self._upstream.ask("GET", "/props"))
        told = [props.values.get(name) for name in ("model_ftype", "build_info", "chat_template", "modalities")]
        model, build = props.text_or("model_path", None), props.text_or("build_info", None)
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
        """Fire with the model's numbers (parameters, vocabulary, size) and its adapters, as text to be compared."""
        models = Table(await self._upstream.ask("GET", "/v1/models")).tables("data")
        adapters = listed(await self._upstream.ask("GET", "/lora-adapters"))
        if not models:
            raise misfit("it names no model")
        return to_compare([sorted(models[0].table_or_empty("meta").values.items()), adapters])

    async def witness(self) -> Witness | None:
        """Fire with what slot 0 says of itself, or `None` where llama-server does not tell (``--no-slots``)."""
        try:
            answer = await self._upstream.ask("GET", "/slots")
        except LlamaError:
            return None
        slots = [slot for slot in tables(answer) if slot.whole("id") == 0]
        if len(slots) != 1:
            raise misfit("it has no slot 0, or more than one")
        [slot] = slots
        task = slot.whole_or("id_task", None, least=-1)  # builds that tell it always begin with -1
        return Witness(task, slot.whole_or("n_prompt_tokens", 0), slot.flag("is_processing"))

    async def save(self, filename: str) -> SlotFile:
        """Write slot 0 to a file in llama-server's slot folder.  Takes as long as writing takes: up to seconds."""
        answer = Table(await self._slot_action("save", filename))
        return SlotFile(answer.whole("n_saved"), answer.whole("n_written"))

    async def restore(self, filename: str) -> SlotFile:
        """Load slot 0 from a file.  A file that cannot be used leaves the slot empty: `LlamaError`, status 400.

        Only for files known to be whole: one that was cut short ends llama-server (seen with builds b11434, b11549).
        """
        answer = Table(await self._slot_action("restore", filename))
        return SlotFile(answer.whole("n_restored"), answer.whole("n_read"))

    async def slot_files_enabled(self) -> bool:
        """Tell whether llama-server runs with ``--slot-save-path``, without touching any file."""
        try:
            # No file can have this name, so it is refused: as a bad name, or, without a folder, as not supported.
            await self._slot_action("restore", "/")
        except LlamaError as error:
            return error.status != 501
        return True

    async def _slot_action(self, action: str, filename: str) -> object:
        return await self._upstream.ask("POST", f"/slots/0?action={action}", {"filename": filename}, alone=True)

    async def prefix_tokens(self, text: str, shape: Shape, context: int) -> list[int]:
        """Fire with the tokens that all requests of a shape begin with whose user's message begins with `text`.

        A prompt is made with each of a few stand-in messages behind the text, and turned into tokens;
        what the lists have in common is the prefix.  (Cutting the text at the message instead would be wrong: a token
        may reach across the cut.)

        `context` is how many tokens the model can take.  Where already the first list is longer, it is not worth
        making the others, and the answer is that list.
        """
        shared: list[int] = []
        for number, message in enumerate(STAND_INS):
            prompt = await self._prompt(text + message, shape)
            question = {"content": prompt, "add_special": True, "parse_special": True}
            answer = await self._upstream.ask("POST", "/tokenize", question, alone=True, growth=TOKEN_BYTES)
            tokens = Table(answer).tokens("tokens")
            if len(tokens) >= context:
                return tokens
            shared = common_beginning(shared, tokens) if number else tokens
        return shared

    async def _prompt(self, text: str, shape: Shape) -> str:
        """Fire with the prompt that llama-server makes of a request."""
        if shape.plain:
            return text
        question = shape.request(text)
        answer = await self._upstream.ask("POST", "/apply-template", question, alone=True, growth=PROMPT_BYTES)
        return Table(answer).text("prompt")

    async def count_tokens(self, text: str) -> int | None:
        """Fire with the number of tokens of a user message, or `None` where this llama-server cannot count.

        For texts so long that the list of their tokens would be a burden.
        """
        question = {"messages": [{"role": "user", "content": text}]}
        try:
            answer = await self._upstream.ask("POST", "/v1/messages/count_tokens", question, alone=True)
        except LlamaError:
            return None
        return Table(answer).whole("input_tokens")

    async def evaluate(self, tokens: Sequence[int]) -> Evaluated:
        """Have slot 0 hold exactly these tokens; what it holds of their beginning already is reused.

        Cancelling closes the connection, and llama-server stops at the end of the batch it works on (``-b``).
        """
        question = {"prompt": list(tokens), "n_predict": 0, "cache_prompt": True, "id_slot": 0}
        # Never streamed: of a stream whose client is gone llama-server learns only when it has something to write.
        answer = await self._upstream.ask("POST", "/completion", question, alone=True, growth=PROMPT_BYTES)
        timings = Table(answer).table("timings")
        return Evaluated(timings.whole("cache_n"), timings.whole("prompt_n"), max(0.0, timings.number("prompt_ms")))

    async def next_token_odds(self, text: str) -> list[tuple[int, float]]:
        """Fire with the likeliest tokens after `text`, as token ids with log-probabilities, as far as those are finite.

        Slot 0 holds `text` afterwards, whatever it held before.
        """
        asked = {"n_predict": 1, "n_probs": LIKELIEST, "temperature": 0, "cache_prompt": False, "id_slot": 0}
        answer = await self._upstream.ask("POST", "/completion", {"prompt": text, **asked}, alone=True)
        tokens = Table(answer).tables("completion_probabilities")
        if not tokens:
            raise misfit("it has no completion_probabilities")
        likeliest = [
            (each.token("id"), each.number_or("logprob", None)) for each in tokens[0].tables("top_logprobs")[:LIKELIEST]
        ]
        return [(token, odd) for token, odd in likeliest if odd is not None]


def common_beginning(first: Sequence[int], second: Sequence[int]) -> list[int]:
    """Return the longest list that both begin with."""
    length = 0
    for one, other in zip(first, second, strict=False):
        if one != other:
            break
        length += 1
    return list(first[:length])
