"""The prompts and conversations that bioproxy keeps warm, as values that JSON has: `prompts` and `shelf` of `/status`.

An operator wants to know three things of what nobody has configured: what is there, how much of the disk it takes, and
whether it is worth that.  So this is one list for everything that is kept: first all prompts (templates, then learned
ones), then the conversations that were used most recently.  All entries have the same fields.

There may be 10,000 conversations, and open pages have this list compared once a second.  So only the latest
`CONVERSATIONS` are looked at.  The record keeps its entries in the order of use, and the totals are counted with each
change, so the cost does not depend on how many there are.

On Twisted: nothing here waits.  While a method runs, no other code does, so the entries agree with each other, and the
record cannot change under the loop that reads it.  As for all of `bioproxy.operator.status`, two calls return equal
values while nothing happens.

No text of a user is in here: a learned prompt is shown by its id, its size, and its state.

Does not know who reads it, and changes nothing.
"""

from __future__ import annotations

from itertools import islice
from typing import Any

from bioproxy.llama.speed import Speed
from bioproxy.prompts.catalogue import Source
from bioproxy.proxy.request_log import RequestLog
from bioproxy.slot.slot import Slot
from bioproxy.slot_files.files import SlotFiles
from bioproxy.slot_files.record import CHAT, PART, PREFIX, Snapshot, SnapshotRecord
from bioproxy.slot_files.snapshot import CONVERSATION
from bioproxy.warmup.readiness import Readiness

CONVERSATIONS = 50
"""Conversations that are listed; the number of all of them is in `shelf`.

Each has about 300 bytes, which every open page is sent when one of them is used.  Halved, an operator who looks for a
conversation of this morning does not find it; doubled, an event has 15 KB more.
"""

KINDS = {Source.TEMPLATE: "template", Source.LEARNED: "learned"}
"""What `kind` says of a prompt, by its source.  The third kind is `CONVERSATION`."""


