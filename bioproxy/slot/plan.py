"""What to do with slot 0 before a request: the decisions, without carrying them out.

A prompt that begins with the tokens in the slot is processed from there on, so before a request is
sent the slot should hold as much of its beginning as possible.  In order of preference:

1. The slot holds the conversation that the request goes on with, and no file has more of it: use it.
2. A file has that conversation: restore it.
3. The slot holds the prompt, alone or with another conversation behind it: use it.
4. A file has the prompt: restore it.
5. None of these: llama-server computes the prompt from its first token.

A *prompt* is what many requests begin with: a template's text, or a system message with tools that was learned from
requests.  A request need not begin with a prompt that is known; then only its conversation is looked for.

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
from bioproxy.slot.known_content import KnownContent, ProbableContent
from bioproxy.slot_files.file_search import SavedConversation
from bioproxy.slot_files.record import CHAT, PREFIX, Snapshot

CUT_BACK = 512
"""Tokens behind a prompt that are given up for an answer that is bit for bit a cold run's.

With more the questions may share a long text, which would have to be computed again: about a second's work on a slow
machine is the price at most.  Halved, answers after long ones are less exact; doubled, twice as much may be computed
again.
"""

# The facts.


@dataclass(frozen=True)
class Wanted:
    """What the next request begins with.

    `name` is its prompt, empty for one that is not known, and `key` says of which text and shape.
    `turns` is its conversation, empty for a warm-up.  `prepared_before` tells whether the last
    request on this prompt had the same key: it tells a prompt that lost the slot from one that
    nobody has asked for yet.
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
    """What the record has for the wanted prompt.

    `chat` is the file that has most of the request's conversation; `None` where no file has any, or
    where restored conversations are of no use.  `prefix` is the file of the prompt, whatever text,
    shape and model it was made of: a file that does not fit still tells why the request is cold.
    `prompt_tokens` is how many tokens that file has, known only where it fits text, shape and model.
    """

    chat: SavedConversation | None = None
    prefix: Snapshot | None = None
    prompt_tokens: int | None = None
    counted_tokens: int | None = None
    """How many tokens of the prompt are warmed up, where they were counted, also if there is no file yet."""

    @property
    def messages(self) -> int:
        """How many messages of the request's are in `chat`."""
        return 0 if self.chat is None else self.chat.messages


@dataclass(frozen=True)
class Reuse:
    """What earlier answers have shown about reusing tokens (`bioproxy.slot_files.reuse_check`).

    `goes_back`: the model can drop the end of what the slot holds and go on from inside.  Recurrent
    models and sliding windows cannot in some builds; they go on only from the very end.
    `conversations`: restored conversations are reused.  `no_restore`: restoring is of no use with
    this llama-server, or this prompt's file is doubted until its tokens have been compared.
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
    conversation in the slot is saved before: the request will cut it off behind the prompt.  With
    `cut_back` the slot is cut down to the prompt before the request is sent, so that the answer is,
    bit for bit, that of a cold run (docs/same-answer.md).
    """

    promised: int | None = None
    source: str | None = None
    save_first: bool = False
    cut_back: bool = False


@dataclass(frozen=True)
class CheckProbable:
    """Ask llama-server whether the slot still has what it probably has, then plan again.

    What was computed must be more than `more_than` tokens, those that a file of the prompt would
    bring.
    """

    more_than: int


@dataclass(frozen=True)
class Replace:
    """Give up what the slot holds and call `plan_replacement`; with `save_first`, save its conversation before."""

    save_first: bool = False


