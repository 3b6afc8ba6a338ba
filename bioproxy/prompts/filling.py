"""Fills templates into a request.  Finding the templates that it names is the job of `template_search`.

Searching and filling are two steps, because a request waits between them: first for its turn at the slot, then for the
template files, which are read again so that the text is never older than the files.  Hundreds of requests may wait at
the same time, each with a body of many megabytes.  Two decisions keep their memory small:

* **Positions, not copies.**  A `NamedTemplates` contains byte positions in the body instead of the user's texts.  The
  body stays where it arrived, in memory or in a temporary file, and is never held a second time.
* **Pieces, not a new body.**  The filled body is a list of pieces: slices of the body as it arrived, and the templates'
  texts, which are shared by all requests.  They are put together only while they are sent.

Positions have a second advantage.  A request that is parsed and written again is not the same request: numbers,
repeated keys and white space would change (`json_positions` gives examples).  Here each byte that is not replaced is
sent as it arrived.

*Every* user message that begins with a prefix is filled, in every turn.  A chat client sends the whole conversation
each time, with the messages as they were typed.  If only the last message were filled, the second question would no
longer contain the long text of the first one.  The model would not see it, and the KV cache of the first question
could not be used, because a KV cache can only be reused for a prompt that begins with the same tokens.

An example.  With the template ``Notes: ... <{message}> Be brief.`` the body::

    {"messages": [{"role": "user", "content": "@code why?"}]}

becomes these pieces, where ``[a:b]`` is a slice of the body above::

    [0:1]  "id_slot": 0,  [1:43]  Notes: ...  [49:53]  Be brief.  [53:57]

This module is pure: no I/O and no Twisted.  It does not know the APIs or JSON, it only works with positions.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from bioproxy.prompts.conversation import ConversationChain
from bioproxy.prompts.json_positions import Span
from bioproxy.prompts.prompt_shape import Key, Shape
from bioproxy.prompts.templates import Template, TemplateText
from bioproxy.runtime.errors import BodyTooLarge

Piece = bytes | slice
"""A part of a filled body: either these bytes, or a slice (with start and stop, in bytes) of the body as it arrived."""


@dataclass(frozen=True)
class Match:
    """One text of the user that begins with a template's prefix.

    Kept instead of the text itself, so a message of megabytes costs nothing while the request waits.

    Invariant: `message` lies inside `text`.  Both are in bytes, from the body's first byte on.
    """

    template: Template
    """The template that the text names."""
    text: Span
    """The whole text, without its quotation marks.  Filling replaces this span."""
    message: Span
    """The part that becomes the message: behind the prefix, without white space at both ends.

    The bytes are still escaped as in the JSON source, so they can be put into a JSON string without decoding them.
    """
    message_index: int
    """Index of the message in the conversation, from 0 on; of the prompt, where a request has several."""


@dataclass(frozen=True)
class FilledRequest:
    """A request with its templates filled in, ready to be sent."""

    pieces: tuple[Piece, ...]
    """The new body, in order."""
    template: Template
    """The first template in the request.  Its prefix text is what a slot file can provide."""
    key: Key
    """Identifies the beginning of the prompt, up to the first message of `template`.

    Two requests with equal keys have the same prompt up to there, so the KV cache of the one serves the other.
    """
    conversation: ConversationChain
    """The conversation with its templates, to recognise the earlier requests that this one continues."""
    shape: Shape
    """Everything around the template's text that influences the prompt's beginning, such as a system message."""
    first_question: bool
    """As in `NamedTemplates`."""
    reusable: bool
    """As in `NamedTemplates`."""
    adapters: bool = False
    """As in `NamedTemplates`."""


@dataclass(frozen=True)
class NamedTemplates:
    """The templates that one request names, and where.

    Can be pickled, and has at most some hundred kilobytes, however large the request is.

    Invariant: `matches` is not empty, is in the order of the conversation, and its spans do not overlap.
    """

    size: int
    """Length of the body in bytes; the last piece ends there."""
    matches: tuple[Match, ...]
    """All texts to be filled."""
    slot_edit: tuple[Span, bytes] | None
    """What makes the request use slot 0: the span (in bytes) to replace, and the new bytes.

    `None` for a request that uses no slot, such as counting tokens.
    """
    shape: Shape
    """The shape around the first match."""
    message_digests: tuple[str, ...]
    """A digest of each beginning of the conversation as the client wrote it; empty if it has too many messages."""
    instructions: int
    """How many of the messages stand before the first one of a user."""
    first_question: bool
    """Whether the first match is in the last message, so that no answer on this template precedes the question."""
    reusable: bool
    """Whether a KV cache computed earlier may serve this request.

    See `bioproxy.prompts.chat_request.may_reuse`.  An ``id_slot`` of the client does not matter here, because the
    filled request gets another one.
    """
    adapters: bool = False
    """Whether the request has LoRA adapters of its own."""

    @property
    def templates(self) -> tuple[Template, ...]:
        """The templates whose texts `fill` needs, each one once, in the order of the conversation.

        The caller reads them from disk, which is why this is known before filling.
        """
        return tuple(dict.fromkeys(match.template for match in self.matches))

    def fill(self, texts: Mapping[str, TemplateText], limit: int) -> FilledRequest:
        """Return the request with the templates filled in.  Copies no text.

        `texts` has the text of each template in `templates`, by name.  Raises `BodyTooLarge` if the new body would
        have more than `limit` bytes.
        """
        # `json_escaped` has been computed by the thread that read the template, and the message's bytes are escaped
        # since they were sent.  So both can be put together inside the string's quotation marks, without any encoding
        # here.
        edits: list[tuple[Span, list[Piece]]] = [
            (match.text, list(around_message(texts[match.template.name].json_escaped, slice(*match.message))))
            for match in self.matches
        ]
        # One more edit, for `id_slot`; without it llama-server might choose another slot than the restored one.  Its
        # bytes are not part of any text, so it cannot overlap with a match.
        if self.slot_edit is not None:
            span, value = self.slot_edit
            edits.append((span, [value]))

        # `id_slot` may stand before, between or behind the messages, and a client may write the messages' fields in any
        # order.  Sorted by position, the edits are applied in one pass, and what lies between two edits stays a slice.
        # `done` is the position up to which the original body has been used.
        pieces: list[Piece] = []
        done = 0
        for (begin, end), new in sorted(edits, key=lambda edit: edit[0]):
            pieces += [slice(done, begin), *new]
            done = end
        pieces.append(slice(done, self.size))

        # A short body can name a large template a thousand times.  Checked before anything is sent or even put
        # together.
        size = sum(piece.stop - piece.start if isinstance(piece, slice) else len(piece) for piece in pieces)
        if size > limit:
            raise BodyTooLarge(f"with its templates filled the request has {size} bytes, more than {limit}")

        # The message digests cover only what the client wrote (``@code why?``).  If the template file was edited
        # meanwhile, the same messages make another prompt, so the digests of the filled texts belong to the chain.
        filled_templates = (
            (match.message_index, texts[match.template.name].digest) for match in self.matches if self.message_digests
        )

        # Template, key and shape are those of the first template.  Later ones are part of the conversation, not of the
        # beginning that a warm-up can prepare.
        template = self.matches[0].template
        return FilledRequest(
            pieces=tuple(pieces),
            template=template,
            key=self.shape.key(texts[template.name].prefix_digest),
            conversation=ConversationChain(self.message_digests, tuple(filled_templates), self.instructions),
            shape=self.shape,
            first_question=self.first_question,
            reusable=self.reusable,
            adapters=self.adapters,
        )


def around_message(parts: Sequence[bytes], message: slice) -> Iterator[Piece]:
    """Yield the parts of a template, with the message between each two of them.

    What `str.join` does, but with the message as a slice of the body instead of its bytes.
    """
    yield parts[0]
    for part in parts[1:]:
        yield message
        yield part
