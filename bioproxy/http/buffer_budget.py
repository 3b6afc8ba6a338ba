"""How many bytes are kept for clients that read slowly: for one client, and for all of them together.

An answer that uses the slot is kept for its client, so that the slot need not wait until the client has read it.  That
takes memory, which must be limited twice.  The limit of one client, times the number of connections, is more than there
is memory.  So all clients share a budget.  When it is used up, clients slow their senders down again, as without it.

Twisted runs everything in one thread, so counting needs no lock.  What is over a limit is not refused here: the
producer that sends it is paused (`bioproxy.http.client_output`).

Does not know who keeps bytes, or which.
"""

from __future__ import annotations

SLOT_BUFFER_BYTES = 4 * 1024 * 1024
"""Bytes kept for one client whose answer uses the slot; one piece more may be added before the source pauses.

It is an upper bound of usual answers: 8000 tokens as a stream of events, of some 250 bytes each, are 2 MB.  Halved, a
slow client with a very long answer may hold the slot until it reads; doubled, eight slow clients instead of sixteen use
up `TOTAL_BUFFER_BYTES`.
"""

OTHER_BUFFER_BYTES = 64 * 1024
"""Bytes kept for a client whose answer does not use the slot, and one piece more.

Nobody waits for these answers, so their source may wait for them.  Halved, the source is paused and resumed more often;
doubled, many slow downloads need more memory.
"""

TOTAL_BUFFER_BYTES = 64 * 1024 * 1024
"""Bytes kept for all clients together, and one piece more for each.

Halved, 8 instead of 16 stalled clients with full buffers make the slot wait for clients again; doubled, an attacker can
make the process use twice the memory.
"""


class BufferBudget:
    """The bytes that are kept for all clients together.  Each `ClientOutput` adds what it keeps, and takes it off."""

    used = 0
    """Bytes kept at the moment."""

    @property
    def is_exhausted(self) -> bool:
        """Whether every source should pause that is still sending to a full connection."""
        return self.used > TOTAL_BUFFER_BYTES
