"""What one run of the simulated fleet has cost: times to the first token, and tokens that were computed again.

Only requests that arrived in the span that was asked for are counted, because a fleet that has just begun is cold: the
first requests of each pair compute what all later ones find.

A mean is kept as a sum.  A percentile needs all times, of which there may be a million.  So each time is counted in a
*class*, whose borders are 2 % apart, and a run needs a few hundred numbers whatever its length.  That is exact enough
to compare balancers, which differ by far more where they differ at all.

Does not know pairs, balancers or events.
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, field

STEPS = 50
"""Classes of times to the first token for each factor of e, so that a percentile is right to 2 %."""


@dataclass
class Result:
    """What a run has cost.  Only requests that arrived in the span that was asked for are counted."""

    requests: int = 0
    """Requests that were answered."""
    later: int = 0
    """Requests that are not the first of their conversation."""
    warm: int = 0
    """Later ones whose pair had their conversation in its slot or on its own disk."""
    stayed: int = 0
    """Later ones that came to the pair of the request before."""
    fetched: int = 0
    """Later ones whose pair had their conversation from the shared shelf."""
    new: int = 0
    """Tokens that no pair could have had."""
    computed: int = 0
    """Tokens that were computed; never less than `new`."""
    repeated: int = 0
    """Requests that were sent again since their pair was lost, in the whole run."""
    seconds: float = 0.0
    """Sum of the times to the first token."""
    classes: Counter[int] = field(default_factory=Counter)
    """How many times to the first token are in each class; the logarithm of a time says in which one it is."""
    busiest: float = 0.0
    """Busy time of the busiest pair, as a multiple of the mean of all pairs, in the whole run."""
    most: float = 0.0
    """The same for the number of answers."""
    local_bytes: float = 0.0
    """Bytes on the fullest pair's own disk at the end."""
    shared_bytes: float = 0.0
    """Bytes of conversations on the shared shelf at most."""
    copied: float = 0.0
    """Bytes copied to and from the shared shelf."""
    wall: float = 0.0
    """Seconds until the last answer."""

    def note(self, seconds: float) -> None:
        """Note a time to the first token."""
        self.seconds += seconds
        self.classes[math.floor(math.log(seconds) * STEPS) if seconds > 0 else -(10**6)] += 1

    def ttft(self, share: float) -> float:
        """Return the time to the first token within which this share of the requests was, in seconds."""
        # From the fastest class on, until so many requests are counted; the middle of that class is the answer.
        left = share * self.requests
        for each in sorted(self.classes):
            left -= self.classes[each]
            if left <= 0:
                return math.exp((each + 0.5) / STEPS)
        return 0.0
