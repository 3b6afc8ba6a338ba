"""Brings what a user's request can use from the shared shelf, before the slot is made ready for it.

A balancer may send the turns of a conversation to different bioproxies, and a prompt that is warm at one may be asked
for at another.  So before a request is sent, this process looks whether the shelf has something better than its own
files: a longer conversation that the request goes on with, or else the prompt.

A user waits meanwhile, so this is a question of time and nothing else.  Fetching may take as long as computing the same
tokens would: beyond that, waiting is worse than doing without.  If llama-server's speed is not known yet, ten seconds
are a guess that a slow disk can keep.

On Twisted: the request's coroutine awaits this, inside the gate.  If its client hangs up, the coroutine is cancelled,
and with it what it awaits here; a file that a thread was just copying is removed by that thread
(`bioproxy.shared.fetching`).

Does not know where a request comes from, nor what the slot holds.
"""

from __future__ import annotations

from twisted.logger import Logger

from bioproxy.llama.speed import Speed
from bioproxy.shared.disk import Unusable
from bioproxy.shared.entry import SharedEntry
from bioproxy.shared.fetching import Fetching
from bioproxy.shared.finding import Finding
from bioproxy.shared.view import SharedView
from bioproxy.slot.plan import Files, Wanted

UNKNOWN_SPEED_SECONDS = 10.0
"""Seconds that a user waits for a file as long as it is not known how long computing it would take.

Halved, the first file of a slow disk is given up; doubled, the first user waits longer for a disk that is stuck.
"""


class Bringing:
    """Brings files for users.

    Invariant: no request waits longer than it would take to compute what the file saves, and about a second for a look.
    """

    log = Logger()

    def __init__(self, view: SharedView, finding: Finding, fetching: Fetching, speed: Speed) -> None:
        """Fetch with `fetching` what is found in `view` and by `finding`; `speed` is that of computing instead."""
        self._view = view
        self._finding = finding
        self._fetching = fetching
        self._speed = speed

    async def bring(self, wanted: Wanted, files: Files) -> None:
        """Fetch what a request can use and this process does not have.  `files` is what it has.

        Fires when that is here, or is not to be had in less time than computing it would take.  Never fails.
        Cancelling leaves nothing behind.
        """
        # Files of a model that is only believed to run are of no use.  The caller asks again when it is certain.
        model = self._finding.certain_model
        if model is None or not self._view.usable:
            return
        # Any trouble ends in the last lines: the request is never worse off than without the shelf, but for a second.
        try:
            await self._view.look_for_user()
            # The conversation first, because it has the prompt in it.  Only a longer one than what is here: with equal
            # ones nothing is gained, and reading the own file is faster.
            chat = self._view.mirror.conversation(model, wanted.turns)
            longer = chat if chat is not None and messages_in(chat) > files.messages else None
            if longer is not None and await self._fetching.fetch(longer, self._worth(longer, files)):
                return
            prompt = self._finding.prompt(wanted.name, wanted.key)
            if prompt is not None and files.prompt_tokens is None:
                await self._fetching.fetch(prompt, self._worth(prompt, files))
        except (Unusable, OSError) as error:
            # The request is served anyway, and is only slower.
            self.log.debug("nothing is fetched for {prompt}: {error}", prompt=wanted.name, error=error)

    def _worth(self, shared: SharedEntry, files: Files) -> float:
        """Return how many seconds a user may wait for a file: as long as computing what it has more would take."""
        # What is restored from a file here need not be computed: of the prompt, or of a shorter conversation.
        chat = files.chat.tokens if files.chat is not None else 0
        more = max(0, shared.snapshot.tokens - max(files.prompt_tokens or 0, chat))
        speed = self._speed.seconds_per_token
        return more * speed if speed else UNKNOWN_SPEED_SECONDS


def messages_in(shared: SharedEntry) -> int:
    """Return how many messages the conversation of an entry has; 0 for a prompt."""
    conversation = shared.snapshot.conversation
    return 0 if conversation is None else conversation.length
