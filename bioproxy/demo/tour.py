"""What the demonstration shows by itself: one question, first cold and then warm.

Everything a visitor should understand is on the screen after it: the question, the answer in words, and how long it
took both times.  Cold and warm are the same request with the same limits, sent the same way.  The cold one has
``"cache_prompt": false``, with which llama-server computes all of the prompt, and it leaves nothing behind that the
warm one could use.  So the warm one gets the document from its slot file.

On Twisted: the tour is one coroutine, and so reads from top to bottom.  At each ``await`` the rest of the process goes
on, above all the server that is asked.  Who stops the demonstration cancels the coroutine, which ends it at that
``await``.

Does not know how a question is sent (`bioproxy.demo.question`), and nothing of processes.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from bioproxy.demo import words
from bioproxy.demo.demo_model import DemoModel
from bioproxy.demo.question import Answer, QuestionFailed

ANSWER_TOKENS = 48
"""Tokens of an answer to a request that names no limit, and of those of the tour.

A random model never decides to stop, so without a limit an answer would fill the whole context.  Half as many would
show too little of a stream; twice as many only let a user wait longer.
"""

Ask = Callable[[Mapping[str, Any]], Awaitable[Answer]]
"""Sends a chat completion to bioproxy, and fires with the answer."""


async def show(ask: Ask, say: Callable[[str], None], model: DemoModel) -> None:
    """Ask the question cold and warm with `ask`, and print with `say` what came of it.

    Fires when all is said.  A question that fails is said as well, and is no failure.  Cancelling ends the question
    that is in progress, and nothing more is said.
    """
    request = {
        "messages": [{"role": "user", "content": f"@manual {words.QUESTION}"}],
        "max_tokens": ANSWER_TOKENS,
        # Always the likeliest word, so that both answers can be compared.
        "temperature": 0,
    }
    say(words.before(model))
    try:
        cold = await ask({**request, "cache_prompt": False})
        warm = await ask(request)
    # A visitor can still try everything by hand, for example with the key that is missing here.
    except QuestionFailed as error:
        say(f"The question was not answered: {error}")
        return
    say(words.compared(cold, warm))
