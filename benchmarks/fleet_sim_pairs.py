"""A pair of the simulated fleet: what its slot and its disk hold, and what a request costs.

A pair answers one request at a time.  What its slot does not hold comes from the cheapest source: a file on its own
disk, a file on the shared shelf, or computing.  The rules are bioproxy's, as far as they matter for whole fleets:

* a conversation that loses the slot is saved first, in the time of whoever takes it, unless that takes too long; after
  three seconds without users it has been saved while nobody waited;
* the least recently used conversations leave a full disk first; templates stay;
* what was saved is published on the shared shelf, in the background, one file at a time;
* a user waits for a file of the shelf for as long as computing would take, and then it is computed.

Simplified: files of a conversation have all of its tokens, every model can go back to any token (dense models), and
warm-ups and head starts are left out.  Times are numbers here; nothing waits for anything.

The numbers of a pair are those that matter for a fleet: what is in the slot, what is on the disk, until when it is
busy.  There is no list of slot files and no record, because a simulated file is never damaged.  So a million requests
take a minute, and a change of a rule shows its effect on a fleet of any size before it is built.

Does not know which pair a request should go to.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from typing import NamedTuple

from benchmarks.fleet_sim_load import Conversation, Machine
from benchmarks.fleet_sim_shelf import SharedShelf
from benchmarks.scheduling_run import TO_THE_NEXT_BLOCK
from bioproxy.warmup.idle_work import IDLE

LOOK = 1.0
"""Seconds until others see what was published, on average: each looks every two seconds.

A request makes a look of its own; only the name of a file that is not there yet can be missed.
"""

SHELF_PAUSE = 5.0
"""Seconds for which a pair leaves the shared shelf alone after a file has not come in time.

