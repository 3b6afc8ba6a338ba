"""How templates are used."""

from __future__ import annotations

import json
from typing import Any

from twisted.logger import capturedLogs

from bioproxy.learning.shape_learning import FILE, ShapeLearning
from bioproxy.prompts.prompt_shape import USER_MESSAGE_ONLY as BARE
from bioproxy.prompts.prompt_shape import Shape
from bioproxy.runtime.state_folder import StateFolder
from tests.support.folders import FolderTest
from tests.support.world import logged


def told(system: str) -> Shape:
    """Return the shape of a request with a system message."""
    messages = [{"role": "system", "content": system}, {"role": "user", "content": ""}]
    return Shape.of_chat_request({"messages": messages}, ("messages", 1, "content"))


ONE, TWO, THREE = told("one"), told("two"), told("three")


class HabitsTest(FolderTest):
    """Habits with nothing learned yet."""

    def setUp(self) -> None:
        """Make them."""
        super().setUp()
        self.state = StateFolder(self.folder / "state")
        self.state.open()
        self.addCleanup(self.state.close)
        self.shape_learning = ShapeLearning(self.state)

    def ask(self, *shapes: Shape, name: str = "code") -> Shape:
        """Ask first questions in these shapes, one after the other; return the one to warm up in then."""
        for each in shapes:
            self.shape_learning.asked(name, each)
        return self.shape_learning.shape(name)

    def ask_on(self) -> Shape:
        """Ask a later question of a conversation."""
        self.shape_learning.asked("code", None)
        return self.shape_learning.shape("code")

    def again(self) -> ShapeLearning:
        """Return what another bioproxy in this folder knows."""
        shape_learning = ShapeLearning(self.state)
        shape_learning.load()
        return shape_learning


class Shapes(HabitsTest):
    """In which shape to warm up."""

    def test_nobody_asked(self) -> None:
        """Before anybody asked, a bare question is the best guess."""
        self.assertEqual(BARE, self.shape_learning.shape("code"))

    def test_first(self) -> None:
        """The shape of the very first question is taken over at once, that of the second one is not."""
        self.assertEqual(ONE, self.ask(ONE))
        self.assertEqual(ONE, self.ask(TWO))

    def test_used(self) -> None:
        """A shape that was used stays until two first questions in a row have the same other one."""
        self.assertEqual(BARE, self.ask(BARE, TWO))
        self.assertEqual(TWO, self.ask(TWO))

    def test_once_more(self) -> None:
        """After such a change more in a row are asked for, two more each time, and one fewer for each use."""
        self.assertEqual(TWO, self.ask(BARE, TWO, TWO))
        self.assertEqual(TWO, self.ask(ONE, ONE, ONE))
        self.assertEqual(ONE, self.ask(ONE))
        self.assertEqual(ONE, self.ask(ONE, ONE, TWO, TWO, TWO))
        self.assertEqual(TWO, self.ask(TWO))

    def test_slow_clock(self) -> None:
        """A clock that shows the same for three questions is not followed for ever, either, and it is told."""
        minutes = [told(f"It is {minute} past.") for minute in range(30)]
        kept = [self.ask(minute, minute, minute) for minute in minutes]
        self.assertLess(len(set(kept)), 6)
        self.assertEqual(1, len(set(kept[10:])))
        self.assertIn("does it tell the time?", self.shape_learning.note("code") or "")

    def test_refused(self) -> None:
        """A shape that llama-server makes no prompt of is given up for the bare one."""
        self.ask(ONE)
        self.shape_learning.refused("code")
        self.assertEqual(BARE, self.ask())
        self.shape_learning.refused("code")
        self.shape_learning.refused("never asked for")
        self.assertEqual(BARE, self.ask())

    def test_not_in_a_row(self) -> None:
        """Others in turn, or the regular one in between, are not two in a row."""
        self.ask(BARE)
        self.assertEqual(BARE, self.ask(ONE, TWO, ONE, TWO, THREE))
        self.assertEqual(BARE, self.ask(BARE, ONE, BARE, ONE, BARE, ONE))

    def test_two_in_a_row_are_a_use(self) -> None:
        """A shape that two questions had is not given up for a single other one."""
        self.assertEqual(ONE, self.ask(BARE, ONE, ONE, TWO))

    def test_later_turns(self) -> None:
        """Later questions of a conversation teach no shape: the next first question is still the first one."""
        self.assertEqual(BARE, self.ask_on())
        self.assertEqual(BARE, self.ask_on())
        self.assertEqual(ONE, self.ask(ONE))

    def test_later_turns_between(self) -> None:
        """Later questions do not keep two first questions from being in a row."""
        self.ask(BARE, ONE)
        self.ask_on()
        self.assertEqual(ONE, self.ask(ONE))

    def test_not_keepable(self) -> None:
        """What is not worth keeping is not taken over, however often it comes."""
        messages = [{"role": "assistant", "content": "x"}, {"role": "user", "content": ""}]
        history = Shape.of_chat_request({"messages": messages}, ("messages", 1, "content"))
        self.assertEqual(BARE, self.ask(history, history, history))

    def test_each_template(self) -> None:
        """Each template has habits of its own."""
        self.ask(ONE)
        self.ask(TWO, name="story")
        self.assertEqual((ONE, TWO), (self.shape_learning.shape("code"), self.shape_learning.shape("story")))

    def test_told(self) -> None:
        """That another shape is taken over is told in the log, each time."""
        with capturedLogs() as events:
            self.ask(ONE, TWO, TWO)
        self.assertEqual(2, len([line for line in logged(events) if "prompt code" in line]))


