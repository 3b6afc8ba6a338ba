"""Which prompts there are."""

from __future__ import annotations

from dataclasses import FrozenInstanceError, replace

from bioproxy.prompts.catalogue import Catalogue, Prompt, Source
from bioproxy.prompts.digests import digest
from bioproxy.prompts.prompt_shape import PLAIN_PROMPT, USER_MESSAGE_ONLY
from tests.support.world import CODE, KEY, WorldTest


class TemplatePrompts(WorldTest):
    """The catalogue over template files."""

    def test_prompt_of_a_template(self) -> None:
        """A template gives a prompt with its name, the text before the message, and the learned shape."""
        world = self.ready_world({"code": CODE, "story": "Once <{message}> again"})
        prompt = Catalogue(world.poller, lambda name: {"code": USER_MESSAGE_ONLY, "story": PLAIN_PROMPT}[name]).get(
            "story"
        )
        assert prompt is not None
        self.assertEqual(
            ("story", PLAIN_PROMPT, "Once ", digest("Once ")), (prompt.id, prompt.shape, prompt.text, prompt.digest)
        )
        self.assertEqual((Source.TEMPLATE, "template story"), (prompt.source, str(prompt)))
        code = world.catalogue.get("code")
        assert code is not None
        self.assertEqual(KEY, code.key)

    def test_order(self) -> None:
        """The ids come in the order of the configuration; those without a readable text are among them."""
        world = self.ready_world({"b": CODE, "bad": "no place", "a": CODE})
        self.assertEqual(["b", "bad", "a"], list(world.catalogue))
        self.assertIsNone(world.catalogue.get("bad"))
        self.assertIn("no <{message}>", "".join(world.catalogue.problems("bad")))

    def test_changes(self) -> None:
        """After an edit the catalogue has another prompt; the one that was taken before stays as it was."""
        world = self.ready_world()
        before = world.catalogue.get("code")
        self.assertEqual(before, world.catalogue.get("code"))
        self.template("code", "New <{message}>")
        self.successResultOf(world.start(world.poller.poll))
        after = world.catalogue.get("code")
        assert before is not None and after is not None
        self.assertEqual(("Know this: abc. ", "New "), (before.text, after.text))
        self.assertNotEqual(before, after)

    def test_unknown(self) -> None:
        """An id that nobody configured has no prompt and no problems."""
        world = self.world({"code": CODE})
        self.assertEqual((None, ()), (world.catalogue.get("none"), world.catalogue.problems("none")))
        self.assertEqual((None, ()), (world.catalogue.get("code"), world.catalogue.problems("code")))  # not read yet


class Values(WorldTest):
    """`Prompt` as a value."""

    PROMPT = Prompt("code", USER_MESSAGE_ONLY, "x" * 1000, digest("x" * 1000))

    def test_frozen(self) -> None:
        """A prompt cannot be changed."""
        with self.assertRaises(FrozenInstanceError):
            self.PROMPT.id = "other"  # type: ignore[misc]

    def test_compared_by_digest(self) -> None:
        """Prompts are compared by everything but the text itself, for which the digest stands."""
        self.assertEqual(self.PROMPT, replace(self.PROMPT, text=""))
        for other in ({"id": "story"}, {"shape": PLAIN_PROMPT}, {"digest": "other"}):
            self.assertNotEqual(self.PROMPT, replace(self.PROMPT, **other))
        self.assertNotIn("xxx", repr(self.PROMPT))

    def test_empty(self) -> None:
        """A prompt with nothing but white space is empty."""
        self.assertEqual([True, True, False], [replace(self.PROMPT, text=text).empty for text in ("", " \n", " a")])
