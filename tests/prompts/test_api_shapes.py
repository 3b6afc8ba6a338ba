"""The shape of a request in each API, and which requests of different APIs have the same one."""

from __future__ import annotations

from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from bioproxy.prompts.api_formats import FORMATS
from bioproxy.prompts.prompt_shape import PLAIN_PROMPT, USER_MESSAGE_ONLY, Shape

CHAT, MESSAGES, RESPONSES, PROMPT = "/v1/chat/completions", "/v1/messages", "/v1/responses", "/completion"

FUNCTION = {"name": "f", "description": "d", "parameters": {"type": "object", "b": 1, "a": 2}}
TOOL = {"type": "function", "function": FUNCTION}
STRICT = {"type": "function", "function": {**FUNCTION, "strict": True}}
ANTHROPIC_TOOL = {"name": "f", "description": "d", "input_schema": FUNCTION["parameters"]}
RESPONSE_TOOL = {"type": "function", **FUNCTION}
STAMP = "x-anthropic-billing-header: cc_version=2.0; cch=%s; rest"


def shape(path: str, request: dict[str, Any], which: int = 0) -> Shape:
    """Return the shape around a text of the user in a request, by default the first one."""
    parsed = FORMATS[path](request)
    return parsed.shape_around(parsed.user_texts[which])


def chat(*before: dict[str, Any], text: str = "@code", **fields: Any) -> Shape:
    """Return the shape of a request of OpenAI's chat completions."""
    return shape(CHAT, {"messages": [*before, {"role": "user", "content": text}], **fields})


def messages(**fields: Any) -> Shape:
    """Return the shape of a request of Anthropic's messages."""
    return shape(MESSAGES, {"messages": [{"role": "user", "content": "@code"}], **fields})


def responses(*before: dict[str, Any], **fields: Any) -> Shape:
    """Return the shape of a request of OpenAI's responses."""
    return shape(RESPONSES, {"input": [*before, {"role": "user", "content": "@code"}], **fields})


def system(text: str, role: str = "system") -> dict[str, Any]:
    """Return a system message."""
    return {"role": role, "content": text}


