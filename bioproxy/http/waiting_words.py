"""What a waiting client is told, in words and in the form that its API has for such news.

A client that asked for a stream of *server-sent events* may be sent two things that are no part of an answer:

* a **comment**, a line that begins with a colon.  Every client has to skip it, and a person who looks at the stream can
  read it.  OpenAI's API has nothing else for this purpose.
* a **ping**, an event of Anthropic's API.  Its clients expect pings, and some reset their timeout only when an event
  arrives.  A ping has no text, so the comment goes out in front of it, within the same event.

Both forms were checked with the packages `openai` (3.57) and `anthropic` (2.14): each skips comments, the latter skips
pings also before the first event of the message.

Pure: knows neither the queue nor the clock, and nothing of Twisted.  What is true at the moment is found out by
`bioproxy.proxy.waits`.
"""

from __future__ import annotations

from bioproxy.http.error_formats import is_anthropic

PING = b'event: ping\ndata: {"type": "ping"}\n'
"""Anthropic's event, without the empty line that ends it."""


def sign_of_life(path: str, words: str) -> bytes:
    """Return what is written into a stream from this path, complete with the empty line at its end.

    `words` must be one line: a line end would end the comment, and what follows would be read as a field of an event.
    """
    # The empty line ends the comment; some clients hand on nothing before they have seen one.
    return b": %b\n%b\n" % (words.encode(), PING if is_anthropic(path) else b"")


def waiting(place: int, of: int, seconds: float | None) -> str:
    """Return the words for a request in the queue: "waiting, 2nd of 3, about 40 s".

    `place` counts from 1, `of` is how many wait in all, and `seconds` is the estimate until its turn.  Without an
    estimate the time is left out: no number is better than an invented one.
    """
    time = "" if seconds is None else f", {about(seconds)}"
    # Others may have left between two questions to the gate, and "3rd of 2" would look like a mistake.
    return f"waiting, {ordinal(place)} of {max(place, of)}{time}"


def reading(done: int, of: int | None) -> str:
    """Return the words for a prompt that llama-server reads: "reading the prompt, 4,096 of about 6,000 tokens".

    `done` is how many tokens it has, reused ones included.  `of` is an estimate; `None` if there is none.
    """
    # The total is a guess by the body's size.  Once it is exceeded it is known to be wrong, and is no longer told.
    total = f" of about {rounded(of):,}" if of is not None and of > done else ""
    return f"reading the prompt, {done:,}{total} tokens"


def about(seconds: float) -> str:
    """Return an estimated duration, no more exact than an estimate is: "about 5 s", "about 40 s", "about 3 min"."""
    # Seconds up to ten, then steps of five, then minutes.
    if seconds < 10:
        return f"about {max(1, round(seconds))} s"
    if seconds < 100:
        return f"about {5 * round(seconds / 5)} s"
    return f"about {round(seconds / 60)} min"


def ordinal(number: int) -> str:
    """Return an English ordinal: 1st, 2nd, 3rd, 4th, 11th, 21st."""
    teens = number % 100 in (11, 12, 13)
    return f"{number}{'th' if teens else {1: 'st', 2: 'nd', 3: 'rd'}.get(number % 10, 'th')}"


def rounded(number: int) -> int:
    """Return a number with its first two digits, the others zero: the total of a prompt is not known better."""
    step: int = 10 ** max(0, len(str(number)) - 2)
    return step * round(number / step)
