"""Which prompts there are: the beginnings of requests that are worth keeping in llama-server's cache.

A *prompt* here is the part of a request that many requests share.  llama-server has to process that part only once if
its KV cache is kept, in the slot or in a file.  Warm-ups, slot files and metrics deal with prompts only.  Where a
prompt comes from matters in two places: here, and where an operator is shown the list.

There are two sources.  `TemplatePoller` has the texts of the template files, and what clients put in front of these
texts (the shape) is learned from their requests, so a template's prompt is put together from both each time that it is
asked for.  `LearnedPrompts` has the beginnings of requests that name no template; such a prompt is all shape and no
text.  Nothing is cached: a `Prompt` is a cheap value, and two of them can be compared.

A prompt that was taken from the catalogue does not change.  Code that awaits something can therefore ask the catalogue
again afterwards, and compare: if the two values differ, the text or the shape has changed meanwhile.  That question
matters after each ``await``, because Twisted runs other code while a coroutine waits.

Does not know llama-server, tokens, slots or files, and reads nothing itself.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from enum import Enum

from bioproxy.prompts.learned_prompts import LearnedPrompt, LearnedPrompts
from bioproxy.prompts.prompt_shape import Key, Shape
from bioproxy.prompts.template_poller import TemplatePoller
from bioproxy.prompts.template_reading import error_texts


class Source(Enum):
    """Where a prompt comes from.  The values are the words that operators read."""

    TEMPLATE = "template"
    LEARNED = "learned prompt"


@dataclass(frozen=True)
class Prompt:
    """The beginning of a request, as a value: equal prompts become equal tokens in the same llama-server.

    The text may have many megabytes.  So `digest` stands for the text in comparisons, and `repr` leaves the text out.
    """

    id: str
    """Names the prompt in slot files and logs: the template's name, which stays when the text changes, or ``auto-...``.
    """

    shape: Shape
    """What stands in front of the text in a request: a system message, tools, a reasoning switch."""

    text: str = field(repr=False, compare=False)
    """The text itself, up to the place of the user's message."""

    digest: str
    """A digest of the text."""

    learned: LearnedPrompt | None = None
    """What was learned; `None` for a template's prompt."""

    @property
    def source(self) -> Source:
        """Where the prompt comes from."""
        return Source.TEMPLATE if self.learned is None else Source.LEARNED

    @property
    def key(self) -> Key:
        """The digests of text and shape.  The slot and its files are compared by them."""
        return self.shape.key(self.digest) if self.learned is None else self.learned.key

    @property
    def empty(self) -> bool:
        """Whether there is nothing to process ahead, as in a template that begins with the user's message."""
        # `isspace` stops at the first other character; `strip` would copy the whole text, twice a second.
        return self.learned is None and (not self.text or self.text.isspace())

    def __str__(self) -> str:
        """Return how log lines name the prompt, for example ``template code``."""
        return f"{self.source.value} {self.id}"


class Catalogue:
    """All prompts that there are.

    An id can be in the catalogue without a prompt: the id of a template whose file cannot be read at the moment.
    """

    def __init__(
        self, poller: TemplatePoller, shape_of: Callable[[str], Shape], learned: LearnedPrompts | None = None
    ) -> None:
        """Take the texts of templates from `poller`, and from `shape_of` the shape in which each is usually asked for.

        `learned` are the prompts that were learned, if any are.
        """
        self._poller = poller
        self._shape_of = shape_of
        self._learned = learned

    def __iter__(self) -> Iterator[str]:
        """Yield the ids of all prompts: templates in the order of the configuration, then what was learned."""
        # A copy: the configuration may be read again while a coroutine is in the middle of this loop.
        return iter((*self._poller.templates, *(self._learned or ())))

    def get(self, id: str) -> Prompt | None:
        """Return the prompt with this id as it is now, or `None` while it has no text."""
        learned = self._learned.get(id) if self._learned is not None else None
        if learned is not None:
            return Prompt(id, learned.shape, "", "", learned)
        text = self._poller.text(id)
        return None if text is None else Prompt(id, self._shape_of(id), text.prefix, text.prefix_digest)

    def problems(self, id: str) -> tuple[str, ...]:
        """Return what is wrong with the files of a prompt, in words for an operator."""
        reading = self._poller.readings.get(id)
        return () if reading is None else error_texts(reading)