class PromptsStatus:
    """Reads what is kept when it is asked.

    Keeps no copy of anything, so it is never older than the record of slot files and what the warmer has done.
    """

    def __init__(
        self,
        readiness: Readiness,
        slot: Slot,
        files: SlotFiles,
        snapshots: SnapshotRecord,
        request_log: RequestLog,
        speed: Speed,
    ) -> None:
        """Read from these parts, and change none of them.

        `readiness` knows the prompts and how warm each is.  `slot` and `files` tell which conversations could be
        restored, `snapshots` in which order they were used.  `request_log` knows when a template was asked for that has
        no file yet, and `speed` what computing a token takes.
        """
        # Nothing is asked of them here: the record is read later, when the services start.
        self._readiness = readiness
        self._slot = slot
        self._files = files
        self._snapshots = snapshots
        self._request_log = request_log
        self._speed = speed

    def now(self) -> dict[str, Any]:
        """Return both keys of `/status`: `prompts`, the list, and `shelf`, what all files of a class amount to."""
        # At most 64 learned prompts and some templates.  Each costs a look at its file on the disk, some microseconds.
        prompts = [self._prompt(id) for id in self._readiness.catalogue]
        # `islice` stops reading after so many.  A list of all, sorted by time, would be made once a second for each.
        latest = islice(self._snapshots.most_recently_used(CONVERSATION), CONVERSATIONS)
        conversations = [self._conversation(name, entry) for (name, _), entry in latest]
        return {"prompts": [*prompts, *conversations], "shelf": self._files.tell_shelf()}

    def _prompt(self, id: str) -> dict[str, Any]:
        """Return the entry of a template's or a learned prompt.

        `state`, `progress`, `warmup`, `error` and `note` are as in `templates`.  `part` tells that it is only what
        several beginnings share.  `bytes` are those of its whole file and of an interrupted warm-up's together.
        """
        prompt = self._readiness.catalogue.get(id)
        # Asked from the catalogue each time: a prompt may have been forgotten a moment ago.
        # A template whose file cannot be read has an id and no prompt, and learned prompts always have both.
        learned = None if prompt is None else prompt.learned
        state, error = self._readiness.state(id)
        # Both may be there: a whole file of an older text, and the beginning of the present one.  For an operator they
        # are one thing, because they are pinned and forgotten together.
        whole, part = self._snapshots.get(id, PREFIX), self._snapshots.get(id, PART)
        files = [each for each in (whole, part) if each is not None]
        # The file's own number if there is a file; else what the warm-up has counted, before it has saved anything.
        tokens = self._readiness.tokens.get(id) if whole is None else whole.tokens
        return {
            "name": id,
            "kind": KINDS[Source.TEMPLATE if prompt is None else prompt.source],
            "state": state,
            # Rounded to what a progress bar can show, so that it is not news for every page with each token.
            "progress": round(self._readiness.progress(id), 3),
            # For the warmer 0 means "too many to count", which an operator would misread.
            "tokens": tokens or None,
            "bytes": sum(each.size for each in files),
            **self._use(id, PREFIX, whole),
            **worth(self._speed, tokens, state == "warm", prompt is not None and self._slot.holds(prompt.key)),
            "pinned": any(each.pinned for each in files),
            "part": learned is not None and learned.cut is not None,
            # The very decision that warm-ups follow, so what is shown cannot differ from what is done.
            "warmup": self._readiness.schedule.look(id).told(),
            "error": error,
            "note": self._readiness.note(id),
        }

    def _conversation(self, id: str, entry: Snapshot) -> dict[str, Any]:
        """Return the entry of a conversation: `id` is ``auto-...``, or a template's name for the last one on it.

        Nothing warms a conversation up.  So it is ``warm`` if its file may be restored now, else ``cold``, for example
        while another model runs.
        """
        # The model is believed to be the one that was found last.  The file is looked up on the disk, because somebody
        # may have deleted it by hand, and the record would not know.  While the model is not known, just after
        # llama-server's restart, nothing is warm.  That is also what a request of this moment would find, before the
        # model has been identified.
        warm = self._slot.facts.may_use_files and self._files.usable(id, CHAT) is not None
        return {
            "name": id,
            "kind": CONVERSATION,
            "state": "warm" if warm else "cold",
            "progress": float(warm),
            "tokens": entry.tokens,
            "bytes": entry.size,
            **self._use(id, CHAT, entry),
            **worth(self._speed, entry.tokens, warm, self._slot.holds_conversation(entry)),
            "pinned": entry.pinned,
            # For a reader who does not look at `kind`, the fields of prompts are there, too.
            "part": False,
            "warmup": None,
            "error": None,
            "note": None,
        }

    def _use(self, id: str, kind: str, entry: Snapshot | None) -> dict[str, Any]:
        """Return the fields about the use of a file; `entry` is `None` where there is no file.

        `hits` counts the requests that found a prompt, in the slot or by restoring; of a conversation, only restores,
        because what goes on in the slot needs no file.  `last_used` and `saved_at` are wall
        clock times in ISO 8601.  `saved_s` is an estimate of the seconds of computing that the uses have saved, `None`
        while llama-server's speed is not known.
        """
        # Counted in memory with each request, and over restarts as far as the record was written (once a minute).  They
        # belong to the id, so a new file of the same prompt goes on with the number of the old one.
        uses = None if entry is None else self._snapshots.uses(id, kind)
        hits = 0 if uses is None else uses.hits
        # The record counts a save as the first use, because that is what the order of files needs.  For an operator, a
        # file that nobody has asked for was never used.
        times = [uses.last_used] if uses is not None and hits else []
        # A template may have been asked for before it had a file.  Both times have the same form, so texts compare.
        if kind == PREFIX and id in self._request_log.last_used:
            times.append(self._request_log.last_used[id])
        # By the speed of today, not the one at the time of each use: nobody wrote that down, and for "is this worth its
        # bytes?" today's is the better one.  Before the first measurement 0 would look like "useless".
        seconds = self._speed.seconds_per_token
        # Without uses nothing was saved, at whatever speed.
        known = bool(seconds) or not hits
        # Rounded, because the speed changes a little with each request, and that should not be news for every page.
        return {
            "hits": hits,
            "last_used": max(times, default=None),
            "saved_at": None if entry is None else entry.saved_at,
            "saved_s": round(hits * (0 if entry is None else entry.tokens) * seconds, 1) if known else None,
        }


def worth(speed: Speed, tokens: int | None, warm: bool, hot: bool) -> dict[str, Any]:
    """Return how long a prompt of so many tokens takes when it is computed, and how long it would take now.

    `cold_s` is an estimate of the seconds that computing takes, `None` where its tokens or llama-server's speed are
    not known.  `now_s` is 0 for a prompt that is `hot`, in the slot, and for a `warm` one how many seconds
    restoring its file takes.  It is `None` for any other prompt, and as long as no restore was measured.
    """
    # Both by the latest measurements, as llama-server's speed depends on what else the machine does.  They are
    # rounded, since they change a little with each one, and that should not be news for every page.
    cold = round(tokens * speed.seconds_per_token, 1) if tokens else 0.0
    restore = speed.restore_seconds(tokens) if warm and tokens else None
    now = 0.0 if hot else restore
    return {"cold_s": cold or None, "now_s": None if now is None else round(now, 2)}
