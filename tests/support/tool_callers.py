"""Agents whose answers are real tool calls, from generated models that know nothing but random words.

llama-server finds out by itself, from a chat template, in which form a model calls tools.  With ``tool_choice:
required`` it makes a grammar of that form and of the tools' parameters, and the model can write nothing else.  A random
model still finds two ways around it: it writes words for ever in front of the call, which the grammar allows, or for
ever inside a parameter that may be any text.  So the tool here has one parameter that may be one word only, and
``logit_bias`` makes the call's first word and the end of the answer more likely than any other token.

The rest is llama-server's own: it parses the call, and says ``"finish_reason": "tool_calls"``.

The template differs from that of the other agents in one place.  The role of an answer is not written: the generated
vocabulary puts a space before the first word behind a marker, and the grammar, which reads the beginning of the answer
as well, has none there.
"""

from __future__ import annotations

from typing import Any

from bioproxy.demo.vocabulary import vocabulary
from tests.support import agents
from tests.support.agents import ARGUMENTS, CHAT, Client, prose

TEMPLATE = agents.TEMPLATE.replace(
    "{{ '<|im_start|>' + message['role'] + '\\n' }}",
    "{{ '<|im_start|>' }}{% if message['role'] != 'assistant' %}{{ message['role'] + '\\n' }}{% endif %}",
).replace("{{ '<|im_start|>assistant\\n' }}", "{{ '<|im_start|>' }}")
"""The chat template of a model that calls tools."""

LIKELY = {"<|im_end|>": 200, "▁call": 150, "▁": 120}
"""What is added to the likelihood of tokens.

The end comes first, so the answer has one call only: the grammar allows it behind a call and nowhere else.  The space
is needed behind the word ``call``, where another word would be a text again.
"""


def calling_agent(seed: object = 1, words: int = 1800) -> Client:
    """Return an agent with one tool, and a system message of so many words."""
    one_word = {key: {"type": "string", "enum": [value]} for key, value in ARGUMENTS.items()}
    parameters = {"type": "object", "properties": one_word, "required": list(ARGUMENTS)}
    tool = {"name": "look", "description": prose(8, f"{seed} tool"), "parameters": parameters}
    return Client(CHAT, prose(words, f"{seed} system"), (tool,))


def calls_a_tool() -> dict[str, Any]:
    """Return the fields of a request whose answer is to be a tool call."""
    tokens, *_ = vocabulary()
    bias = {str(tokens.index(token)): more for token, more in LIKELY.items()}
    return {"tool_choice": "required", "logit_bias": bias, "max_tokens": 100}