@dataclass(frozen=True)
class Restore:
    """Restore the file that is recorded under this name and kind (`CHAT` or `PREFIX`): restored.

    Where llama-server cannot load it, `plan_replacement` is asked once more, with its kind among
    those that `failed`.
    """

    name: str
    kind: str
    entry: Snapshot
    whole: bool = True
    """Whether all of the file is of use; otherwise the model drops its end."""


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
    # A warm-up leaves no conversation behind, only the prompt, which is in a file already or about
    # to be.
    conversation = known.conversation
    save_first = conversation is not None

    # Case 1: the slot holds the conversation.  The digests of its messages cover what stands before
    # them, so it is the same prompt, too, also where it was not known by name when it was asked.
    # It wins over a file that has no more messages: that may be older.
    if conversation is not None and wanted.turns.continues(conversation) and conversation.length >= files.messages:
        # One more question: the prompt goes on from the end of what the slot holds, as every model
        # can.  But some chat templates change earlier turns; then restored conversations
        # fail as well, and `conversations` is false for both.  A head start has made these changes
        # already.
        if wanted.turns.is_longer_than(conversation) and (reuse.conversations or known.ahead):
            return Use(files.prompt_tokens, CHAT)
        # The same question once more: the model has to go back, to before its own answer.  Also
        # where there is one more question, but conversations are of no use: the prompt at least
        # is.
        if reuse.goes_back:
            return Use(files.prompt_tokens)

    # An edited question, or a branch: the slot holds all that stands before it, and more, which the
    # model drops.
    shared = wanted.turns.shared_messages(known.turns)
    if reuse.goes_back and shared > 0 and shared >= files.messages:
        return Use(files.prompt_tokens, save_first=save_first)
    # Case 2: a file has the conversation.  That is more than the prompt, which is all that the slot
    # has for this request.
    if files.chat is not None or known.key != wanted.key:
        return Replace(save_first)

    # Case 3: the slot holds the prompt.  With nothing behind it, every model can go on from its
    # end, so nothing is promised: the answer would say nothing about going back.
    if conversation is None:
        return Use()
    if reuse.goes_back:
        # llama-server would go on from the first token that differs, anywhere behind the prompt.
        # What both questions share by accident is not worth it: the rest may be a small batch,
        # whose numbers are other ones than a cold run's.  A long shared beginning is.
        # A warm-up has nothing behind the prompt, and cuts the slot down itself.
        behind = known.witness.tokens - (files.prompt_tokens or files.counted_tokens or 0)
        cut_back = behind <= CUT_BACK and bool(wanted.turns.message_digests)
        return Use(files.prompt_tokens, save_first=save_first, cut_back=cut_back)
    # Computed from its first token, unless a file has it: that is for `plan_replacement` to say.
    return Replace(save_first)


def _plan_unknown(in_slot: InSlot, wanted: Wanted, files: Files, reuse: Reuse) -> Use | CheckProbable | Replace:
    """Decide where the slot's content is not known.  There is nothing to save then: nobody could say what it is."""
    probable = in_slot.probable
    # After an answer that was broken off, llama-server keeps what it has computed, somewhere
    # between the prompt's end and the answer's.  Going on from there nearly always means going
    # back a little.
    if probable is None or probable.key != wanted.key or not reuse.goes_back:
        return Replace()
    # A conversation in a file is worth more than another conversation's prompt in the slot.
    if files.chat is not None and not wanted.turns.continues(probable.turns.all_messages):
        return Replace()
    if in_slot.probable_is_there is None:
        return CheckProbable(files.prompt_tokens or 0)
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
    # A conversation says by its messages what it begins with, so its key need not be compared.
    chat, prefix = files.chat, files.prefix
    if chat is not None and CHAT not in failed and chat.entry.model.matches(model):
        return Restore(chat.name, CHAT, chat.entry, whole=chat.shared is None)
    fits = prefix is not None and prefix.key == wanted.key and prefix.model.matches(model)
    if prefix is not None and fits and PREFIX not in failed:
        return Restore(wanted.name, PREFIX, prefix)
    # Case 5.  The reason is in the prompt's file: the first thing in which it differs from what was
    # wanted.
    if prefix is None:
        return Compute("slot-taken" if wanted.prepared_before else "first")
    if prefix.key.text != wanted.key.text:
        return Compute("content-changed")
    if prefix.key != wanted.key:
        return Compute("shape-changed")
    return Compute("no-file" if prefix.model.matches(model) else "other-model")