As `SHORTEST_PAUSE` in `bioproxy.shared.disk`.  Without it, each request of a network that is overloaded would wait in
vain, and overload it more.
"""

SLOT, LOCAL, SHARED, NOWHERE = "slot", "local", "shared", "nowhere"
"""Where the tokens come from that need not be computed."""


class Plan(NamedTuple):
    """How a request would be answered: where its tokens come from, and what that costs.

    A tuple and not a dataclass, because some balancers make several for each request.
    """

    source: str
    """`SLOT`, `LOCAL`, `SHARED` or `NOWHERE`."""
    reused: int
    """Tokens that need not be computed."""
    fetch: float
    """Seconds until the file is here; 0 for what is here already."""
    restore: float
    """Seconds until llama-server has read the file."""


class Pair:
    """One bioproxy with its llama-server.

    Invariant: `busy` is the conversation whose request is answered, and is `None` only while nobody waits in `queue`.
    """

    def __init__(self, number: int, machine: Machine, prefix: int, shelf: SharedShelf | None) -> None:
        """Make a pair that has nothing yet; templates have `prefix` tokens."""
        self.number = number
        self.machine = machine
        self.prefix = prefix
        self.shelf = shelf
        self.alive = True
        # How many times slower than its machine it is.
        self.slowness = 1.0
        self.busy: Conversation | None = None
        self.queue: deque[Conversation] = deque()
        # Requests that are answered or wait here, as a balancer counts them, and the last one of them.
        self.assigned = 0
        self.tail: Conversation | None = None
        # When all of them will be answered, as only an oracle knows.
        self.ready = 0.0
        # What the slot holds: a conversation's number, its tokens, its template; since when, and whether it is saved.
        self.slot, self.slot_tokens, self.slot_template = -1, 0, -1
        self.slot_since, self.slot_saved = 0.0, True
        # How many of its tokens are in a file.
        self.slot_kept = 0
        # Tokens of the conversations on its own disk, the least recently used one first.
        self.local: OrderedDict[int, int] = OrderedDict()
        self.local_tokens = 0
        self.templates: set[int] = set()
        # Until when it puts a file on the shelf, and leaves the shelf alone.
        self.publishes_until = self.pauses_until = 0.0
        self.busy_seconds, self.answered = 0.0, 0

    @property
    def bytes(self) -> float:
        """Bytes of all files on its own disk."""
        return float((self.local_tokens + len(self.templates) * self.prefix) * self.machine.bytes_per_token)

    def warm_seconds(self, conversation: Conversation) -> float:
        """Return for how many seconds a request keeps this pair busy if all that was said before is in its slot."""
        new, answer, _ = conversation.steps[conversation.turn]
        return (new / self.machine.prefill + answer / self.machine.generate) * self.slowness

    def plan(self, conversation: Conversation, now: float) -> Plan:
        """Return how a request would be answered, after all that this pair has accepted; nothing changes."""
        machine, number, template = self.machine, conversation.number, conversation.template
        # What the slot will hold when this request's turn comes: the conversation of the last one that waits here.
        tail = self.tail if self.assigned else None
        slot, slot_template = (self.slot, self.slot_template) if tail is None else (tail.number, tail.template)
        # First the template.  In the slot it costs nothing: what stands behind it is cut off.
        best = Plan(NOWHERE, 0, 0.0, 0.0)
        if slot_template == template:
            best = Plan(SLOT, self.prefix, 0.0, 0.0)
        elif template in self.templates:
            best = Plan(LOCAL, self.prefix, 0.0, machine.restore_seconds(self.prefix))
        elif self._on_shelf(template, now):
            best = self._from_shelf(self.prefix, now)
        # Then the conversation itself, from wherever most of it can be had; of equals the cheapest, which comes first.
        if conversation.tokens:
            if slot == number and self.slot_tokens > best.reused:
                best = Plan(SLOT, self.slot_tokens, 0.0, 0.0)
            tokens = self.local.get(number, 0) - TO_THE_NEXT_BLOCK
            if tokens > best.reused:
                best = Plan(LOCAL, tokens, 0.0, machine.restore_seconds(tokens))
            tokens = self._shared_tokens(number, now) - TO_THE_NEXT_BLOCK
            if tokens > best.reused:
                best = self._from_shelf(tokens, now)
        return best

    def serve(self, conversation: Conversation, now: float) -> float:
        """Begin to answer a request; return the seconds until the whole answer is there."""
        # As nobody else is here, the plan is made for what the slot really holds.
        assigned, self.assigned = self.assigned, 0
        plan = self.plan(conversation, now)
        new, answer, _ = conversation.steps[conversation.turn]
        prompt = (conversation.tokens or self.prefix) + new
        machine, waited = self.machine, 0.0
        if plan.source == SHARED and self.shelf is not None:
            # As long as computing it would take, as `bioproxy.shared.bringing` has it.
            patience = plan.reused / machine.prefill
            size = float(plan.reused * machine.bytes_per_token)
            if plan.fetch > patience:
                # The file did not come in time.  What is here is used instead.
                waited = patience
                self.pauses_until = now + patience + SHELF_PAUSE
                plan = self.plan(conversation, now)
            else:
                self.shelf.copy(now, size, plan.fetch)
                if conversation.number in self.shelf.files:
                    self.shelf.files.move_to_end(conversation.number)
        self.assigned = assigned
        # Whoever takes the slot pays for saving what was there.
        if self.slot != conversation.number:
            waited += self.leave(now)
            self.slot_kept = plan.reused
        conversation.computed = prompt - plan.reused
        conversation.fetched = plan.source == SHARED
        first = (waited + plan.fetch + plan.restore + conversation.computed / machine.prefill) * self.slowness
        conversation.first_token = now + first
        seconds = first + answer / machine.generate * self.slowness
        self._has_template(conversation.template, now + first)
        self.slot, self.slot_template = conversation.number, conversation.template
        self.slot_tokens, self.slot_since, self.slot_saved = prompt + answer, now + seconds, False
        self.busy_seconds += seconds
        return seconds

    def leave(self, now: float) -> float:
        """Save the conversation in the slot before another takes it; return the seconds that this costs somebody."""
        if self.slot_saved:
            return 0.0
        self.slot_saved = True
        size = self.slot_tokens * self.machine.bytes_per_token
        seconds, saved = self.machine.save_seconds(self.slot_tokens), now
        grown = self.slot_tokens - self.slot_kept
        if now - self.slot_since >= IDLE + seconds and self.machine.worth_saving(self.slot_tokens, grown, False):
            # It was saved while nobody was here.
            seconds, saved = 0.0, self.slot_since + IDLE + seconds
        elif not self.machine.worth_saving(self.slot_tokens, grown, True):
            return 0.0
        # On its own disk now, as the one that was used last; those that were not used for longest leave.
        self.slot_kept = self.slot_tokens
        self.local_tokens += self.slot_tokens - self.local.pop(self.slot, 0)
        self.local[self.slot] = self.slot_tokens
        while self.local_tokens * self.machine.bytes_per_token > self.machine.local and self.local:
            self.local_tokens -= self.local.popitem(last=False)[1]
        self._publish(self.slot, self.slot_tokens, size, saved + seconds)
        return seconds

    def settle(self, now: float) -> None:
        """Save what the slot holds if nobody has been here for so long that it has been saved by now."""
        saving = self.machine.save_seconds(self.slot_tokens)
        grown = self.slot_tokens - self.slot_kept
        quiet = self.busy is None and now - self.slot_since >= IDLE + saving
        # If little is new, it is not saved before another one takes the slot.
        if quiet and not self.slot_saved and self.machine.worth_saving(self.slot_tokens, grown, displaced=False):
            self.leave(now)

    def _publish(self, number: int, tokens: int, size: float, now: float) -> None:
        """Put a conversation on the shared shelf.  While another file is on its way there, this one is left out."""
        shelf = self.shelf
        # Really it would wait, and be published later.  A conversation that goes on has a newer file by then, so what
        # is left out here is mostly one that nobody would have fetched.
        if shelf is None or now < self.publishes_until:
            return
        seconds = shelf.seconds(now, size)
        shelf.copy(now, size, seconds)
        self.publishes_until = now + seconds
        shelf.put(number, tokens, size, self.machine.bytes_per_token, self.publishes_until + LOOK)

    def _has_template(self, template: int, now: float) -> None:
        """Note that this pair has a template in a file from now on, and so has the shelf."""
        self.templates.add(template)
        if self.shelf is not None and template not in self.shelf.templates:
            size = float(self.prefix * self.machine.bytes_per_token)
            seconds = self.shelf.seconds(now, size)
            self.shelf.copy(now, size, seconds)
            self.shelf.templates[template] = now + seconds + LOOK

    def _on_shelf(self, template: int, now: float) -> bool:
        """Tell whether a template can be had from the shelf."""
        return (
            self.shelf is not None and now >= self.pauses_until and self.shelf.templates.get(template, now + 1) <= now
        )

    def _shared_tokens(self, number: int, now: float) -> int:
        """Return how many tokens of a conversation can be had from the shelf."""
        if self.shelf is None or now < self.pauses_until:
            return 0
        tokens, seen = self.shelf.files.get(number, (0, 0.0))
        return tokens if seen <= now else 0

    def _from_shelf(self, tokens: int, now: float) -> Plan:
        """Return what it costs to have so many tokens from the shelf."""
        assert self.shelf is not None
        size = tokens * self.machine.bytes_per_token
        return Plan(SHARED, tokens, self.shelf.seconds(now, size), self.machine.restore_seconds(tokens))
