"""How templates are used."""

from __future__ import annotations

import json
from typing import Any

from twisted.logger import capturedLogs

from bioproxy.prompts.prompt_shape import USER_MESSAGE_ONLY, Shape
from bioproxy.runtime.state_folder import StateFolder
from bioproxy.warmup.shape_learning import FILE, GUESSES, ShapeLearning
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
            self.shape_learning.asked(name, each.digest, each)
        return self.shape_learning.shape(name)

    def ask_on(self, shape: Shape) -> Shape:
        """Ask a later question of a conversation."""
        self.shape_learning.asked("code", shape.digest, None)
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
        self.assertEqual(USER_MESSAGE_ONLY, self.shape_learning.shape("code"))

    def test_unused(self) -> None:
        """A shape that nobody has used is replaced at once by one that somebody has."""
        self.assertEqual(ONE, self.ask(ONE))
        self.assertEqual(TWO, self.ask(TWO))

    def test_used(self) -> None:
        """A shape that was used stays until two first questions in a row have the same other one."""
        self.assertEqual(USER_MESSAGE_ONLY, self.ask(USER_MESSAGE_ONLY, TWO))
        self.assertEqual(TWO, self.ask(TWO))

    def test_once_more(self) -> None:
        """After such a change more in a row are asked for, two more each time, and one fewer for each use."""
        self.assertEqual(TWO, self.ask(USER_MESSAGE_ONLY, TWO, TWO))
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
        self.assertTrue(self.shape_learning.restless("code"))

    def test_refused(self) -> None:
        """A shape that llama-server makes no prompt of is given up for the bare one."""
        self.ask(ONE)
        self.shape_learning.refused("code")
        self.assertEqual(USER_MESSAGE_ONLY, self.ask())
        self.shape_learning.refused("code")
        self.shape_learning.refused("never asked for")
        self.assertEqual(USER_MESSAGE_ONLY, self.ask())

    def test_not_in_a_row(self) -> None:
        """Others in turn, or the regular one in between, are not two in a row."""
        self.ask(USER_MESSAGE_ONLY)
        self.assertEqual(USER_MESSAGE_ONLY, self.ask(ONE, TWO, ONE, TWO, THREE))
        self.assertEqual(
            USER_MESSAGE_ONLY, self.ask(USER_MESSAGE_ONLY, ONE, USER_MESSAGE_ONLY, ONE, USER_MESSAGE_ONLY, ONE)
        )

    def test_two_in_a_row_are_a_use(self) -> None:
        """A shape that two questions had is not given up for a single other one."""
        self.assertEqual(ONE, self.ask(USER_MESSAGE_ONLY, ONE, ONE, TWO))

    def test_vain_guesses(self) -> None:
        """After some guesses that nobody used the next shape is not guessed at; two in a row still count."""
        shapes = [told(f"It is {hour} o'clock") for hour in range(10)]
        self.assertEqual(shapes[GUESSES - 1], self.ask(*shapes))
        self.assertEqual(ONE, self.ask(ONE, ONE))

    def test_later_turns(self) -> None:
        """Later turns of a conversation tell nothing new, but are a use of the shape that they have."""
        self.assertEqual(USER_MESSAGE_ONLY, self.ask_on(ONE))
        self.assertEqual(USER_MESSAGE_ONLY, self.ask_on(ONE))
        self.assertEqual(ONE, self.ask(ONE))
        self.assertEqual(ONE, self.ask_on(ONE))
        self.assertEqual(ONE, self.ask(TWO))

    def test_later_turns_between(self) -> None:
        """Later turns in another shape do not keep two first questions from being in a row."""
        self.ask(USER_MESSAGE_ONLY, ONE)
        self.ask_on(TWO)
        self.assertEqual(ONE, self.ask(ONE))

    def test_not_keepable(self) -> None:
        """What is not worth keeping is not taken over, however often it comes."""
        messages = [{"role": "assistant", "content": "x"}, {"role": "user", "content": ""}]
        history = Shape.of_chat_request({"messages": messages}, ("messages", 1, "content"))
        self.assertEqual(USER_MESSAGE_ONLY, self.ask(history, history, history))

    def test_each_template(self) -> None:
        """Each template has habits of its own."""
        self.ask(ONE)
        self.ask(TWO, name="story")
        self.assertEqual((ONE, TWO), (self.shape_learning.shape("code"), self.shape_learning.shape("story")))

    def test_told(self) -> None:
        """That another shape is taken over is told in the log, each time."""
        with capturedLogs() as events:
            self.ask(ONE, ONE, ONE, TWO, TWO)
        self.assertEqual(2, len([line for line in logged(events) if "template code" in line]))


