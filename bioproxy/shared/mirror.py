"""What the shared shelf has, in memory, and the search for what a request can use of it.

The folder is read by a thread every two seconds; what is new or gone is written down here.  Searching must not wait: it
happens while a user is at the gate.

Why is the folder copied into memory at all?  A look into it takes milliseconds on a network disk, and may hang.  With a
thousand conversations on the shelf, each request would have to read a thousand small files to find out which one it
goes on with.  As no entry ever changes, a copy cannot be wrong, only late: it may lack the newest entries, and have
some that were just removed.  A fetch finds out the latter.

Only entries of the model that runs now can be found.  An entry of another model is of no use here, and may be the very
thing for another process, so it stays and is only not indexed.  While it is not known which model runs, nothing is
found.

The index is the one of the local record (`bioproxy.slot_files.record_index`): the same questions, asked of another set
of files.  Does not know the folder, nor what is in the slot.
"""

from __future__ import annotations

from collections.abc import Mapping

from bioproxy.llama.model_identity import Model
from bioproxy.prompts.conversation import ConversationChain
from bioproxy.prompts.prompt_shape import Key
from bioproxy.shared.entry import SharedEntry, same_content
from bioproxy.slot_files.record_index import RecordIndex
from bioproxy.slot_files.snapshot import CHAT, PREFIX, Id, Snapshot, class_of


class Mirror:
    """The entries of the shared shelf.

    Invariant: `_index` has the entries of the model `_model`, and at most one for each id and kind: the last one seen.
    """

    entries: dict[str, SharedEntry]
    """All entries that could be read, of whatever model, by stem."""

    def __init__(self) -> None:
        """Begin with nothing, and for no model."""
        self.entries = {}
        # Stems of entries that are of no use: of a newer bioproxy, or damaged.  They are not tried again.
        self._unreadable: set[str] = set()
        self._index = RecordIndex()
        self._stems: dict[Id, str] = {}
        self._model: Model | None = None

    def news(self, stems: set[str]) -> set[str]:
        """Forget entries that are not among `stems`; return those of `stems` that have to be read.

        `stems` are all that a look has found.  Mostly there is nothing new, and nothing is read.
        """
        # What is gone from the folder is gone from here, no matter who has removed it.
        # Listed first, because a dictionary must not shrink while it is gone through.
        for stem in [stem for stem in self.entries if stem not in stems]:
            self.drop(stem)
        # Asked once: a damaged entry would otherwise be read with each look, for as long as it is there.
        # Names are used once, so a damaged entry that is gone never comes back, and need not be remembered.
        self._unreadable &= stems
        return {stem for stem in stems if stem not in self.entries and stem not in self._unreadable}

    def add(self, found: Mapping[str, SharedEntry | None]) -> None:
        """Take over entries by their stems; `None` is one that is of no use, and is not asked for again."""
        # Another look, or the publication of the very same file, may have added an entry before; then nothing changes.
        for stem, entry in found.items():
            if entry is None:
                self._unreadable.add(stem)
                continue
            self.entries[stem] = entry
            if self._model is not None and entry.snapshot.model.matches(self._model):
                self._put(entry)

    def drop(self, stem: str) -> None:
        """Forget an entry."""
        entry = self.entries.pop(stem, None)
        if entry is None:
            return
        id = entry.name, entry.kind
        # Another process may have published the same prompt since; that entry stays, and is the one that is found.
        if self._stems.get(id) == stem:
            del self._stems[id]
            self._index.drop(id)

    def ignore(self, stem: str) -> None:
        """Never use an entry again whose file is not as it says.

        It stays on the disk: that its file is bad was seen by one process only, and removing is for the upkeep.
        """
        self.drop(stem)
        self._unreadable.add(stem)

    def has(self, name: str, kind: str, snapshot: Snapshot) -> bool:
        """Tell whether there is a file with the same content.

        Asked before a file is published: it may be one that was fetched from here.
        """
        stem = self._stems.get((name, kind))
        return stem is not None and same_content(self.entries[stem].snapshot, snapshot)

    def prompt(self, model: Model, name: str, key: Key) -> SharedEntry | None:
        """Return the entry of a prompt with just this text and shape, of this model; `None` if there is none."""
        self._use(model)
        # A look-up by name, and then the comparison that decides: the same name may stand for another text or shape at
        # another bioproxy, whose file would be of no use here.
        stem = self._stems.get((name, PREFIX))
        entry = None if stem is None else self.entries[stem]
        return entry if entry is not None and entry.snapshot.key == key else None

    def conversation(self, model: Model, turns: ConversationChain) -> SharedEntry | None:
        """Return the longest conversation of this model that `turns` goes on with; `None` if there is none.

        `turns` has a digest for each beginning of the request's messages, so each is one look-up, however many
        conversations there are.
        """
        self._use(model)
        # The index yields the longest one first, and nothing shorter can be better.
        for name, _ in self._index.continued_conversations(turns):
            return self.entries[self._stems[name, CHAT]]
        return None

    def superseded(self, entry: SharedEntry) -> list[str]:
        """Return the stems of other entries that nobody needs beside this one, which was just published.

        Without this the shelf would have each turn of each conversation until the limits are reached.
        """
        # The same prompt with another text, or published by two processes at the same time.  Only older files: of two
        # processes that see each other's just one removes, whatever their clocks are.
        same = [each for each in self.entries.values() if each.replaced_by(entry)]
        # Conversations that it goes on with.  The longest of these stays: a model that cannot go back needs it when the
        # last question is edited.
        before = set(entry.snapshot.earlier)
        earlier = [
            (each.snapshot.conversation.length, each.stem)
            for each in self.entries.values()
            if each.snapshot.conversation is not None
            and each.snapshot.conversation in before
            and each.snapshot.model.matches(entry.snapshot.model)
        ]
        return [*(each.stem for each in same), *(stem for _, stem in sorted(earlier)[:-1])]

    def totals(self) -> dict[str, tuple[int, int]]:
        """Return number and bytes of the files of each class, of whatever model.

        Of all models, because they share the limits.
        """
        totals: dict[str, tuple[int, int]] = {}
        for entry in self.entries.values():
            of_class = class_of(entry.name, entry.kind)
            files, size = totals.get(of_class, (0, 0))
            totals[of_class] = files + 1, size + entry.snapshot.size
        return totals

    def _use(self, model: Model) -> None:
        """Index the entries of this model, if they are not indexed yet."""
        # Called before each search, because nobody tells this object that llama-server is another one.
        # Once for each process of llama-server, mostly.  Compared as an object first, which costs nothing.
        if self._model is model or (self._model is not None and self._model.matches(model)):
            self._model = model
            return
        # Anew, and not entry by entry: that happens once for each start of llama-server, and takes milliseconds.
        self._model, self._index, self._stems = model, RecordIndex(), {}
        for entry in self.entries.values():
            if entry.snapshot.model.matches(model):
                self._put(entry)

    def _put(self, entry: SharedEntry) -> None:
        """Add an entry to the index."""
        # The last one that was seen wins.  Of two files of the same prompt either will do, and the older one is removed
        # soon (`superseded`).
        id = entry.name, entry.kind
        self._stems[id] = entry.stem
        self._index.put(id, entry.snapshot)
