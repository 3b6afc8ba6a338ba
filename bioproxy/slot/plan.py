"""What to do with slot 0 before a request: the decisions, apart from the deeds.

A prompt that begins with the tokens in the slot is processed from there on, so before a request is
sent the slot should hold as much of its beginning as possible.  In order of preference:

1. The slot holds the conversation that the request goes on with: use it.
2. A file has that conversation: restore it.
3. The slot holds the template, alone or with another conversation behind it: use it.
4. A file has the template: restore it.
5. None of these: llama-server computes the prompt from its first token.

The functions here are pure: values in, a decision out.  There is nothing of Twisted in them,
nothing to await, and no question to llama-server.  That is the point: every combination of
circumstances can be written down as the row of a table, and ``tests/slot/test_plan.py`` is that
table.  `bioproxy.slot.preparer` collects the values, carries the decisions out, and owns everything
that can fail or be cancelled.

Some facts cost a request to llama-server, or destroy what the slot holds.  They are not collected
in advance; the decision is made in steps instead, and each step asks for the next fact only when it
matters:

* `plan` decides whether the slot stays as it is.  It may answer `CheckProbable`: ask llama-server
  one question, and call `plan` again with the reply.
* `plan_replacement` decides what comes into the slot instead.  It needs to know which model runs,
  and finding that out overwrites the slot.  So it comes second, when the old content is given up
  anyway.

Deliberately unknown here: how a file is restored, what a witness is compared with, who waits at the
gate.
"""

from __future__ import annotations

from dataclasses import dataclass

from bioproxy.llama.model_identity import Model
from bioproxy.prompts.conversation import ConversationChain
from bioproxy.prompts.prompt_shape import Key
from bioproxy.slot.content import KnownContent, ProbableContent
from bioproxy.slot.record import CHAT, PREFIX, Snapshot

# The facts.


@dataclass(frozen=True)
class Wanted:
    """What the next request begins with.

    `name` is its template and `key` says of which text and shape.  `turns` is its conversation,
    empty for a warm-up.  `prepared_before` tells whether the last request on this template had the
    same key: it tells a template that lost the slot from one that nobody has asked for yet.
    """

    name: str
    key: Key
    turns: ConversationChain
    prepared_before: bool = False


@dataclass(frozen=True)
class InSlot:
    """What slot 0 holds.  At most one of the two is set.

    `known` was confirmed by the witness a moment ago.  `probable` is what an answer that was broken
    off has left, with nothing to confirm it; `probable_is_there` is llama-server's reply to
    `CheckProbable`, `None` before it was asked.
    """

    known: KnownContent | None = None
    probable: ProbableContent | None = None
    probable_is_there: bool | None = None


@dataclass(frozen=True)
class Files:
    """What the record has for the wanted template.

    `chat` is the file of the conversation that the request goes on with, `None` where the saved
    conversation is another one or where restored conversations are of no use.  `prefix` is the file
    of the template, whatever text, shape and model it was made of: a file that does not fit still
    tells why the request is cold.  `template_tokens` is how many tokens the template has, known
    only where its file fits text, shape and model.
    """

    chat: Snapshot | None = None
    prefix: Snapshot | None = None
    template_tokens: int | None = None


@dataclass(frozen=True)
class Reuse:
    """What earlier answers have shown about reusing tokens (`bioproxy.slot.reuse_check`).

    `goes_back`: the model can drop the end of what the slot holds and go on from inside.  Recurrent
    models and sliding windows cannot in some builds; they go on only from the very end.
    `conversations`: restored conversations are reused.  `no_restore`: restoring is of no use with
    this llama-server, or this template's file is doubted until its tokens have been compared.
    """

    goes_back: bool = True
    conversations: bool = True
    no_restore: bool = False


# The decisions.


@dataclass(frozen=True)
class Use:
    """Leave the slot as it is: hot.

    `promised` is how many tokens should be reused, `None` where that is not worth checking.
    `source` is `CHAT` where the slot holds the conversation itself.  With `save_first` the
    conversation in the slot is saved before: the request will cut it off behind the template.
    """

    promised: int | None = None
    source: str | None = None
    save_first: bool = False


@dataclass(frozen=True)
class CheckProbable:
    """Ask llama-server whether the slot still has what it probably has, then plan again.

    What was computed must be more than `more_than` tokens, those that a file of the template would
    bring.
    """

    more_than: int


@dataclass(frozen=True)
class Replace:
    """Give up what the slot holds and call `plan_replacement`; with `save_first`, save its conversation before."""

    save_first: bool = False


