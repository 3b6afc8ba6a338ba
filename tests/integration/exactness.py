"""Tools for the question whether an answer is, bit for bit, that of a cold run; `docs/same-answer.md` has the rule.

Everything here talks to llama-server itself, with lists of tokens, past bioproxy.  Two answers are compared by the ten
likeliest first tokens: `ten_likeliest` reads them from a plain completion and from a chat, so a test through bioproxy
can use it as well (send `support.ODDS` with the chat, and compare with `LlamaServer.cold`).
"""

from __future__ import annotations

from tests.integration.support import Answer, LlamaServer

TILE = 64
"""Tokens in a batch from which on ggml's flash attention takes another kernel on the CPU (``GGML_FA_TILE_Q``)."""

BATCH = 512
"""Tokens in a batch of llama.cpp, its default for ``-ub``."""

SAME = 0.001
"""Largest difference of log-probabilities that counts as none.  What was seen is 0, or more than this."""

WORDS = 40
"""Tokens of an answer that are compared, besides the first one's odds."""


def ten_likeliest(answer: Answer) -> dict[str, float]:
    """Return the ten likeliest first tokens of an answer with their log-probabilities."""
    body = answer.json()
    if "completion_probabilities" in body:
        # A plain completion.  By number, because two tokens of such a vocabulary may have the same text.
        return {str(each["id"]): each["logprob"] for each in body["completion_probabilities"][0]["top_logprobs"]}
    first = body["choices"][0]["logprobs"]["content"][0]
    return {each["token"]: each["logprob"] for each in first["top_logprobs"]}


def difference(one: Answer, other: Answer) -> float:
    """Return the largest difference of the ten likeliest first tokens; infinite if they are not the same ten."""
    first, second = ten_likeliest(one), ten_likeliest(other)
    if first.keys() != second.keys():
        return float("inf")
    return max(abs(first[token] - second[token]) for token in first)


def same(one: Answer, other: Answer) -> bool:
    """Tell whether two plain completions are the same: the odds of the first token, and all tokens."""
    return difference(one, other) < SAME and one.json()["tokens"] == other.json()["tokens"]


async def tokens_of(llama: LlamaServer, text: str) -> list[int]:
    """Return the tokens of a text."""
    answer = await llama.call("POST", "/tokenize", {"content": text})
    tokens: list[int] = answer.json()["tokens"]
    return tokens


async def evaluate(llama: LlamaServer, tokens: list[int]) -> int:
    """Have the slot hold these tokens, as a piece of a warm-up does; fires with how many of them it held already."""
    body = {"prompt": tokens, "n_predict": 0, "cache_prompt": True, "id_slot": 0}
    return int((await llama.call("POST", "/completion", body)).json()["timings"]["cache_n"])


async def ask(llama: LlamaServer, tokens: list[int], reuse: bool = True) -> Answer:
    """Have `tokens` answered; with `reuse`, what the slot holds of them is not computed again."""
    body = {"prompt": tokens, "n_predict": WORDS, "n_probs": 10, "temperature": 0, "return_tokens": True}
    return await llama.call("POST", "/completion", {**body, "cache_prompt": reuse, "id_slot": 0})


async def cold(llama: LlamaServer, tokens: list[int]) -> Answer:
    """Have `tokens` answered by an empty slot; the slot is empty afterwards, too."""
    await empty(llama)
    answer = await ask(llama, tokens, reuse=False)
    await empty(llama)
    return answer


async def empty(llama: LlamaServer) -> None:
    """Empty the slot.

    Without this, llama-server would copy what the slot held into its memory cache (``--cache-ram``) when the next
    prompt arrives, and bring it back for a later one.  A state computed in other pieces than the test's would be used.
    """
    await slot_file(llama, "erase")


async def slot_file(llama: LlamaServer, action: str) -> None:
    """Save the slot to the test's file, restore the slot from the file, or erase the slot."""
    answer = await llama.call("POST", f"/slots/0?action={action}", {"filename": "exact.bin"})
    assert answer.status == 200, answer.body


def other_token(token: int) -> int:
    """Return a token of ordinary text that is not `token`: both have a neighbour in the vocabulary."""
    return token + 1 if token % 2 else token - 1
