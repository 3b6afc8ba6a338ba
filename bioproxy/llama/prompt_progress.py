"""How far llama-server has come with a prompt that it reads at this moment.

A long prompt may take minutes before llama-server sends the first byte of an answer.  There are two ways to learn how
far it is, and this module uses the second:

* The request may ask for it (``"return_progress": true``).  Then llama-server sends chunks with `prompt_progress` in
  the stream.  But that is a field in the client's body, which goes on as it came, and the chunks would have to be taken
  out of the stream again: bytes that are not ours, cut anywhere.
* ``GET /slots`` tells it while the prompt is read, and touches neither the request nor its answer.  It is answered
  within 5 ms, also in the middle of a batch (measured with b11549).

What it tells (measured): `n_prompt_tokens_cache` are the tokens that were reused; `n_prompt_tokens_processed` are those
that were computed, and grow with each batch that is complete (2048 tokens by default).  `n_prompt_tokens` looks like
the total and is none: it has the batch in progress in it, so the total is known only at the end.

Does not know which request is in the slot: the caller is inside the gate, and knows that its request is the only one.
"""

from __future__ import annotations

from dataclasses import dataclass

from bioproxy.llama.upstream import Upstream
from bioproxy.runtime.expect import tables


@dataclass(frozen=True)
class PromptProgress:
    """How many tokens of a prompt llama-server has, at one moment."""

    reused: int
    """Tokens that the slot held already."""
    computed: int
    """Tokens that were computed for this prompt; the batch in progress does not count."""

    @property
    def done(self) -> int:
        """Tokens of the prompt that need no more work."""
        return self.reused + self.computed


async def prompt_progress(upstream: Upstream) -> PromptProgress | None:
    """Ask how far the prompt is that is being read.

    Fires with `None` if no slot works, or several do, or this build does not tell.  Fails with `LlamaCallFailed`; with
    ``--no-slots`` that is a `LlamaError`.  Cancelling closes the connection of this call, and of no other.
    """
    # With several slots a request that names none may be in any of them.  The gate lets one request in, so one slot at
    # most works for us; if two do, others use llama-server too, and it is unknown which one is ours.
    working = [slot for slot in tables(await upstream.ask("GET", "/slots")) if slot.flag("is_processing")]
    if len(working) != 1:
        return None
    computed = working[0].whole_or("n_prompt_tokens_processed", None)
    # Builds before `n_prompt_tokens_cache` count from where the reused tokens end: less than the truth, never more.
    reused = working[0].whole_or("n_prompt_tokens_cache", 0)
    return None if computed is None else PromptProgress(reused, computed)
