"""The learned prompts: what they are called, how many are kept, and what a restart finds."""

from __future__ import annotations

import json
from dataclasses import replace

from twisted.logger import capturedLogs

from bioproxy.prompts.learned_prompts import FILE, MOST, LearnedPrompt, LearnedPrompts, whole_key
from bioproxy.prompts.prompt_ids import is_learned
from bioproxy.prompts.prompt_shape import Shape
from bioproxy.runtime.state_folder import StateFolder
from tests.support.folders import FolderTest
from tests.support.world import logged


def shape(system: str) -> Shape:
    """Return the beginning with this system message."""
    return Shape.of([{"role": "system", "content": system}], {}, [], {})


class Store(FolderTest):
    """`LearnedPrompts`."""

    def setUp(self) -> None:
        """Begin with an empty folder."""
        super().setUp()
        self.state = StateFolder(self.folder)
        self.state.open()
        self.addCleanup(self.state.close)
        self.learned = LearnedPrompts(self.state)
        self.learned.load()

    def again(self) -> LearnedPrompts:
        """Return what a restart finds."""
        learned = LearnedPrompts(self.state)
        learned.load()
        return learned

    def test_names_and_keys(self) -> None:
        """Whole prompts and parts of them have names and keys of their own; that of a whole one is its requests'."""
        whole, part, other = LearnedPrompt(shape("a")), LearnedPrompt(shape("a"), 64, "m"), LearnedPrompt(shape("b"))
        self.assertEqual(3, len({whole.id, part.id, other.id}))
        self.assertEqual(3, len({whole.key, part.key, other.key}))
        self.assertTrue(all(is_learned(each.id) for each in (whole, part, other)))
        self.assertEqual(whole_key(shape("a")), whole.key)
        # A part is the same, whichever beginning it was learned from.
        self.assertEqual(part.id, replace(part, shape=shape("b")).id)

    def test_restart(self) -> None:
        """A restart finds all of them, in the order of use."""
        prompts = [LearnedPrompt(shape("a")), LearnedPrompt(shape("b"), 128, "mark")]
        for each in prompts:
            self.learned.add(each)
        self.assertEqual([each.id for each in prompts], list(self.again()))
        self.assertEqual(prompts, [self.again().get(each.id) for each in prompts])
        self.assertEqual(0o600, (self.folder / FILE).stat().st_mode & 0o777)

    def test_whole_and_cuts(self) -> None:
        """A whole prompt is found by its beginning; a part is not."""
        whole, part = LearnedPrompt(shape("a")), LearnedPrompt(shape("b"), 128, "mark")
        self.learned.add(whole)
        self.learned.add(part)
        self.assertEqual((whole, None), (self.learned.whole(shape("a")), self.learned.whole(shape("b"))))
        self.assertEqual([part], self.learned.cuts())

    def test_limit(self) -> None:
        """Of too many, the one that was not used for the longest time is forgotten."""
        prompts = [LearnedPrompt(shape(f"{number}")) for number in range(MOST + 1)]
        for each in prompts[:MOST]:
            self.assertEqual([], self.learned.add(each))
        self.learned.used(prompts[0].id)
        self.assertEqual([prompts[1].id], self.learned.add(prompts[MOST]))
        self.assertEqual(MOST, len(self.learned))
        self.assertIsNone(self.learned.get(prompts[1].id))

    def test_forget(self) -> None:
        """What is forgotten is not in the file any more."""
        prompt = LearnedPrompt(shape("secret"))
        self.learned.add(prompt)
        self.assertTrue(self.learned.forget(prompt.id))
        self.assertFalse(self.learned.forget(prompt.id))
        self.assertNotIn("secret", (self.folder / FILE).read_text())
        self.assertEqual([], list(self.again()))

    def test_broken_file(self) -> None:
        """A file that is not understood costs what it had, and one line in the log."""
        self.learned.add(LearnedPrompt(shape("a")))
        good = json.loads((self.folder / FILE).read_text())
        [prompt] = good["prompts"]
        for broken in (
            {**good, "format": 2},
            {**good, "prompts": 5},
            {**good, "prompts": [{}]},
            {**good, "prompts": [{**prompt, "shape": "{}"}]},
            {**good, "prompts": [{**prompt, "cut": "5"}]},
            {**good, "prompts": [{**prompt, "cut": 0}]},
            {**good, "prompts": [{**prompt, "shape": shape("a").source.replace("system", "assistant")}]},
        ):
            (self.folder / FILE).write_text(json.dumps(broken))
            with capturedLogs() as events:
                self.assertEqual([], list(self.again()), broken)
            self.assertEqual(1, len(logged(events)), broken)

    def test_full_disk(self) -> None:
        """What cannot be written is known all the same, and told once."""
        (self.folder / FILE).with_suffix(".new").mkdir()
        with capturedLogs() as events:
            self.learned.add(LearnedPrompt(shape("a")))
            self.learned.add(LearnedPrompt(shape("b")))
        self.assertEqual((2, 1), (len(self.learned), len(logged(events))))