class Restless(HabitsTest):
    """Clients with another shape each time."""

    def test_restless(self) -> None:
        """Three different shapes in a row are restless, two are not."""
        self.assertIsNone(self.shape_learning.note("code"))
        self.ask(BARE, ONE, TWO)
        self.assertIsNone(self.shape_learning.note("code"))
        self.ask(THREE)
        self.assertIn("does it tell the time?", self.shape_learning.note("code") or "")
        self.assertIsNone(self.shape_learning.note("story"))

    def test_over(self) -> None:
        """It is over when somebody uses the shape that there is, or when two have the same one."""
        for calm in ((BARE,), (THREE, THREE)):
            self.ask(BARE, BARE)
            self.ask(ONE, TWO, THREE, ONE)
            self.assertIn("does it tell the time?", self.shape_learning.note("code") or "")
            self.ask(*calm)
            self.assertIsNone(self.shape_learning.note("code"), calm)
            self.ask(BARE, BARE)

    def test_clock(self) -> None:
        """A system message that tells the time is restless, and the shape does not run after it."""
        shape = self.ask(told("It is 0 past"))
        for minute in range(1, 60):
            self.assertEqual(shape, self.ask(told(f"It is {minute} past")))
        self.assertIn("does it tell the time?", self.shape_learning.note("code") or "")


class Order(HabitsTest):
    """Which template was asked for last."""

    def test_turn(self) -> None:
        """The later a template was asked for, in whatever shape, the larger its number; 0 if it never was."""
        for name, shape in (
            ("b", BARE),
            ("c", ONE),
            ("a", BARE),
            ("c", BARE),
            ("c", TWO),
        ):
            self.ask(shape, name=name)
        self.assertEqual(["never", "b", "a", "c"], sorted(("a", "b", "c", "never"), key=self.shape_learning.turn))
        self.assertEqual(0, self.shape_learning.turn("never"))

    def test_later_turns(self) -> None:
        """A later question of a conversation counts, too."""
        self.ask(BARE)
        self.ask(BARE, name="story")
        self.ask_on()
        self.assertGreater(self.shape_learning.turn("code"), self.shape_learning.turn("story"))


class Persistence(HabitsTest):
    """What survives a restart."""

    def test_survives(self) -> None:
        """The shape, whether it was learned, and the order do."""
        self.ask(BARE, name="b")
        self.ask(ONE, name="a")
        self.ask(ONE, TWO, TWO, name="c")
        self.ask_on()
        self.shape_learning = self.again()
        names = ("a", "b", "c", "code")
        self.assertEqual([ONE, BARE, TWO, BARE], [self.shape_learning.shape(name) for name in names])
        self.assertEqual(["b", "a", "c", "code"], sorted(names, key=self.shape_learning.turn))
        # One stranger changes nothing, but of "code" only a later question came: nothing was learned from that.
        self.assertEqual([ONE, BARE, TWO, THREE], [self.ask(THREE, name=name) for name in names])

    def test_earlier_version(self) -> None:
        """A file of an earlier version is understood: a shape that was used, or guessed, counts as learned."""
        for used, guesses, expected in ((True, 0, ONE), (False, 1, ONE), (False, 0, TWO)):
            entry = {"shape": ONE.source, "used": used, "guesses": guesses, "turn": 3}
            self.state.write(FILE, {"code": entry})
            self.shape_learning = self.again()
            self.assertEqual((ONE, 3), (self.shape_learning.shape("code"), self.shape_learning.turn("code")))
            self.assertEqual(expected, self.ask(TWO))

    def test_each_question(self) -> None:
        """Whatever question changed something, it is on disk at once."""
        for shape in (BARE, ONE, ONE, TWO, TWO, THREE, TWO):
            for name in ("code", "story"):
                self.ask(shape, name=name)
                again = self.again()
                for known in ("code", "story"):
                    self.assertEqual(self.shape_learning.shape(known), again.shape(known))
                    self.assertEqual(self.shape_learning.turn(known), again.turn(known))

    def test_nothing_to_write(self) -> None:
        """A question that teaches nothing is not written."""
        self.ask(BARE)
        file = self.folder / "state" / FILE
        file.unlink()
        self.ask(BARE, BARE)
        self.assertFalse(file.exists())

    def test_broken_file(self) -> None:
        """A file that is not understood is told in the log, and what is learned then replaces it."""
        entry = {"shape": ONE.source, "settled": True, "turn": 1}
        contents: list[Any] = [[], [1], 1, {"code": 1}, {"code": {}}, {"code": {**entry, "turn": "x"}}]
        contents += [{"code": {**entry, "shape": shape}} for shape in ("", "[]", "{}", "1", '{"messages": 1}')]
        for content in contents:
            (self.folder / "state" / FILE).write_text(json.dumps(content))
            with capturedLogs() as events:
                self.shape_learning = self.again()
            self.assertIn("habits.json is not understood", "".join(logged(events)), content)
            self.assertEqual((BARE, 0), (self.shape_learning.shape("code"), self.shape_learning.turn("code")))
            self.ask(TWO)
            self.assertEqual(TWO, self.again().shape("code"))

    def test_cannot_be_written(self) -> None:
        """Where the file cannot be written that is told in the log, and learning goes on."""
        (self.folder / "state" / FILE).mkdir()
        with capturedLogs() as events:
            self.assertEqual(ONE, self.ask(ONE))
        self.assertIn("habits.json cannot be written", "".join(logged(events)))