class Restless(HabitsTest):
    """Clients with another shape each time."""

    def test_restless(self) -> None:
        """Three different shapes in a row are restless, two are not."""
        self.assertFalse(self.shape_learning.restless("code"))
        self.ask(USER_MESSAGE_ONLY, ONE, TWO)
        self.assertFalse(self.shape_learning.restless("code"))
        self.ask(THREE)
        self.assertTrue(self.shape_learning.restless("code"))
        self.assertFalse(self.shape_learning.restless("story"))

    def test_over(self) -> None:
        """It is over when somebody uses the shape that there is, or when two have the same one."""
        for calm in ((USER_MESSAGE_ONLY,), (THREE, THREE)):
            self.ask(USER_MESSAGE_ONLY, USER_MESSAGE_ONLY)
            self.ask(ONE, TWO, THREE, ONE)
            self.assertTrue(self.shape_learning.restless("code"))
            self.ask(*calm)
            self.assertFalse(self.shape_learning.restless("code"), calm)
            self.ask(USER_MESSAGE_ONLY, USER_MESSAGE_ONLY)

    def test_clock(self) -> None:
        """A system message that tells the time is restless, and the shape does not run after it."""
        self.ask(*(told(f"It is {minute} past") for minute in range(GUESSES)))
        shape = self.shape_learning.shape("code")
        for minute in range(GUESSES, 60):
            self.assertEqual(shape, self.ask(told(f"It is {minute} past")))
        self.assertTrue(self.shape_learning.restless("code"))


class Order(HabitsTest):
    """Which template was asked for last."""

    def test_turn(self) -> None:
        """The later a template was asked for, in whatever shape, the larger its number; 0 if it never was."""
        for name, shape in (
            ("b", USER_MESSAGE_ONLY),
            ("c", ONE),
            ("a", USER_MESSAGE_ONLY),
            ("c", USER_MESSAGE_ONLY),
            ("c", TWO),
        ):
            self.ask(shape, name=name)
        self.assertEqual(["never", "b", "a", "c"], sorted(("a", "b", "c", "never"), key=self.shape_learning.turn))
        self.assertEqual(0, self.shape_learning.turn("never"))

    def test_later_turns(self) -> None:
        """A later question of a conversation counts, too."""
        self.ask(USER_MESSAGE_ONLY)
        self.ask(USER_MESSAGE_ONLY, name="story")
        self.ask_on(ONE)
        self.assertGreater(self.shape_learning.turn("code"), self.shape_learning.turn("story"))


class Persistence(HabitsTest):
    """What survives a restart."""

    def test_survives(self) -> None:
        """The shape, whether it was used, vain guesses and the order do."""
        self.ask(USER_MESSAGE_ONLY, name="b")
        self.ask(ONE, name="a")
        self.ask(ONE, TWO, name="c")
        self.shape_learning = self.again()
        found = [self.shape_learning.shape(name) for name in "abc"]
        self.assertEqual([ONE, USER_MESSAGE_ONLY, TWO], found)
        self.assertEqual(["b", "a", "c"], sorted("abc", key=self.shape_learning.turn))
        # "b" was used, so one stranger changes nothing; "a" was a first guess, so another is made; "c" had its guesses.
        self.assertEqual([TWO, USER_MESSAGE_ONLY, THREE], [self.ask(THREE, name=name) for name in "cba"])
        self.assertEqual(["c", "b", "a"], sorted("abc", key=self.shape_learning.turn))

    def test_use_survives(self) -> None:
        """That a guess was right is remembered."""
        self.ask(ONE, ONE)
        self.shape_learning = self.again()
        self.assertEqual(ONE, self.ask(TWO))

    def test_each_question(self) -> None:
        """Whatever question changed something, it is on disk at once."""
        for shape in (USER_MESSAGE_ONLY, ONE, ONE, TWO, TWO, THREE, TWO):
            for name in ("code", "story"):
                self.ask(shape, name=name)
                again = self.again()
                for known in ("code", "story"):
                    self.assertEqual(self.shape_learning.shape(known), again.shape(known))
                    self.assertEqual(self.shape_learning.turn(known), again.turn(known))

    def test_nothing_to_write(self) -> None:
        """A question that teaches nothing is not written."""
        self.ask(USER_MESSAGE_ONLY)
        file = self.folder / "state" / FILE
        file.unlink()
        self.ask(USER_MESSAGE_ONLY, USER_MESSAGE_ONLY)
        self.assertFalse(file.exists())

    def test_broken_file(self) -> None:
        """A file that is not understood is told in the log, and what is learned then replaces it."""
        entry = {"shape": ONE.source, "used": True, "guesses": 0, "turn": 1}
        contents: list[Any] = [[], [1], 1, {"code": 1}, {"code": {}}, {"code": {**entry, "turn": "x"}}]
        contents += [{"code": {**entry, "shape": shape}} for shape in ("", "[]", "{}", "1", '{"messages": 1}')]
        for content in contents:
            (self.folder / "state" / FILE).write_text(json.dumps(content))
            with capturedLogs() as events:
                self.shape_learning = self.again()
            self.assertIn("habits.json is not understood", "".join(logged(events)), content)
            self.assertEqual(
                (USER_MESSAGE_ONLY, 0), (self.shape_learning.shape("code"), self.shape_learning.turn("code"))
            )
            self.ask(TWO)
            self.assertEqual(TWO, self.again().shape("code"))

    def test_cannot_be_written(self) -> None:
        """Where the file cannot be written that is told in the log, and learning goes on."""
        (self.folder / "state" / FILE).mkdir()
        with capturedLogs() as events:
            self.assertEqual(ONE, self.ask(ONE))
        self.assertIn("habits.json cannot be written", "".join(logged(events)))