class Shapes(SynchronousTestCase):
    """The shape around a text, for each API."""

    def test_nothing(self) -> None:
        """A request with nothing but the text has the same shape in all APIs, however the text is wrapped."""
        part = {"type": "text", "text": "@code"}
        for each in (
            chat(),
            messages(),
            responses(),
            shape(RESPONSES, {"input": "@code"}),
            shape(MESSAGES, {"messages": [{"role": "user", "content": [part]}], "max_tokens": 5, "model": "x"}),
            shape(RESPONSES, {"input": [{"role": "user", "content": [{**part, "type": "input_text"}]}]}),
            shape(
                RESPONSES, {"input": [{"type": "message", "status": "completed", "role": "user", "content": "@code"}]}
            ),
            shape(CHAT, {"messages": [{"role": "user", "content": [part]}], "temperature": 0, "tools": []}),
        ):
            self.assertEqual(USER_MESSAGE_ONLY, each)

    def test_system(self) -> None:
        """A system prompt gives the same shape in all APIs, as a text or in blocks."""
        expected = chat(system("ab"))
        self.assertNotEqual(USER_MESSAGE_ONLY, expected)
        blocks = [{"type": "text", "text": "a", "cache_control": {"type": "ephemeral"}}, {"type": "text", "text": "b"}]
        for each in (
            messages(system="ab"),
            messages(system=blocks),
            responses(instructions="ab"),
            responses(system("ab")),
        ):
            self.assertEqual(expected, each)
        self.assertNotEqual(expected, messages(system="ba"))
        self.assertNotEqual(expected, responses(instructions="ba"))

    def test_other_blocks(self) -> None:
        """Blocks of a system prompt that are not text are ignored."""
        odd = [None, "x", 1, {"type": "image", "text": "x"}, {"type": "text", "text": "a"}, {"type": "text"}]
        self.assertEqual(messages(system="a"), messages(system=odd))

    def test_billing_header(self) -> None:
        """The changing value in Claude Code's billing header makes no difference; the rest of the prompt does."""
        for wrap in (
            lambda text: text,
            lambda text: [{"type": "text", "text": text}, {"type": "text", "text": "more"}],
        ):
            first, second = (messages(system=wrap(STAMP % stamp)) for stamp in ("abcde", "12345"))
            self.assertEqual(first, second)
            self.assertNotEqual(first, messages(system=wrap(STAMP % "abcde" + "!")))
            self.assertNotEqual(first, messages(system=wrap(STAMP % "abcdef")))
        self.assertNotEqual(*(messages(system=f"I say: {STAMP % stamp}") for stamp in ("abcde", "12345")))

    def test_tools(self) -> None:
        """The same tools, written in the form of each API, give the same shape."""
        self.assertEqual(chat(tools=[TOOL]), messages(tools=[ANTHROPIC_TOOL]))
        self.assertEqual(chat(tools=[STRICT]), responses(tools=[RESPONSE_TOOL]))
        self.assertEqual(chat(tools=[STRICT]), responses(tools=[{**RESPONSE_TOOL, "strict": True}]))
        self.assertNotEqual(chat(tools=[STRICT]), responses(tools=[{**RESPONSE_TOOL, "strict": False}]))
        for each in (
            chat(tools=[TOOL]),
            chat(tools=[STRICT]),
            messages(tools=[{"name": "g"}]),
            chat(tools=[TOOL, TOOL]),
        ):
            self.assertNotEqual(USER_MESSAGE_ONLY, each)
        self.assertNotEqual(chat(tools=[TOOL]), messages(tools=[ANTHROPIC_TOOL] * 2))

    def test_tools_of_other_kinds(self) -> None:
        """Tools that llama-server ignores make no difference."""
        self.assertEqual(responses(tools=[RESPONSE_TOOL]), responses(tools=[{"type": "web_search"}, RESPONSE_TOOL, 1]))
        self.assertEqual(USER_MESSAGE_ONLY, responses(tools=[{"type": "web_search"}]))

    def test_tool_without_name(self) -> None:
        """An object without a name is not converted: it is not a tool, and a list of many would need much memory."""
        self.assertEqual(chat(tools=[{}, {"description": "x"}]), messages(tools=[{}, {"description": "x"}]))

    def test_order_of_keys(self) -> None:
        """The order of keys in a tool makes a difference: chat templates write tools as they came."""
        turned = dict(reversed(FUNCTION["parameters"].items()))  # type: ignore[attr-defined]
        self.assertNotEqual(
            messages(tools=[ANTHROPIC_TOOL]), messages(tools=[{**ANTHROPIC_TOOL, "input_schema": turned}])
        )

    def test_tool_choice(self) -> None:
        """The choice between tools gives the same shape in each API."""
        for kind, word in (("auto", "auto"), ("any", "required"), ("tool", "required")):
            choice = {"type": kind, "name": "f"}
            self.assertEqual(chat(tools=[TOOL], tool_choice=word), messages(tools=[ANTHROPIC_TOOL], tool_choice=choice))
        self.assertEqual(messages(), messages(tool_choice={"type": "later"}))
        self.assertEqual(chat(tool_choice="required"), responses(tool_choice="required"))

    def test_switches(self) -> None:
        """Settings of the chat template make a difference, and give the same shape in each API that has them."""
        given: dict[str, Any] = {"chat_template_kwargs": {"enable_thinking": False}}
        self.assertEqual(chat(**given), messages(**given))
        self.assertEqual(chat(**given), responses(**given))
        self.assertEqual(chat(reasoning_effort="low"), responses(reasoning={"effort": "low", "summary": "auto"}))
        for each in (chat(**given), chat(reasoning_effort="low")):
            self.assertNotEqual(USER_MESSAGE_ONLY, each)

    def test_ids(self) -> None:
        """Ids of items make no difference: clients that give them give others in each session."""
        item = {"type": "message", "role": "developer", "content": [{"type": "input_text", "text": "Be brief."}]}
        one, two = (responses({**item, "id": f"msg_{number}"}) for number in (1, 2))
        self.assertEqual(one, two)
        self.assertEqual(responses(item), one)

    def test_developer(self) -> None:
        """Instruction items of the responses API give the shape of system or developer messages of a chat."""
        for role in ("system", "developer"):
            part = {"role": role, "content": [{"type": "input_text", "text": "a"}], "type": "message"}
            for each in (responses(system("a", role)), responses(part)):
                self.assertEqual(chat(system("a", role)), each)
        self.assertNotEqual(chat(system("a")), responses(system("a", "developer")))

    def test_earlier_turns(self) -> None:
        """Earlier messages make a difference, and so do content parts before the text in its own message."""
        for path, name, kind in (
            (CHAT, "messages", "text"),
            (MESSAGES, "messages", "text"),
            (RESPONSES, "input", "input_text"),
        ):
            own = {"role": "user", "content": "@code"}
            earlier = {name: [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho"}, own]}
            parts = {name: [{"role": "user", "content": [{"type": kind, "text": word} for word in ("hi", "@code")]}]}
            shapes = {USER_MESSAGE_ONLY, shape(path, earlier, 1), shape(path, parts, 1)}
            self.assertEqual(3, len(shapes), path)
            self.assertEqual(USER_MESSAGE_ONLY, shape(path, parts), path)

    def test_prompts(self) -> None:
        """A plain prompt has the same shape whatever the request's fields are."""
        for prompt in ("@code", ["@code"], {"prompt_string": "@code"}):
            self.assertEqual(PLAIN_PROMPT, shape(PROMPT, {"prompt": prompt, "tools": [TOOL]}))
