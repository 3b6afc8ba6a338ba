"""How long a user waits for a file of the shared shelf."""

from __future__ import annotations

from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.task import Clock

from bioproxy.llama.speed import Speed
from bioproxy.prompts.conversation import ConversationChain
from bioproxy.prompts.prompt_shape import Key
from bioproxy.shared.bringing import UNKNOWN_SPEED_SECONDS, Bringing
from bioproxy.shared.entry import SharedEntry
from bioproxy.slot.plan import Files, Wanted
from bioproxy.slot_files.file_search import SavedConversation
from tests.shared.support import MODEL, SharedFolderTest, Threads, entry, snapshot, view_of

TURNS = ConversationChain(("a", "b", "c"))


class Elsewhere:
    """Stands for the parts that find a prompt and fetch a file; remembers how long each file may take."""

    certain_model = MODEL

    def __init__(self) -> None:
        self.patience: list[float] = []

    def prompt(self, name: str, key: Key) -> SharedEntry | None:
        """Return none."""
        return None

    async def fetch(self, shared: SharedEntry, patience: float) -> bool:
        """Fetch it at once."""
        self.patience.append(patience)
        return True


class Patience(SharedFolderTest):
    """`Bringing.bring`, with a conversation of 100 tokens on the shelf."""

    def test_patience(self) -> None:
        """A user waits as long as it would take to compute what the file has more than the files that are here."""
        view = view_of(self.path, Clock(), Threads())
        elsewhere: Any = Elsewhere()
        speed = Speed()
        bringing = Bringing(view, elsewhere, elsewhere, speed)
        for work in (view.check(), view.look()):
            self.successResultOf(Deferred.fromCoroutine(work))
        there = entry(name="auto-0123456789ab", kind="chat", conversation=TURNS.first_messages(3))
        view.mirror.add({there.stem: there})
        here = snapshot("auto-0123456789ac", "chat", conversation=TURNS.first_messages(1))
        chat = SavedConversation("auto-0123456789ac", here)
        parts = SavedConversation("auto-0123456789ac", here, shared=1)
        cases = (
            (Files(), 50.0),
            (Files(prompt_tokens=60), 20.0),
            (Files(chat=chat), 0.0),
            (Files(chat=parts, prompt_tokens=60), 20.0),
        )
        for known in (False, True):
            if known:
                speed.measured(100, 50_000)
            for files, expected in cases:
                wanted = Wanted("", Key("", ""), TURNS)
                self.successResultOf(Deferred.fromCoroutine(bringing.bring(wanted, files)))
                self.assertEqual(expected if known else UNKNOWN_SPEED_SECONDS, elsewhere.patience.pop(), files)
