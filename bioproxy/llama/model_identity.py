"""Which model is it?  A KV cache of one model means nothing to another, and llama-server does not check.

What llama-server says of its model (its numbers, its adapters, its chat template) is part of the answer, but two
models can agree in all of that and still differ in their weights: a fine-tune, or another file put at the same
path.  What settles it is the model's own behaviour.  A few words are evaluated, and the likeliest next tokens and
their log-probabilities belong to the weights like a fingerprint to a hand.  They are compared with a tolerance,
because the last digits depend on how work was spread over cores.

The fingerprint is taken once for each *process* of llama-server, since a process keeps its model.  Each process makes
up a random marker at its start (``media_marker`` in `/props`), by which a restart is noticed.  Builds that do not
have it are asked for the fingerprint each time it matters.

Taking it costs a few milliseconds to a second and overwrites the slot, so it is done only when the slot's content is
unknown anyway.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from bioproxy.llama.api import FIXED_MARKER, LlamaApi, Props
from bioproxy.prompts.digests import digest

SAMPLE = "The quick brown fox jumps over the lazy dog"
TOLERANCE = 0.05
"""Difference of two log-probabilities (natural logarithm) that still is the same model.  Between two models of the
same shape differences of 0.7 and more were measured."""


@dataclass(frozen=True)
class Model:
    """A model's identity: `facts` is a digest of what it says of itself, `odds` its fingerprint.

    `file` and `build` are for a person who reads the record; two models are not told apart by them.
    """

    facts: str
    odds: tuple[tuple[int, float], ...]
    file: str = ""
    build: str = ""

    @classmethod
    def from_json(cls, value: Any) -> Model:
        """Read what `dataclasses.asdict` and JSON made of one.  Raises `KeyError`, `TypeError`, `ValueError`."""
        odds = tuple((int(token), float(odd)) for token, odd in value["odds"])
        return cls(str(value["facts"]), odds, str(value["file"]), str(value["build"]))

    def matches(self, other: Model) -> bool:
        """Tell whether both are the same model."""
        if self.facts != other.facts or len(self.odds) != len(other.odds):
            return False
        # By token, not by rank: two tokens that are equally likely may change places.  The last rank may even be
        # taken by another token, so one may be missing.
        theirs = dict(other.odds)
        near = [abs(odd - theirs[token]) < TOLERANCE for token, odd in self.odds if token in theirs]
        return len(near) >= max(1, len(self.odds) - 1) and all(near)


class ModelIdentity:
    """Knows the model that runs now.

    `current` is the model as it was last found, or `None` while it is unknown.  It is for judging what is warm;
    before a file is restored, `find_out` makes sure.  `certain` tells whether nothing was noticed since that could
    have changed it: then a file can be said to be of this model.
    """

    def __init__(self, llama: LlamaApi) -> None:
        self._llama = llama
        self._props: Props | None = None
        self.current: Model | None = None
        self._sleeps = False
        self._certain = False

    @property
    def certain(self) -> bool:
        """Whether `current` is surely the model that is loaded now."""
        return self.current is not None and self._certain

    def fell_asleep(self) -> None:
        """Note that llama-server has unloaded its model.

        It may load another one from the same file when it wakes up, and may sleep and wake up between two looks.  So
        from now on nothing but the fingerprint is believed.
        """
        self._sleeps, self._certain = True, False

    def seen(self, props: Props) -> bool:
        """Note the properties of the process that runs now: if they are others, so may be the model.

        Returns whether it surely is the process that was known.
        """
        known = props == self._props and props.marker != FIXED_MARKER
        if not known:
            self.current, self._sleeps = None, False
        return known

    async def unchanged(self) -> bool:
        """Tell whether the process that was known still runs, awake.  Fails as `LlamaApi`'s calls do."""
        return self.current is not None and await self._llama.props() == self._props

    async def find_out(self) -> Model:
        """Fire with the model.  Overwrites slot 0 unless it is known already.  Fails as `LlamaApi`'s calls do."""
        props = await self._llama.props()
        facts = digest(props.about_model, await self._llama.model_facts())
        self.seen(replace(props, asleep=False))
        witness = await self._llama.witness()
        if props.asleep or (witness is not None and witness.task is None):
            # It will be, or was, loaded anew, from its file: nothing was done in this slot yet, not even the
            # fingerprint taken.  So it is in a new process, and after sleep (``--sleep-idle-seconds``) in the same one.
            self.current = None
        if self.current is None or self._sleeps or self.current.facts != facts:
            odds = tuple(await self._llama.next_token_odds(SAMPLE))
            self.current = Model(facts, odds, props.model or "", props.build or "")
            self._props = replace(props, asleep=False)  # now at least it is awake
            self._certain = True
        return self.current
