"""Finds out which model llama-server runs.

A KV cache is a model's working memory of a prompt, and means nothing to any other model.  llama-server does not check
that: it loads a slot file of another model of the same shape, answers 200, and then writes wrong text (seen with b11434
and b11549).  So before a file is restored, bioproxy must be sure that it belongs to the model that runs now.

What llama-server says about its model (its numbers, its adapters, its chat template) is part of the identity, but not
enough: a fine-tune, or another file put at the same path, says the same.  The model's behaviour settles it.  A few
words are evaluated, and the likeliest next tokens with their log-probabilities are the *fingerprint* of the weights.
Fingerprints are compared with a tolerance, because the last digits depend on how the work was spread over CPU cores.

The fingerprint is taken once for each process of llama-server, because a process keeps its model, with one exception:
with ``--sleep-idle-seconds`` a process unloads its model and later loads it again from its file, which may be another
one by then.  Taking a fingerprint costs a few milliseconds to a second and overwrites slot 0, so it is done only when
what the slot holds is unknown or about to be replaced anyway.

On Twisted: `find_out` awaits three or four requests, and while it waits, other coroutines run.  `current` may be reset
by one of them in the middle.  Its last lines therefore set everything together, with no `await` in between.

This module does not follow llama-server from look to look; `bioproxy.llama.process_watch` does.  It only remembers in
which process the fingerprint was taken, which belongs to the fingerprint as a date belongs to a photograph.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from bioproxy.llama.answers import FIXED_MARKER, Props
from bioproxy.llama.api import LlamaApi
from bioproxy.prompts.digests import digest

SAMPLE = "The quick brown fox jumps over the lazy dog"
"""The text whose next token is asked for.

Any text will do, as long as it never changes: fingerprints in the record on disk are of this text.
"""

TOLERANCE = 0.05
"""Largest difference between two log-probabilities (natural logarithm) that still counts as the same model.

Two models of the same shape differed by 0.7 and more; the same model with its work spread differently over cores by
less than 0.02.  Halved, it would still hold on the machines measured; doubled, too.  Much smaller, good files would be
dropped after a change of threads; much larger, a light fine-tune would pass as its original.
"""


@dataclass(frozen=True)
class Model:
    """The identity of one model.

    Invariant: two values describe the same model if and only if `matches` says so.  `==` is stricter than that: it
    compares every digit, and the two fields that are only for people.
    """

    facts: str
    """Digest of what llama-server says about the model: its chat template, its numbers, its adapters."""
    odds: tuple[tuple[int, float], ...]
    """The fingerprint: the likeliest tokens after `SAMPLE`, as token id and log-probability, likeliest first."""
    file: str = ""
    """Path of the model's file, for people who read the record; a model that was moved is still the same."""
    build: str = ""
    """The build of llama.cpp, for people who read the record."""

    @classmethod
    def from_json(cls, value: Any) -> Model:
        """Return the model that `dataclasses.asdict` and JSON turned into `value`.

        Raises `KeyError`, `TypeError` or `ValueError` if `value` is something else.
        """
        odds = tuple((int(token), float(odd)) for token, odd in value["odds"])
        return cls(str(value["facts"]), odds, str(value["file"]), str(value["build"]))

    def matches(self, other: Model) -> bool:
        """Tell whether both are the same model.  Symmetric; a model without any odds matches nothing."""
        if self.facts != other.facts or len(self.odds) != len(other.odds):
            return False
        # Compared by token, not by rank: two tokens that are equally likely may change places.  The last rank may even
        # be taken by another token, so one token may be missing on the other side.  (NaN is near nothing.)
        theirs = dict(other.odds)
        near = [abs(odd - theirs[token]) < TOLERANCE for token, odd in self.odds if token in theirs]
        return len(near) >= max(1, len(self.odds) - 1) and all(near)


class ModelIdentity:
    """Knows the model that runs now.

    Invariant: `current` is the model as it was found in the last process that was met, or `None` if that process was
    not asked yet.  `current` is good enough to judge what is *warm*, where a mistake costs time.  Where a mistake would
    cost a wrong answer there are two stricter ways: `find_out`, before a file is restored, and `certain`, before a file
    is recorded as being of this model.
    """

    def __init__(self, llama: LlamaApi) -> None:
        self.current: Model | None = None
        """The model as last found; `None` while it is unknown."""
        self._llama = llama
        # The process in which the fingerprint was taken, by what it said about itself then.
        self._taken_in: Props | None = None
        # Whether that process was seen asleep, ever: it may sleep and wake up between two looks, unnoticed.
        self._sleeps = False
        # Whether the fingerprint is younger than the last sleep that was seen.
        self._certain = False
        # How often the model's adapters were switched.
        self._switches = 0

    @property
    def certain(self) -> bool:
        """Whether nothing was noticed, since the fingerprint was taken, that could have changed the model."""
        return self.current is not None and self._certain

    def adapters_switched(self) -> None:
        """Note that somebody changes the model within its process; what is just being found out may be of before."""
        self.current = None
        self._switches += 1

    def fell_asleep(self) -> None:
        """Note that llama-server has unloaded its model, and may load another one from the same file.

        `current` stays, because most probably it will be the same.  But from now on, for as long as this process runs,
        `find_out` takes the fingerprint each time.
        """
        self._sleeps, self._certain = True, False

    def met(self, props: Props) -> bool:
        """Note that a process with these properties runs now; if it is another one, so may be its model.

        Returns whether this surely is the process in which the fingerprint was taken.  That can be true for a process
        that the watch has never seen: `find_out`, called for a user's request, may have met it between two looks.
        """
        # Equal properties with the fixed marker prove nothing: each process of such a build has the same.
        known = props == self._taken_in and props.marker != FIXED_MARKER
        if not known:
            self.current, self._sleeps = None, False
        return known

    async def unchanged(self) -> bool:
        """Fire with whether the process in which the fingerprint was taken still runs and is awake.

        Fails as `LlamaApi`'s calls do; cancelling closes the connection and changes nothing.
        """
        if self.current is None:
            return False
        props = await self._llama.props()
        return props == self._taken_in and not props.asleep

    async def find_out(self) -> Model:
        """Fire with the model that runs now, and set `current` to it.

        Takes the fingerprint, which overwrites slot 0, unless the one there is can be trusted.  Fails as `LlamaApi`'s
        calls do.  Cancelling closes the connection; what was not found out is not believed, and what slot 0 holds is
        unknown then.
        """
        switches = self._switches
        props = await self._llama.props()
        facts = digest(props.about_model, await self._llama.model_facts())
        self.met(props)
        witness = await self._llama.witness()
        # A slot in which nothing was done, not even the fingerprint taken, belongs to a model that was just loaded: in
        # a new process, or, after sleep, in the same one.  With `--no-slots` there is no witness, but a process that
        # says it is asleep will load its model for the next request.
        if props.asleep or (witness is not None and witness.task is None):
            self.current = None
        # Other facts in the same process: its adapters were changed over HTTP (`POST /lora-adapters`).
        if self.current is None or self._sleeps or self.current.facts != facts:
            odds = tuple(await self._llama.next_token_odds(SAMPLE))
            self.current = Model(facts, odds, props.model or "", props.build or "")
            # Evaluating has woken it up, if it was asleep.  (`Props` compares equal, asleep or not.)
            self._taken_in = props
            self._certain = True
        # Some of the answers above may be about other adapters than others.
        if switches != self._switches:
            self.current = None
            return await self.find_out()
        return self.current
