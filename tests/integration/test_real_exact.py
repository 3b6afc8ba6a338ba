"""Which reuse gives, bit for bit, the answer of a cold run: the rule of `docs/same-answer.md`, on llama-server itself.

Each claim has a counterpart that must *not* be exact, so it is known that these tests can fail.  The models are
quantized and wide enough that an error is plain: what is not exact differs by more than 0.001, what is exact by 0.
"""

from __future__ import annotations

import pytest

from bioproxy.demo import tiny_model
from bioproxy.warmup.progress import piece_end
from tests.integration.conftest import LlamaOf, ModelOf
from tests.integration.exactness import (
    BATCH,
    TILE,
    ask,
    cold,
    difference,
    empty,
    evaluate,
    other_token,
    same,
    slot_file,
    tokens_of,
)
from tests.integration.support import LlamaServer, async_test, prose

DENSE = tiny_model.Size(blocks=4, width=256, heads=4, feed_forward=512)
SLIDING = tiny_model.Size(blocks=6, width=256, heads=4, feed_forward=512, architecture="gemma3")
HYBRID = tiny_model.Size(blocks=4, width=256, heads=4, feed_forward=512, architecture="lfm2")

PREFIX = 1370
"""Tokens that all questions begin with."""

CUT = (PREFIX + 1 - TILE) // TILE * TILE
"""Where the prefix is cut: a multiple of 64 that leaves a question of one token 64 tokens to compute."""

QUESTIONS = (1, 7, 12, 20, 31, 45, 63, 64, 70, 150)
"""Tokens of the questions.

None makes the length of a whole prompt a multiple of 512 plus 1 to 63: see `test_a_cold_run_with_a_short_last_batch`.
"""


def asked(text: list[int], question: int) -> list[int]:
    """Return the tokens of a whole prompt; each length of question has words of its own."""
    start = PREFIX + 10 * question
    words = text[start : start + question]
    assert len(words) == question, "the text is too short"
    return text[:PREFIX] + words


async def started(llama: LlamaServer) -> list[int]:
    """Start a llama-server; fires with more tokens than any test needs."""
    await llama.start()
    return await tokens_of(llama, prose(8000, seed=1))


async def warm(llama: LlamaServer, prefix: list[int], *sizes: int, held: int = 0, behind: int = 0) -> None:
    """Compute a prefix in pieces whose sizes take turns, from the `held` tokens in the slot on, and save it.

    `behind`: so many tokens that stand for a question follow the end of each piece.
    """
    turn = 0
    while held < len(prefix):
        held = piece_end(held, sizes[turn % len(sizes)], len(prefix))
        await evaluate(llama, prefix[:held] + [other_token(prefix[held - 1])] * behind)
        turn += 1
    await slot_file(llama, "save")


@pytest.mark.parametrize(
    ("size", "quantization", "arguments"),
    [(DENSE, "Q8_0", ()), (DENSE, "Q4_0", ()), (SLIDING, "Q8_0", ("--swa-full",))],
    ids=["dense-Q8_0", "dense-Q4_0", "sliding-swa-full"],
)
@async_test
async def test_cut_at_a_multiple_of_64(
    llama_of: LlamaOf, model_of: ModelOf, size: tiny_model.Size, quantization: str, arguments: tuple[str, ...]
) -> None:
    """Questions get a cold run's answers on a prefix in mixed pieces, resumed from a file, after a restart."""
    model = model_of(f"exact-{size.architecture}-{quantization}", size, quantization=quantization)
    llama = llama_of(*arguments, model=model)
    text = await started(llama)
    answers = [await cold(llama, asked(text, question)) for question in QUESTIONS]
    await warm(llama, text[:576], 64, 256, 128, 512)
    await llama.restart()
    await slot_file(llama, "restore")
    await warm(llama, text[:CUT], 512, 64, 128, held=576)
    await llama.restart()
    for question, expected in zip(QUESTIONS, answers, strict=True):
        await slot_file(llama, "restore")
        answer = await ask(llama, asked(text, question))
        assert answer.json()["timings"]["cache_n"] == CUT
        assert same(answer, expected), (question, difference(answer, expected))


