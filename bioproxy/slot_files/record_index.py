"""The record of slot files in memory, arranged so that ten thousand entries cost no more than ten.

Four questions are asked while a user waits: what is recorded under an id, which conversation does a request continue,
which prompts are there, and what was not used for the longest time.  Each is answered by a structure of its own:

* entries by id and kind: a `dict`;
* conversations by their length and digest: a `dict`, so that each beginning of a request's conversation is one look-up;
* prompts (`PREFIX` and `PART`): a `dict` of those only, because they are few beside the conversations;
* the order of use: one `OrderedDict` for each class.  A use moves an entry to its end, so the least recently used ones
  are at its front, and nobody has to sort.

Files, bytes and pinned bytes of each class are counted with each change, and never added up again.

Nothing here waits or is written, so no other code of Twisted's one thread ever sees the structures disagree.

Does not know the disk, nor which files are to be removed.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from bioproxy.prompts.conversation import Conversation, ConversationChain
from bioproxy.slot_files.snapshot import CHAT, CLASSES, Id, Snapshot, class_of


@dataclass
class Totals:
    """What all files of one class amount to."""

    files: int = 0
    """Their number."""
    bytes: int = 0
    """Their bytes."""
    pinned: int = 0
    """Bytes of those that must not be removed."""

    def add(self, entry: Snapshot, sign: int) -> None:
        """Count an entry in (`sign` 1) or out (-1)."""
        # `pinned` is a `bool`, which counts as 0 or 1.
        self.files += sign
        self.bytes += sign * entry.size
        self.pinned += sign * entry.size * entry.pinned


class ConversationNames:
    """Names by conversations: those of the entries that have a conversation, or begin with it.

    Invariant: nothing that is empty is kept, so this does not grow with the number of conversations that there ever
    were.
    """

    def __init__(self) -> None:
        # The names of a conversation's entries, latest last.  Mostly one; two where the same conversation was saved as
        # a template's last one and under its own name.
        self._names: dict[Conversation, dict[str, None]] = {}
        # How many there are of each length.  A request has a beginning of each length, and only lengths that occur have
        # to be looked up.
        self._lengths: Counter[int] = Counter()

    def found(self, turns: ConversationChain) -> Iterator[tuple[int, str]]:
        """Yield the names of conversations that `turns` begins with, and their lengths, the longest first."""
        # Longest first, so the first one that a caller can use is the best.  One digest is computed for each length
        # that occurs, and only as far as the caller goes on asking.
        longest = len(turns.message_digests)
        for length in sorted((each for each in self._lengths if 0 < each <= longest), reverse=True):
            for name in reversed(self._names.get(turns.first_messages(length), {})):
                yield length, name

    def count(self, name: str, conversations: Iterable[Conversation], sign: int) -> None:
        """Add a name to some conversations (`sign` 1), or remove it (-1)."""
        for each in conversations:
            self._lengths[each.length] += sign
            # Adding a name that was there moves nothing, but each replacement counts the old entry out first, so the
            # latest name is last.
            names = self._names.setdefault(each, {})
            if sign > 0:
                names[name] = None
            else:
                names.pop(name, None)
            if not names:
                del self._names[each]
            if not self._lengths[each.length]:
                del self._lengths[each.length]


class RecordIndex:
    """All entries, and the ways to find them.

    Invariant: an entry is in all of the structures that it belongs to, or in none.
    """

    totals: dict[str, Totals]
    """What the files of each class amount to."""

    prompts: dict[Id, Snapshot]
    """The entries that are no conversations."""

    def __init__(self) -> None:
        # `dict` keeps the order of insertion, which is what those see who go through all entries.
        self.entries: dict[Id, Snapshot] = {}
        self.prompts = {}
        self.totals = {each: Totals() for each in CLASSES}
        # Least recently used first.  The values are not needed, the order is.
        self._order: dict[str, OrderedDict[Id, None]] = {each: OrderedDict() for each in CLASSES}
        # Conversations by what they are, and by what they begin with.
        self._whole, self._beginnings = ConversationNames(), ConversationNames()

    def put(self, id: Id, entry: Snapshot) -> None:
        """Add or replace an entry.  A new one comes last in the order of use; a replaced one stays where it was."""
        # The old entry is counted out as it was, since its size, its pin or its conversation may be other ones.
        kept = self.entries.get(id)
        if kept is not None:
            self._count(id, kept, -1)
        self.entries[id] = entry
        self._count(id, entry, 1)
        # `setdefault` adds at the end and leaves alone what is there: a changed pin or file name is no use.
        self._order[class_of(*id)].setdefault(id)

    def drop(self, id: Id) -> None:
        """Remove an entry, which must be there."""
        # The caller knows which ones there are (`SnapshotRecord.drop_all`).  An unknown one here would be a mistake in
        # the counts, so it raises instead of being passed over.
        self._count(id, self.entries.pop(id), -1)
        del self._order[class_of(*id)][id]

    def used(self, id: Id) -> None:
        """Move an entry, which must be there, to the end of the order of use."""
        # One change of a linked list, which is why nothing is sorted by time.  Times are only for people, for the next
        # start, and for the shelf's protection of new files.
        self._order[class_of(*id)].move_to_end(id)

    def least_recently_used(self, of_class: str) -> Iterator[tuple[Id, Snapshot]]:
        """Yield the entries of a class, least recently used first.  Nothing may change meanwhile."""
        # A generator over the order itself, not over a copy: most callers want only the first few of thousands.  An
        # `OrderedDict` that changes meanwhile raises `RuntimeError`, so a mistake is noticed.
        for id in self._order[of_class]:
            yield id, self.entries[id]

    def most_recently_used(self, of_class: str) -> Iterator[tuple[Id, Snapshot]]:
        """Yield the entries of a class, most recently used first.  Nothing may change meanwhile."""
        for id in reversed(self._order[of_class]):
            yield id, self.entries[id]

    def continued_conversations(self, turns: ConversationChain) -> Iterator[tuple[str, Snapshot]]:
        """Yield ids and entries of the conversations that `turns` continues, the longest first.

        Nothing may change meanwhile.
        """
        for _, name in self._whole.found(turns):
            yield name, self.entries[name, CHAT]

    def parting_conversations(self, turns: ConversationChain) -> Iterator[tuple[int, str, Snapshot]]:
        """Yield those that begin as `turns` do and then part, as number of shared messages, id and entry.

        The most shared messages come first.  Nothing may change meanwhile.
        """
        for length, name in self._beginnings.found(turns):
            yield length, name, self.entries[name, CHAT]

    def _count(self, id: Id, entry: Snapshot, sign: int) -> None:
        """Count an entry in (`sign` 1) or out (-1), in everything but `entries` and the order."""
        # One method for both directions, so that whatever is counted in is counted out again.
        name, kind = id
        self.totals[class_of(name, kind)].add(entry, sign)
        if kind != CHAT:
            # A prompt has no conversation, and nothing else to be found by but its marks, which are in the entry.
            if sign > 0:
                self.prompts[id] = entry
            else:
                del self.prompts[id]
        elif entry.conversation is not None:
            self._whole.count(name, [entry.conversation], sign)
            self._beginnings.count(name, entry.earlier, sign)
