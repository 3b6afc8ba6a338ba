"""How far llama-server is with a prompt, as `GET /slots` tells."""

from __future__ import annotations

from functools import partial
from typing import Any

from bioproxy.llama.prompt_progress import PromptProgress, prompt_progress
from bioproxy.runtime.errors import LlamaError, UpstreamError
from tests.support.fakes import Refusal
from tests.support.world import WorldTest


def slot(number: int = 0, busy: bool = True, **more: Any) -> dict[str, Any]:
    """Return a slot as llama.cpp b11549 tells it."""
    return {"id": number, "n_ctx": 16384, "is_processing": busy, "id_task": 1, **more}


class Progress(WorldTest):
    """What is made of the answer."""

    def test_answers(self) -> None:
        """The one slot that works counts; what is missing or ambiguous is no progress."""
        told: dict[str, Any] = {"n_prompt_tokens": 4100, "n_prompt_tokens_processed": 2048, "n_prompt_tokens_cache": 4}
        for slots, expected in (
            ([slot(**told)], PromptProgress(4, 2048)),
            ([slot(busy=False, **told), slot(1, **told)], PromptProgress(4, 2048)),
            ([slot(n_prompt_tokens_processed=7)], PromptProgress(0, 7)),
            ([slot(n_prompt_tokens=4100)], None),
            ([slot(busy=False, **told)], None),
            ([slot(**told), slot(1, **told)], None),
            ([], None),
        ):
            self.assertEqual(expected, self.told(slots), slots)
        self.assertEqual(2052, PromptProgress(4, 2048).done)

    def test_not_told(self) -> None:
        """An error, and an answer of another shape, fail as all calls do."""
        for answer, error in (
            (Refusal(501, "no slots"), LlamaError),
            ({"slots": []}, UpstreamError),
            ([slot(n_prompt_tokens_processed="many")], UpstreamError),
            ([{"id": 0}], UpstreamError),
        ):
            world = self.world({})
            world.llama_server.answers = {"/slots": answer}
            self.failureResultOf(world.start(partial(prompt_progress, world.upstream)), error)
            world.close()

    def told(self, slots: Any) -> PromptProgress | None:
        """Return what is made of these slots."""
        world = self.world({})
        world.llama_server.answers = {"/slots": slots}
        try:
            return self.successResultOf(world.start(lambda: prompt_progress(world.upstream)))
        finally:
            world.close()