@async_test
async def test_short_batches_are_not_exact(llama_of: LlamaOf, model_of: ModelOf) -> None:
    """Another answer comes where fewer than 64 tokens are computed at a time that a cold run computes with others."""
    llama = llama_of(model=model_of("exact-llama-Q8_0", DENSE, quantization="Q8_0"))
    text = await started(llama)
    prompt = asked(text, 12)
    expected = await cold(llama, prompt)
    # The end of the prefix, the last multiple of 64 before it, and a cut that leaves 63 tokens to compute.
    for cut in (PREFIX, PREFIX // TILE * TILE, len(prompt) - TILE + 1):
        await empty(llama)
        await evaluate(llama, text[:cut])
        assert difference(await ask(llama, prompt), expected) > 0.01, cut
    # Nor is a piece of fewer than 64 tokens in the middle.
    await empty(llama)
    for end in (700, 710, CUT):
        await evaluate(llama, text[:end])
    assert difference(await ask(llama, prompt), expected) > 0.001
    # One token less in the slot, and the question's request computes 64.  The end need not be a multiple of 64.
    await empty(llama)
    await evaluate(llama, text[: len(prompt) - TILE])
    assert same(await ask(llama, prompt), expected)


@async_test
async def test_another_question_is_in_the_slot(llama_of: LlamaOf, model_of: ModelOf) -> None:
    """llama-server reuses all that two questions share; one other token behind the cut makes it go back to there."""
    llama = llama_of(model=model_of("exact-llama-Q8_0", DENSE, quantization="Q8_0"))
    text = await started(llama)
    first, second = asked(text, 12), asked(text, 20)
    expected = await cold(llama, second)
    await warm(llama, text[:CUT], 512)
    await ask(llama, first)
    answer = await ask(llama, second)
    assert answer.json()["timings"]["cache_n"] >= PREFIX
    assert difference(answer, expected) > 0.01
    # Cut, then ask.
    await slot_file(llama, "restore")
    await ask(llama, first)
    assert await evaluate(llama, [*text[:CUT], other_token(text[CUT])]) == CUT
    answer = await ask(llama, second)
    assert answer.json()["timings"]["cache_n"] == CUT
    assert same(answer, expected)


@async_test
async def test_a_cold_run_with_a_short_last_batch(llama_of: LlamaOf, model_of: ModelOf) -> None:
    """Where one of both runs would have a last batch of 1 to 63 tokens, whole batches have to be computed first."""
    llama = llama_of(model=model_of("exact-llama-Q8_0", DENSE, quantization="Q8_0"))
    text = await started(llama)
    whole = 3 * BATCH
    # The last batch of the cold run has 1 and 40 tokens.  At last, it is the question's request that would have one of
    # 20, behind one of 512.
    for length in (whole + 1, whole + 40, CUT + BATCH + 20):
        prompt = asked(text, length - PREFIX)
        expected = await cold(llama, prompt)
        await warm(llama, text[:CUT], 512)
        assert difference(await ask(llama, prompt), expected) > 0.001
        await slot_file(llama, "restore")
        assert await evaluate(llama, prompt[:whole]) == CUT
        assert same(await ask(llama, prompt), expected)
        await empty(llama)


@async_test
async def test_hybrid(llama_of: LlamaOf, model_of: ModelOf) -> None:
    """A hybrid model is exact if four tokens follow each piece, for there llama-server cuts a prompt by itself."""
    llama = llama_of(model=model_of("exact-lfm2-Q8_0", HYBRID, quantization="Q8_0"))
    text = await started(llama)
    # The question's request is cut four tokens before its end as well: 64 tokens have to be left before that.
    questions = (12, 31, 70)
    answers = [await cold(llama, asked(text, question)) for question in questions]
    for behind, exact in ((0, False), (4, True)):
        await empty(llama)
        await warm(llama, text[:CUT], 512, 64, behind=behind)
        results = []
        for question, expected in zip(questions, answers, strict=True):
            await slot_file(llama, "restore")
            answer = await ask(llama, asked(text, question))
            assert answer.json()["timings"]["cache_n"] == CUT
            results.append(same(answer, expected))
        # Four wrong tokens of 1,280 change little, and one question by itself might hide it.
        assert all(results) == exact, (behind, results)


@pytest.mark.parametrize(
    ("params", "cuts"),
    [
        ({"n_ubatch": 64}, (PREFIX // TILE * TILE, CUT)),
        ({"n_ubatch": 32}, (PREFIX, 1001)),
        ({"flash_attn_type": 0}, (PREFIX, 1001)),
    ],
    ids=["ub-64", "ub-32", "flash-attn-off"],
)
@async_test
async def test_flags(llama_of: LlamaOf, model_of: ModelOf, params: dict[str, int], cuts: tuple[int, ...]) -> None:
    """With small batches more cuts are exact, and without flash attention all are, for questions of any length."""
    llama = llama_of(model=model_of("exact-llama-Q8_0", DENSE, quantization="Q8_0"))
    llama.params.update(params)
    text = await started(llama)
    for question in (1, 12, 3 * BATCH - PREFIX + 40):
        prompt = asked(text, question)
        expected = await cold(llama, prompt)
        for cut in cuts:
            await empty(llama)
            await evaluate(llama, text[:cut])
            answer = await ask(llama, prompt)
            assert same(answer, expected), (question, cut, difference(answer, expected))
