"""The shared shelf of the simulated fleet: which conversations are on it, and how long a copy takes.

All pairs see the same folder over the same network.  So a copy has a share of the bandwidth, and a full shelf loses the
conversations that were not used for longest.

Does not know pairs, or what they copy for whom.
"""

from __future__ import annotations

import heapq
from collections import OrderedDict
from dataclasses import dataclass, field


@dataclass(slots=True)
class SharedShelf:
    """The folder that all pairs see, and the network to it.

    Invariant: the conversations on it need at most `limit` bytes; the least recently used ones have left.
    """

    limit: float
    """Bytes of conversations at most."""
    bandwidth: float
    """Bytes in a second for all pairs together."""
    link: float
    """Bytes in a second for each pair."""
    files: OrderedDict[int, tuple[int, float]] = field(default_factory=OrderedDict)
    """Tokens of each conversation, and from when on others see them; the least recently used one first."""
    templates: dict[int, float] = field(default_factory=dict)
    """From when on others see the file of a template."""
    size: float = 0.0
    """Bytes of conversations now."""
    peak: float = 0.0
    """The most that it ever was."""
    copied: float = 0.0
    """Bytes of all copies, from it and to it."""
    ends: list[float] = field(default_factory=list)
    """When the copies end that are under way, as a heap."""

    def seconds(self, now: float, size: float) -> float:
        """Return how long a copy of `size` bytes takes that begins now, with a fair share of the bandwidth."""
        # Copies that have ended by now do not count.  The share is that of the beginning: that others end earlier, or
        # begin later, is left out, which makes a busy network look a little better or worse than it is.
        while self.ends and self.ends[0] <= now:
            heapq.heappop(self.ends)
        return size / min(self.link, self.bandwidth / (len(self.ends) + 1))

    def copy(self, now: float, size: float, seconds: float) -> None:
        """Note that a copy of `size` bytes begins, and takes so long."""
        heapq.heappush(self.ends, now + seconds)
        self.copied += size

    def put(self, number: int, tokens: int, size: float, bytes_per_token: int, seen: float) -> None:
        """Have a conversation on the shelf, seen by others from then on; others leave if there is no room."""
        # A newer file of a conversation takes the place of the older one, as `Mirror.superseded` has it.
        before = self.files.pop(number, None)
        if before is not None:
            self.size -= before[0] * bytes_per_token
        self.files[number] = (tokens, seen)
        self.size += size
        while self.size > self.limit:
            self.size -= self.files.popitem(last=False)[1][0] * bytes_per_token
        self.peak = max(self.peak, self.size)
