"""A llama-server without a model.

`FakeLlama` is a Klein app that behaves like the real server where bioproxy could notice: one slot, slot files, a
witness, timings, and *refusals* (a missing file, a name with a slash, no slot folder, a model still loading).  A token
is a character.  What it promises is checked against the real one in `tests/integration`, so that it cannot drift.
"""

from __future__ import annotations

import json
from array import array
from collections.abc import Callable
from pathlib import Path
from typing import Any

from klein import Klein
from twisted.internet.defer import CancelledError, Deferred
from twisted.web.http_headers import Headers
from twisted.web.server import Request

from tests.support.chat_forms import event, from_messages, from_responses, message_events, response_events

MAGIC = b"qsgg"
"""What a slot file begins with."""


MISBEHAVIOURS = ("endless", "announced", "slow", "cut")
"""Bodies that no llama-server sends: two megabytes and then silence, a length of 400 MB and then silence, one byte with
each `trickle`, and one that breaks off."""


class Refusal(Exception):
    """An error answer, in llama-server's shape."""

    def __init__(self, status: int, message: str, kind: str = "invalid_request_error") -> None:
        super().__init__(message)
        self.status = status
        self.kind = kind


class Instead(Exception):
    """Something else than the real answer."""


class FakeLlama:
    """A llama-server with one slot.  Its attributes are its state: tests read them, and change them for trouble."""

    app = Klein()

    def __init__(self) -> None:
        self.context = 16384
        self.marker = "<__media_one__>"
        self.model_path = "/models/fake.gguf"
        self.chat_template = ""  # what the prompt of a chat begins with
        self.date = ""  # what follows that, where the chat template tells the date
        self.drops_reasoning = False  # the chat template writes earlier answers without what was thought
        self.says = "fine"  # every answer
        self.thinks = ""  # the reasoning before it, which is told apart
        self.odds = [(7, -0.5), (8, -1.5), (9, -2.5), (10, -3.5)]
        self.files: dict[str, list[int]] | None = {}  # None: no --slot-save-path
        self.slots_shown = True  # False: --no-slots
        self.folder: Path | None = None  # where files really are written, if a test looks there
        self.counts = True  # False: a build without /v1/messages/count_tokens
        self.loading = False
        self.down = False  # nobody listens
        self.tokenizer: Callable[[str], list[int]] = tokens
        self.answers: dict[str, Any] = {}  # by path: what to answer instead, whatever the question
        self.misbehaves: dict[str, str] = {}  # by path: how the answer's body comes, one of `MISBEHAVIOURS`
        self.memory: list[list[int]] | None = None  # prompts that lost the slot; None: --cache-ram 0
        self.tokens: list[int] = []
        self.task: int | None = None
        self.busy = False
        self.goes_back = True  # False: can only go on from the end of what it holds, as recurrent models
        self.reuses_files = True  # False: computes everything anew after a restore
        self.asleep = False
        self.ms_per_token = 0.5
        self.requests: list[tuple[str, Any]] = []
        self.raw: list[tuple[bytes, Headers, bytes]] = []  # the same requests: method, headers, body
        self.gone: list[str] = []  # paths of requests whose client hung up
        self.pause_at: set[str] = (
            set()
        )  # paths that wait for `go_on`; "body", "stream": in an answer's middle; "last": at its end
        self._from_file = False
        self._paused: list[tuple[str, Request, Deferred[None]]] = []

    # What tests do.

    def restart(self, marker: str = "<__media_two__>") -> None:
        """Be another process: an empty slot, another marker.  Files stay."""
        self.marker = marker
        self.tokens, self.task, self.busy = [], None, False
        self.memory = None if self.memory is None else []

    def go_on(self, place: str | None = None) -> None:
        """Let the paused requests continue, all or those in one place."""
        for entry in list(self._paused):
            if place in (None, entry[0]):
                self._paused.remove(entry)
                entry[2].callback(None)

    def trickle(self) -> None:
        """Send one more byte of each answer that comes slowly."""
        for place, request, _ in list(self._paused):
            if place == "slow":
                request.write(b" ")

    def break_off(self) -> None:
        """End the connections of the paused requests, as a server does that dies."""
        for _, request, _ in list(self._paused):
            request.channel.forceAbortClient()

    @property
    def paused(self) -> int:
        """How many requests wait for `go_on`."""
        return len(self._paused)

    def paths(self) -> list[str]:
        """Return the paths asked for, in order."""
        return [path for path, _ in self.requests]

    def prompts(self) -> list[str]:
        """Return the prompts evaluated, as text."""
        return ["".join(map(chr, body["prompt"])) for path, body in self.requests if path == "/completion"]

    # What the server does.

    async def _begin(self, request: Request) -> Any:
        """Read the request, pause if the test wants that, and refuse while the model is being loaded."""
        assert request.content is not None
        body = request.content.read()
        path = request.uri.decode()
        try:
            parsed = json.loads(body) if body else None
        except (ValueError, RecursionError):
            parsed = None
        self.requests.append((path, parsed))
        self.raw.append((request.method, request.requestHeaders, body))
        await self._pause(request, path)
        if path in self.misbehaves:
            await self._misbehave(request, self.misbehaves[path])
        if self.loading:
            raise Refusal(503, "Loading model", "unavailable_error")
        answer = self.answers.get(path)
        if isinstance(answer, Refusal):
            raise answer
        if path in self.answers:
            raise Instead(answer)
        if body and parsed is None:
            raise Refusal(400, "parse error")
        return parsed

    async def _misbehave(self, request: Request, how: str) -> None:
        """Begin an answer, and never end it; `gone` has `how` once the client has hung up."""
        if how in ("announced", "cut"):
            request.setHeader(b"content-length", b"400000000" if how == "announced" else b"1000")
        request.write(b"[" + b" " * (2 << 20 if how == "endless" else 0))
        if how == "cut":
            request.channel.forceAbortClient()
        await self._wait(request, how)

    async def _pause(self, request: Request, place: str) -> None:
        """Wait for the test to go on, if it wants to be here."""
        if place in self.pause_at:
            await self._wait(request, place)

    async def _wait(self, request: Request, place: str) -> None:
        """Wait for the test to go on, or for the client to hang up."""
        entry = (place, request, Deferred[None]())
        self._paused.append(entry)
        try:
            await entry[2]
        except CancelledError:
            self._paused.remove(entry)
            self.gone.append(place)
            raise

    @app.handle_errors(Instead)  # type: ignore[arg-type]
    def instead(self, request: Request, failure: Any) -> bytes:
        """Answer with what the test wants."""
        answer = failure.value.args[0]
        return answer if isinstance(answer, bytes) else self._json(request, answer)

    @app.handle_errors(Refusal)  # type: ignore[arg-type]  # Klein's types know no methods with a return value
    def refuse(self, request: Request, failure: Any) -> bytes:
        """Answer with an error, as llama-server words it."""
        error = failure.value
        request.setResponseCode(error.status)
        return self._json(request, {"error": {"code": error.status, "message": str(error), "type": error.kind}})

    def _json(self, request: Request, answer: Any) -> bytes:
        request.setHeader(b"content-type", b"application/json; charset=utf-8")
        request.setHeader(b"server", b"llama.cpp")
        return json.dumps(answer, separators=(",", ":")).encode()

    @app.route("/health")
    async def health(self, request: Request) -> bytes:
        """Answer whether the model is loaded."""
        await self._begin(request)
        return self._json(request, {"status": "ok"})

    @app.route("/props")
    async def props(self, request: Request) -> bytes:
        """Tell about the server."""
        await self._begin(request)
        return self._json(
            request,
            {
                "default_generation_settings": {"n_ctx": self.context},
                "model_path": self.model_path,
                "model_ftype": "F32",
                "build_info": "b1-fake",
                "chat_template": self.chat_template,
                "media_marker": self.marker,
                "is_sleeping": self.asleep,
            },
        )

    @app.route("/v1/models")
    async def models(self, request: Request) -> bytes:
        """Tell about the model."""
        await self._begin(request)
        return self._json(request, {"data": [{"id": self.model_path, "meta": {"n_params": 1, "n_vocab": 256}}]})

    @app.route("/lora-adapters")
    async def adapters(self, request: Request) -> bytes:
        """Tell about adapters: there are none."""
        await self._begin(request)
        return self._json(request, [])

    @app.route("/slots", methods=["GET"])
    async def slots(self, request: Request) -> bytes:
        """Tell about the slot."""
        await self._begin(request)
        if not self.slots_shown:
            raise Refusal(501, "This server does not support slots endpoint.", "not_supported_error")
        slot: dict[str, Any] = {"id": 0, "n_ctx": self.context, "is_processing": self.busy}
        if self.task is not None:
            slot |= {"id_task": self.task, "n_prompt_tokens": len(self.tokens)}
        return self._json(request, [slot])

    @app.route("/slots/0", methods=["POST"])
    async def slot_action(self, request: Request) -> bytes:
        """Save or restore the slot."""
        body = await self._begin(request)
        if self.files is None:
            raise Refusal(501, "This server does not support slots action.", "not_supported_error")
        if request.uri.endswith(b"action=erase"):
            n_erased, self.tokens = len(self.tokens), []
            return self._json(request, {"n_erased": n_erased})
        filename = body["filename"]
        if "/" in filename or ".." in filename:
            raise Refusal(400, "Invalid filename")
        if request.uri.endswith(b"action=save"):
            self._write(self.files, filename)
            return self._json(request, {"n_saved": len(self.tokens), "n_written": 10 * len(self.tokens)})
        self.tokens = self.read(filename)
        if not self.tokens:
            raise Refusal(400, "Unable to restore slot")
        self._from_file = True
        return self._json(request, {"n_restored": len(self.tokens), "n_read": 10 * len(self.tokens)})

    def _write(self, files: dict[str, list[int]], filename: str) -> None:
        """Write the slot: to a real file if there is a folder, ten bytes for each token."""
        if self.folder is None:
            files[filename] = list(self.tokens)
            return
        content = MAGIC + array("q", self.tokens).tobytes()
        (self.folder / filename).write_bytes(content.ljust(10 * len(self.tokens), b"."))

    def read(self, filename: str) -> list[int]:
        """Read what `_write` wrote; nothing where there is no such file, or another one."""
        if self.folder is None:
            return list((self.files or {}).get(filename, []))
        try:
            content = (self.folder / filename).read_bytes()
        except OSError:
            return []
        count = len(content) // 10
        return list(array("q", content[4 : 4 + 8 * count])) if content.startswith(MAGIC) else []

    @app.route("/apply-template", methods=["POST"])
    async def apply_template(self, request: Request) -> bytes:
        """Make a prompt of messages."""
        return self._json(request, {"prompt": self.prompt(await self._begin(request))})

    @app.route("/tokenize", methods=["POST"])
    async def tokenize(self, request: Request) -> bytes:
        """Make tokens of a text."""
        return self._json(request, {"tokens": self.tokenizer((await self._begin(request))["content"])})

    @app.route("/v1/messages/count_tokens", methods=["POST"])
    async def count_tokens(self, request: Request) -> bytes:
        """Count the tokens of messages."""
        body = await self._begin(request)
        if not self.counts:
            raise Refusal(404, "File Not Found", "not_found_error")
        return self._json(request, {"input_tokens": len(self.prompt(body)) + 1})

    @app.route("/completion", methods=["POST"])
    async def completion(self, request: Request) -> bytes:
        """Evaluate tokens or a text."""
        body = await self._begin(request)
        prompt = body["prompt"] if isinstance(body["prompt"], list) else tokens(body["prompt"])
        answer: dict[str, Any] = {"content": "", "timings": self._evaluate(prompt, body.get("cache_prompt", True))}
        if body.get("n_probs"):
            likeliest = [{"id": token, "logprob": odd} for token, odd in self.odds]
            answer["completion_probabilities"] = [{"top_logprobs": likeliest}]
        return self._json(request, answer)

    @app.route("/infill", methods=["POST"])
    async def infill(self, request: Request) -> bytes:
        """Evaluate what an editor has around its cursor, in the order of the real one."""
        body = await self._begin(request)
        prompt = tokens("".join(str(body.get(each, "")) for each in ("input_prefix", "input_suffix", "prompt")))
        return self._json(request, {"content": "", "timings": self._evaluate(prompt)})

    @app.route("/v1/chat/completions", methods=["POST"])
    @app.route("/chat/completions", methods=["POST"])
    async def chat(self, request: Request) -> bytes:
        """Answer a chat, streamed or not: the answer is always `says`."""
        body = await self._begin(request)
        prompt = tokens(self.prompt(body))
        if len(prompt) >= self.context:
            raise Refusal(400, "request exceeds the available context size", "exceed_context_size_error")
        timings = self._evaluate(prompt)
        self.tokens += tokens((f"[{self.thinks}]" if self.thinks else "") + self.says)[1:]
        if not body.get("stream"):
            message = {"content": self.says, **({"reasoning_content": self.thinks} if self.thinks else {})}
            answer = self._json(request, {"choices": [{"message": message}], "timings": timings})
            request.setHeader(b"content-length", b"%d" % len(answer))
            request.write(answer[:10])
            await self._pause(request, "body")
            return answer[10:]
        request.setHeader(b"content-type", b"text/event-stream")
        for letter in self.says:
            request.write(self._event({"choices": [{"delta": {"content": letter}}]}))
            await self._pause(request, "stream")
        request.write(self._event({"choices": [{"delta": {}, "finish_reason": "stop"}], "timings": timings}))
        await self._pause(request, "last")
        return b"data: [DONE]\n\n"

    @app.route("/v1/messages", methods=["POST"])
    async def messages(self, request: Request) -> bytes:
        """Answer a request of Anthropic's messages, always as a stream."""
        return self._events(request, from_messages(await self._begin(request)), message_events)

    @app.route("/v1/responses", methods=["POST"])
    async def responses(self, request: Request) -> bytes:
        """Answer a request of OpenAI's responses, always as a stream."""
        return self._events(request, from_responses(await self._begin(request)), response_events)

    def _events(self, request: Request, chat: dict[str, Any], events: Callable[..., list[dict[str, Any]]]) -> bytes:
        """Evaluate a chat, and return the stream of an API that names its events."""
        prompt = tokens(self.prompt(chat))
        if len(prompt) >= self.context:
            raise Refusal(400, "request exceeds the available context size", "exceed_context_size_error")
        timings = self._evaluate(prompt)
        self.tokens += tokens(self.says)[1:]
        request.setHeader(b"content-type", b"text/event-stream")
        return b"".join(map(event, events(self.says, timings)))

    @app.route("/", branch=True)
    async def other(self, request: Request) -> bytes:
        """Refuse everything else."""
        await self._begin(request)
        raise Refusal(404, "File Not Found", "not_found_error")

    def prompt(self, body: dict[str, Any]) -> str:
        """Apply the chat template."""

        def text(content: Any) -> str:
            return content if isinstance(content, str) else "\n".join(part.get("text", "") for part in content)

        def said(message: dict[str, Any]) -> str:
            thoughts = message.get("reasoning_content")
            words = (f"[{thoughts}]" if thoughts else "") + text(message["content"])
            thinks = self.drops_reasoning and message["role"] == "assistant"
            return words.rpartition("</think>")[2] if thinks else words

        turns = "".join(f"<{each['role']}>{said(each)}</>" for each in body["messages"])
        tools = f"<tools>{json.dumps(body['tools'])}</>" if body.get("tools") else ""
        return f"{self.chat_template}{self.date}{tools}{turns}<assistant>"

    def _event(self, data: Any) -> bytes:
        return b"data: " + json.dumps(data, separators=(",", ":")).encode() + b"\n\n"

    def _evaluate(self, prompt: list[int], use_cache: bool = True) -> dict[str, float]:
        """Have the slot hold a prompt; tell what was reused.  The last token is always computed, as in llama.cpp."""
        self._swap(prompt)
        shared = 0
        use_cache = use_cache and (self.reuses_files or not self._from_file)
        self._from_file = False
        while use_cache and shared < min(len(prompt) - 1, len(self.tokens)) and prompt[shared] == self.tokens[shared]:
            shared += 1
        if shared < len(self.tokens) and not self.goes_back:
            shared = 0
        self.task = (self.task or 0) + 1
        self.tokens = list(prompt)
        computed = len(prompt) - shared
        return {"cache_n": shared, "prompt_n": computed, "prompt_ms": computed * self.ms_per_token, "predicted_n": 1}

    def _swap(self, prompt: list[int]) -> None:
        """Keep what the slot holds in memory if most of it is lost by this prompt, and take a better one from there."""
        if self.memory is None or 2 * beginning(self.tokens, prompt) >= len(self.tokens):
            return
        self.memory.append(self.tokens)
        best = max(self.memory, key=lambda kept: beginning(kept, prompt))
        # The real one leaves a prompt where it is if less than a quarter of it would be of use.
        if 4 * beginning(best, prompt) >= len(best):
            self.memory.remove(best)
            self.tokens = best


def beginning(one: list[int], other: list[int]) -> int:
    """Return with how many tokens both begin."""
    pairs = enumerate(zip(one, other, strict=False))
    return next((place for place, (mine, yours) in pairs if mine != yours), min(len(one), len(other)))


def tokens(text: str) -> list[int]:
    """Return a text's tokens: a beginning-of-text token, then one for each character."""
    return [1, *map(ord, text)]
