"""What the demonstration prints, as texts: before the question, after the answers, and what to try.

It is for people who have never heard of a KV cache.  So the numbers come as a sentence first, and a reader who wants to
know more finds them beside it.  All numbers are measured; none is computed from others.

Pure: functions from values to texts.  On Twisted there is nothing to know, except why these texts are not logged:
they are what the visitor has asked for, and stand on the screen as they are.  Between them are the lines of the log,
which show the same requests as an operator sees them.

Does not know when a text is printed, nor where.
"""

from __future__ import annotations

from pathlib import Path

from bioproxy.demo.demo_model import DemoModel
from bioproxy.demo.question import Answer
from bioproxy.settings.configuration import Settings
from bioproxy.settings.kinds import bracketed

QUESTION = "Where is the meeting place after an alarm?"
"""What is asked about the handbook.  The answer is in its section 12, and the small model finds it."""

OTHER_QUESTION = "What is the deposit for a key?"
"""Another one about the handbook, for the visitor."""

ISLAND_QUESTION = "Where is the best place to swim?"
"""One about the other document."""

BEFORE = """
bioproxy is ready.  It has read two documents in advance: the handbook of a workshop and a guide to an island.
{about}

The question, about the handbook:  {question}
It is asked twice: cold, as without bioproxy, where llama.cpp first has to read the whole handbook (please wait),
and then warm, where what it has read comes from a file.
"""
"""What is printed before the question is asked."""

COMPARED = """
The answer:  {answer}

It would have taken {cold.total:.1f} s, and took {warm.total:.1f} s.

          first word   whole answer   the prompt, in tokens
  cold {cold.first_word:11.1f} s {cold.total:12.1f} s   {cold.computed:,} computed
  warm {warm.first_word:11.1f} s {warm.total:12.1f} s   {warm.reused:,} {warm.cache}, {warm.computed:,} computed"""
"""What is printed when both answers are there."""

BANNER = """
Try it yourself, in another terminal.  Another question about the handbook, which llama.cpp still holds: "hot".
  {ask_manual}
The guide to the island comes back from its file: "restored".
  {ask_island}
The same once more without all that: "cold".  Feel how long it takes.
  {ask_cold}

cache_n in the answer says how many tokens were not computed again.  Edit a text, wait a moment, and ask again:
  {templates}
Watch all of it in a browser:
  {admin}/
What is warm, and all numbers:
  curl -s {admin}/status
  curl -s {admin}/metrics
Ctrl-C ends everything.
"""
"""What to try.  The commands are run as they stand by an integration test."""

SHOWN = r"""grep -oiE '^x-bioproxy-cache: [a-z]+|"content":"([^"\\]|\\.)*"|"cache_n":[0-9]+'"""
"""A command that shows of an answer what matters here: how warm it was, its text, and how many tokens were reused."""


def before(model: DemoModel) -> str:
    """Return what is printed before the question is asked."""
    # The model's limits come first: a user who tries another question should know what to expect.
    return BEFORE.format(about=model.about, question=QUESTION)


def compared(cold: Answer, warm: Answer) -> str:
    """Return both answers, or one if they are the same, and what they took."""
    # Both are the same where llama.cpp computes the same in both cases, which bioproxy's warm-ups see to
    # (docs/same-answer.md).  Should they ever differ, a visitor who compares must see that.
    answer = warm.text if warm.text == cold.text else f"{cold.text}\n  and warm:  {warm.text}"
    return COMPARED.format(answer=answer, cold=cold, warm=warm)


def banner(settings: Settings, templates: Path) -> str:
    """Return what to try, with commands that work for these ports and for the texts in `templates`."""

    def command(message: str, more: str = "") -> str:
        """Return a command that asks this and shows what matters of the answer."""
        # Always the likeliest word, as in the tour: with chance in it, so small a model is more often wrong.
        body = f'{{"messages": [{{"role": "user", "content": "{message}"}}], "temperature": 0{more}}}'
        return f"curl -si {chat_url(settings)} -d '{body}' | {SHOWN}"

    # In this order, because the tour has left the handbook in the slot: the first question finds it there, the second
    # one takes its place, and the third one reuses nothing at all.
    return BANNER.format(
        ask_manual=command(f"@manual {OTHER_QUESTION}"),
        ask_island=command(f"@island {ISLAND_QUESTION}"),
        ask_cold=command(f"@island {ISLAND_QUESTION}", ', "cache_prompt": false'),
        templates=templates,
        admin=f"http://{bracketed(settings.admin_host)}:{settings.admin_port}",
    )


def chat_url(settings: Settings) -> str:
    """Return where chat completions are asked for.

    It is the address of `host` and `port`: with `listen` a visitor has to adapt the commands.
    """
    # For the tour itself it makes no difference whether `host` means all addresses (``0.0.0.0``): the operating system
    # takes that for this machine.
    return f"http://{bracketed(settings.host)}:{settings.port}/v1/chat/completions"