@dataclass(frozen=True)
class Restore:
    """Restore this file, of this kind (`CHAT` or `PREFIX`): restored.

    Where llama-server cannot load it, `plan_replacement` is asked once more, with its kind among
    those that `failed`.
    """

    kind: str
    entry: Snapshot


@dataclass(frozen=True)
class Compute:
    """Nothing is of use, llama-server computes the whole prompt: cold.  `miss` is the reason, as headers tell it."""

    miss: str


def plan(in_slot: InSlot, wanted: Wanted, files: Files, reuse: Reuse) -> Use | CheckProbable | Replace:
    """Decide whether what the slot holds is the best that the request can get."""
    if in_slot.known is None:
        return _plan_unknown(in_slot, wanted, files, reuse)
    return _plan_known(in_slot.known, wanted, files, reuse)


def _plan_known(known: KnownContent, wanted: Wanted, files: Files, reuse: Reuse) -> Use | Replace:
    """Decide where the slot's content is known."""
    conversation, same_key = known.conversation, known.key == wanted.key
    # A warm-up leaves no conversation behind, only the template, which is in a file already or
    # about to be.  And where the file to restore is the one that this template's conversation would
    # be saved to, nothing is saved: llama-server would overwrite exactly what the request needs.
    save_first = conversation is not None and (files.chat is None or known.name != wanted.name)
    if not same_key:
        return Replace(save_first)

    # Case 1: the slot holds the conversation.  It wins over a file, which may be older and shorter.
    if conversation is not None and wanted.turns.continues(conversation):
        # One more question: the prompt goes on from the end of what the slot holds, as every model
        # can.  Except that some chat templates change earlier turns; then restored conversations
        # fail as well, and `conversations` is false for both.
        if wanted.turns.is_longer_than(conversation) and reuse.conversations:
            return Use(files.template_tokens, CHAT)
        # The same question once more: the model has to go back, to before its own answer.  Also
        # where there is one more question, but conversations are of no use: the template at least
        # is.
        if reuse.goes_back:
            return Use(files.template_tokens)

    # Case 2: a file has the conversation.  That is more than the template, which is all that the
    # slot has for this request.
    if files.chat is not None:
        return Replace(save_first)

    # Case 3: the slot holds the template.  With nothing behind it, every model can go on from its
    # end, so nothing is promised: the answer would say nothing about going back.
    if conversation is None:
        return Use()
    if reuse.goes_back:
        return Use(files.template_tokens, save_first=save_first)
    # Computed from its first token, unless a file has it: that is for `plan_replacement` to say.
    return Replace(save_first)


def _plan_unknown(in_slot: InSlot, wanted: Wanted, files: Files, reuse: Reuse) -> Use | CheckProbable | Replace:
    """Decide where the slot's content is not known.  There is nothing to save then: nobody could say what it is."""
    probable = in_slot.probable
    # After an answer that was broken off, llama-server keeps what it has computed, somewhere
    # between the template's end and the answer's.  Going on from there nearly always means going
    # back a little.
    if probable is None or probable.key != wanted.key or not reuse.goes_back:
        return Replace()
    # A conversation in a file is worth more than another conversation's template in the slot.
    if files.chat is not None and not wanted.turns.continues(probable.turns.all_messages):
        return Replace()
    if in_slot.probable_is_there is None:
        return CheckProbable(files.template_tokens or 0)
    # Nothing is promised: it is not known how much of it was computed.
    return Use() if in_slot.probable_is_there else Replace()


def plan_replacement(
    wanted: Wanted, files: Files, model: Model, reuse: Reuse, failed: frozenset[str] = frozenset()
) -> Restore | Compute:
    """Decide what comes into a slot whose content was given up.

    `model` is the one that runs now.  `failed` has the kinds of files that llama-server could not
    load for this very request: the next best one is restored instead.
    """
    if reuse.no_restore:
        return Compute("ineffective")
    # Cases 2 and 4.  A file of another text, shape or model is never restored.  llama-server itself
    # would not notice: it checks the shape of the data, not the weights or the words behind it.
    for kind, entry in ((CHAT, files.chat), (PREFIX, files.prefix)):
        if entry is not None and kind not in failed and entry.key == wanted.key and entry.model.matches(model):
            return Restore(kind, entry)
    # Case 5.  The reason is in the template's file: the first thing in which it differs from what
    # was wanted.
    prefix = files.prefix
    if prefix is None:
        return Compute("slot-taken" if wanted.prepared_before else "first")
    if prefix.key.text != wanted.key.text:
        return Compute("content-changed")
    if prefix.key != wanted.key:
        return Compute("shape-changed")
    return Compute("no-file" if prefix.model.matches(model) else "other-model")
