"""Finds the slot file that helps a request most: the longest match among files that may be used.

There may be thousands of files, and a user waits for the answer.  So a file is first matched by what the record has in
memory, and only a match is then checked: is it of the model that runs now, and is it still on the disk as it was
recorded?  The check of the disk is one call of the operating system, some microseconds.

Two kinds of matches: a *conversation* is found by the digests of its messages, a *prompt* by the digests of its tokens.
In both cases the longest one wins, because it leaves the least to compute.

Nothing here waits, so an answer is right when it is given.  It may be out of date after the next ``await`` of the
caller: an operator may forget a file at any time.  Loading checks the file once more (`bioproxy.slot_files.loading`).

Does not know llama-server's calls, and changes nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from bioproxy.llama.model_identity import ModelIdentity
from bioproxy.prompts.conversation import ConversationChain
from bioproxy.prompts.digests import DigestedTokens
from bioproxy.prompts.prompt_shape import Key
from bioproxy.slot_files.folder import SlotFolder
from bioproxy.slot_files.record import SnapshotRecord
from bioproxy.slot_files.snapshot import CHAT, CONVERSATION, PART, PROMPT, TEMPLATE, Snapshot, epoch


@dataclass(frozen=True)
class SavedConversation:
    """A conversation in a file, as far as a request has it, too."""

    name: str
    """The id under which it is recorded."""
    entry: Snapshot
    """The file."""
    shared: int | None = None
    """How many messages the request shares with it, if it has others behind these."""

    @property
    def messages(self) -> int:
        """How many messages of the request's it has."""
        whole = self.entry.conversation.length if self.entry.conversation is not None else 0
        return whole if self.shared is None else self.shared

    @property
    def tokens(self) -> int:
        """How many of its tokens the request certainly has: all of them, or 0 where that is not known."""
        return self.entry.tokens if self.shared is None else 0


class FileSearch:
    """Answers which file may be used.

    Invariant: no answer is a file of another model than the one that was found last, or one that was changed since it
    was recorded, as far as the folder is visible.
    """

    def __init__(self, identity: ModelIdentity, snapshots: SnapshotRecord, folder: SlotFolder) -> None:
        self._identity = identity
        self._snapshots = snapshots
        self._folder = folder

    def usable(self, name: str, kind: str) -> Snapshot | None:
        """Return the snapshot if it is of the model that runs now, and intact on the disk where that is visible."""
        # For judging what is warm.  It compares with the model that was found last.  Before a file is loaded, the model
        # is identified once more, by its behaviour.  While the model is unknown, just after a restart of llama-server,
        # nothing is usable; the first request or warm-up finds the model out.
        entry = self._snapshots.get(name, kind)
        return entry if entry is not None and self._is_usable(entry) else None

    def longest_conversation(self, turns: ConversationChain, goes_back: bool = False) -> SavedConversation | None:
        """Return the saved conversation of which `turns` has most messages, `None` if there is none.

        With `goes_back` it may have others behind these, which the model can drop.  While it is not certain which model
        runs, files of any model are candidates.  The model must be identified before one of them is restored.
        """
        # Identifying the model overwrites the slot.  It is worth that only if there is a candidate.
        check = self._is_usable if self._identity.certain else self._folder.is_intact
        continued = self._snapshots.continued_conversations(turns)
        whole = next((SavedConversation(*found) for found in continued if check(found[1])), None)
        if not goes_back:
            return whole
        parting = self._snapshots.parting_conversations(turns)
        part = next((SavedConversation(name, entry, length) for length, name, entry in parting if check(entry)), None)
        # With as many messages the whole one is better: nothing has to be dropped.
        return part if part is not None and (whole is None or part.messages > whole.messages) else whole

    def continued_conversations(self, turns: ConversationChain) -> list[str]:
        """Return the ids of saved conversations that `turns` continues, the longest first, of whatever model."""
        return [name for name, _ in self._snapshots.continued_conversations(turns)]

    def sharing(self, tokens: Sequence[int]) -> list[tuple[str, str, Snapshot, int]]:
        """Return the usable prompts and parts that begin with the same tokens, those that share most first.

        Each as id, kind and snapshot, and how many tokens are certainly shared.
        """
        # The tokens are digested once.  Comparing with a file is then a few comparisons of short texts.
        digested = DigestedTokens(tokens)
        found = [(*each, digested.shared_with(each[2].marks, each[2].tokens)) for each in self._snapshots.prompts()]
        # Of two that share the same, the shorter one is better: less is read, and nothing has to be cut off.
        found.sort(key=lambda each: (-each[3], each[2].tokens))
        # The disk is asked last, and only for files that share anything.
        return [each for each in found if each[3] > 0 and self._is_usable(each[2])]

    def shortest_conversation_on(self, key: Key) -> tuple[str, Snapshot] | None:
        """Return the usable conversation with the fewest tokens that begins with a prompt, as id and snapshot, if any.

        `key` says which prompt.  The tokens are not compared: those of conversations are not known.
        """
        # All files are looked through, some thousands at most.  For warm-ups that is quick enough.
        found = [(name, entry) for name, kind, entry in self._snapshots.items() if kind == CHAT and entry.key == key]
        found.sort(key=lambda each: each[1].tokens)
        return next((each for each in found if self._is_usable(each[1])), None)

    def latest_used(self, current: Callable[[str, str, Snapshot], bool]) -> tuple[str, str, Snapshot] | None:
        """Return the conversation or prompt that was used last, as id, kind and snapshot; `None` if there is none.

        `current` tells whether a file is still that of a prompt as it is now.  While it is not certain which model
        runs, files of any model are candidates.
        """
        check = self._is_usable if self._identity.certain else self._folder.is_intact
        latest: list[tuple[int, str, str, Snapshot]] = []
        # Conversations come first, because among equals the first one wins: a conversation that was saved within a
        # second of its answer has the prompt in it, too.
        for of_class in (CONVERSATION, TEMPLATE, PROMPT):
            for (name, kind), entry in self._snapshots.most_recently_used(of_class):
                uses = self._snapshots.uses(name, kind)
                # A prompt that was only warmed up was not asked for.  A conversation was, before it was saved.
                asked = uses is not None and (kind == CHAT or uses.hits > 0)
                if uses is not None and asked and kind != PART and current(name, kind, entry) and check(entry):
                    latest.append((int(epoch(uses.last_used)), name, kind, entry))
                    break
        return max(latest, key=lambda each: each[0])[1:] if latest else None

    def _is_usable(self, entry: Snapshot) -> bool:
        """Tell whether a file is of the model that runs now, and intact on the disk where that is visible."""
        model = self._identity.current
        return model is not None and entry.model.matches(model) and self._folder.is_intact(entry)
