"""Makes a request's turn at the gate: what the gate has to know of a request, in the gate's own terms.

The gate lets requests that go on with the slot's conversation pass others, and requests that only fill llama-server's
cache wait until nobody else does.  It knows nothing of requests, though, so a turn gets three answers from here:

* `Turn.goes_on`, a function.  It is called each time the gate decides who goes next, because until then other requests
  change what the slot holds.  It compares digests in memory and asks nobody, so it may be called for a hundred waiting
  requests in one go.  The request's own digests were computed when it was read, before the queue.
* `Turn.switch_seconds`, a function.  It is called after an answer with tool calls: how much would be lost if another
  conversation came next.
* `Turn.fills_for`, a value: whose cache the request fills, if that is all that it does.

A request that only fills the cache is one for ``/infill`` with ``"n_predict": 0``.  The editor plugin llama.vim sends
them while its user moves around, with all the text that the next completions may need.  It does not look at the answer
(ggml-org/llama.vim, autoload/llama.vim: "no callbacks because we don't need to process the response"), and starts a new
curl process for each.  So a newer one makes an older one superfluous, and connections cannot tell whose it is.

This module awaits nothing, and does not know in which order turns come in (`bioproxy.gate.order`).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Hashable

from bioproxy.gate.gate import Gate
from bioproxy.gate.turn import Turn
from bioproxy.prompts.chat_request import ChatRequest
from bioproxy.prompts.conversation import ConversationChain
from bioproxy.prompts.filling import NamedTemplates
from bioproxy.proxy.exchange import Exchange
from bioproxy.runtime.spool import SMALL
from bioproxy.slot.slot import Slot

INFILL = "/infill"
"""The path of completions in the middle of a text."""

N_PREDICT = re.compile(rb'"n_predict"\s*:\s*(-?\d+)\s*[,}]')
"""How many tokens a request wants.

Searched as bytes: the quotation marks of a key have no backslash before them, unlike those in a text.  Where the number
is written in another way (``0.0``), the request is an ordinary one.
"""


def turn_for(gate: Gate, slot: Slot, exchange: Exchange, found: NamedTemplates | ChatRequest | None) -> Turn:
    """Return a request's turn at the gate; `found` is what is known of its prompt."""
    return gate.user(exchange.record, goes_on_with(slot, found), fills_for(exchange), slot.switch_seconds)


def goes_on_with(slot: Slot, found: NamedTemplates | ChatRequest | None) -> Callable[[], bool]:
    """Return a function that tells whether a request goes on with the conversation in the slot."""
    # A request that must not reuse what was computed earlier gains nothing by being next.
    if found is None or not found.reusable:
        return lambda: False
    # The messages as the client wrote them.  Those of the slot's conversation are known in the same form, so that the
    # templates need not be filled for the comparison.
    conversation = ConversationChain(found.message_digests, instructions=found.instructions)
    return lambda: slot.continues(conversation)


def fills_for(exchange: Exchange) -> Hashable:
    """Return whose cache a request fills, if it does nothing else; `None` otherwise.

    The same client is the same host and the same `User-Agent`.  Two editors on one machine count as one client, and
    that is no loss: llama-server has one slot for both, so the older request's work would be displaced by the newer's.
    """
    # Bodies in files are not read here: 128 KiB are twice as much as the plugin sends by default, and the reactor's
    # thread must not read from the disk.
    if exchange.record.path != INFILL or exchange.body.size > SMALL:
        return None
    # Of a key that is there twice the last one counts, for llama-server as well.  Zero is what has no other digit:
    # Python refuses to read a number of thousands of digits, as a client may send one.
    numbers = N_PREDICT.findall(exchange.body.as_received())
    if not numbers or numbers[-1].strip(b"-0"):
        return None
    # A client of a Unix socket has no host, and all of them are on this machine.
    host = getattr(exchange.request.getClientAddress(), "host", "")
    return host, tuple(exchange.request.requestHeaders.getRawHeaders(b"user-agent", ()))
