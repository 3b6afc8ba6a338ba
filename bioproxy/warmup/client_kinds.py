"""Which clients send their conversations back as expected.

A head start guesses the next prompt of a conversation.  Whether the guess was right is said by the next answer: how
many tokens were reused.  Some clients never send what is expected: they shorten old turns, or put the time into their
system message.  Guessing costs such a client nothing, but it costs electricity, and the saved conversation its place in
the slot.  So after two wrong guesses in a row there are no more for *that kind of client*: one program on one path,
because a program sends all of its conversations in the same way.

The kinds are kept in memory only, and a restart of bioproxy gives each of them another chance.  A limited number is
kept, since a client may call itself anything.

Pure state, changed by plain calls; nothing here waits.  Knows nothing of slots and prompts.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from twisted.logger import Logger

WRONG = 2
"""Wrong guesses in a row after which there are no more for a kind of client.

Halved, a user who edits an answer once ends the head starts of everybody with that client; doubled, two more turns are
evaluated for nothing.
"""

KINDS = 100
"""Kinds of clients that are remembered; the oldest are forgotten first.

Halved or doubled, nothing changes but for a crowd of clients that call themselves differently each time.
"""

LONGEST_NAME = 40
"""Characters of a client's name.  A longer one is cut: it is shown in the log and in `/status`."""


@dataclass
class ClientKind:
    """What is known of one kind of client."""

    wrong: int = 0
    """Wrong guesses since the last right one."""

    parts: bool = False
    """Whether its prompts part from what the slot holds although that looked right.  Tool calls may do that."""


def client_kind(user_agent: bytes, path: str) -> str:
    """Return the kind of a client: the first word of its header `User-Agent`, and the path."""
    name = re.split(r"[\s/(;]", user_agent.decode("ascii", "replace").strip(), maxsplit=1)[0][:LONGEST_NAME]
    return f"{''.join(each for each in name if each.isprintable()) or 'unnamed client'} {path}"


class ClientKinds:
    """All kinds of clients that were met.

    Invariant: a kind that has stopped stays stopped while it is remembered.
    """

    log = Logger()

    def __init__(self) -> None:
        self._kinds: dict[str, ClientKind] = {}

    def stopped(self, kind: str) -> bool:
        """Tell whether there are no more guesses for this kind."""
        return kind in self._kinds and self._kinds[kind].wrong >= WRONG

    def parts(self, kind: str) -> bool:
        """Tell whether prompts of this kind part from a slot that looks right."""
        return kind in self._kinds and self._kinds[kind].parts

    def found_parting(self, kind: str) -> None:
        """Note that a prompt of this kind parted from a slot that looked right."""
        self._kind(kind).parts = True

    def guessed(self, kind: str, right: bool) -> None:
        """Note whether a guess was right."""
        known = self._kind(kind)
        known.wrong = 0 if right else known.wrong + 1
        if known.wrong == WRONG:
            self.log.info("{note}", note=note(kind))

    def told(self) -> list[dict[str, str]]:
        """Return the kinds that have stopped, as `/status` shows them."""
        return [{"client": kind, "note": note(kind)} for kind in self._kinds if self.stopped(kind)]

    def _kind(self, kind: str) -> ClientKind:
        """Return what is known of a kind, as the one that was met last."""
        # A dict keeps the order in which keys were added, so the first one is the oldest.
        known = self._kinds[kind] = self._kinds.pop(kind, ClientKind())
        if len(self._kinds) > KINDS:
            del self._kinds[next(iter(self._kinds))]
        return known


def note(kind: str) -> str:
    """Return why there are no more head starts for a kind, for operators."""
    return (
        f"no more head starts for {kind}: {WRONG} times in a row its next request did not go on with the conversation"
        " as expected; a restart of bioproxy tries again"
    )
