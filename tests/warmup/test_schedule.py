"""Which prompt is warmed up next, also where no files can be used."""

from __future__ import annotations

import shutil

from bioproxy.prompts.prompt_shape import USER_MESSAGE_ONLY
from tests.support.fakes import tokens
from tests.support.world import BOTH, CODE, WarmTest


class Order(WarmTest):
    """Which template comes first, and which one the slot is left with."""

    def use_three(self, *asked: str) -> None:
        """Have three templates, of which some were asked for, in this order."""
        self.use({name: f"Template {name} <{{message}}>" for name in "abc"})
        for name in asked:
            self.built.shape_learning.asked(name, USER_MESSAGE_ONLY)

    def test_last_use(self) -> None:
        """The one that was asked for last is warmed up last, so that the slot is left with it."""
        for asked, expected in (((), "abc"), ("a", "bca"), ("ba", "cba"), ("bca", "bca"), ("aba", "cba")):
            self.use_three(*asked)
            self.rounds()
            self.assertEqual([f"{name}.bin" for name in expected], self.slot_calls("save"))
            self.assertEqual(tokens(f"<user>Template {expected[-1]} "), self.server.tokens)
            self.assertEqual([], self.rounds(3))
            self.built.close()
            shutil.rmtree(self.folder / "state")

    def test_held_first(self) -> None:
        """What a user has just had computed is saved before anything else is warmed up, then comes back."""
        self.use_three()
        self.built.chat("@b x")
        self.rounds()
        self.assertEqual(["b.bin", "a.bin", "c.bin"], self.slot_calls("save"))
        self.assertEqual((["b.bin"], "warm"), (self.slot_calls("restore"), self.state("b")))
        self.assertEqual(("hot", len(tokens("<user>Template b "))), self.ask("@b y"))


class WithoutFiles(WarmTest):
    """Where llama-server keeps no slot files: one template can be warm, in the slot."""

    def test_first_one(self) -> None:
        """The first template is warmed up in the slot, once; a user has it hot."""
        self.use(BOTH, files=False, head_start=False)
        self.rounds()
        self.assertEqual(("warm", "cold"), (self.state("code"), self.state("story")))
        self.assertEqual([], self.rounds(5))
        self.assertEqual("hot", self.built.chat("@code why?").headers["x-bioproxy-cache"])
        self.assertEqual([], self.rounds(5))

    def test_last_asked(self) -> None:
        """The template that was asked for last is brought back when the slot was used for something else."""
        self.use(BOTH, files=False)
        self.rounds()
        self.built.chat("@story a chair")
        self.rounds()  # the tokens of what the slot holds are made once
        self.assertEqual([], self.rounds(3))
        self.assertEqual(("cold", "warm"), (self.state("code"), self.state("story")))
        self.built.chat("hello")
        self.assertEqual(("cold", "cold"), (self.state("code"), self.state("story")))
        self.rounds()
        self.assertEqual(("cold", "warm"), (self.state("code"), self.state("story")))

    def test_no_witness(self) -> None:
        """Where the slot cannot be seen either, nothing is warmed up again and again."""
        self.use(files=False)
        self.server.slots_shown = False
        self.rounds()
        self.assertEqual([], self.rounds(5))
        self.built.chat("@code why?")
        self.assertEqual([], self.rounds(5))

    def test_other_shape(self) -> None:
        """What a user has left there in another shape is not replaced by the usual one."""
        self.use(files=False, head_start=False)
        self.rounds()
        self.built.chat("@code why?")
        self.built.chat("@code why?", system="s")
        self.assertEqual([], self.rounds(5))
        self.assertEqual(("hot", True), (self.ask("@code when?", system="s")[0], self.built.content.left_by_user))

    def test_bare_template_first(self) -> None:
        """A template with nothing to warm does not take the place of one that has something."""
        self.use({"bare": "<{message}>", "code": CODE}, files=False)
        self.rounds(2)
        self.assertEqual("warm", self.state("code"))
