"""What of the shelf is of use: nothing without a folder, and nothing of another model, text or shape."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.task import Clock

from bioproxy.llama.model_identity import Model
from bioproxy.prompts.prompt_shape import Key
from bioproxy.shared.finding import Finding
from tests.shared.support import MODEL, OTHER, SharedFolderTest, Threads, view_of


def identity_of(model: Model) -> Any:
    """Return what knows for certain that this model runs."""
    return SimpleNamespace(current=model, certain=True)


class Found(SharedFolderTest):
    """`Finding`, with a folder that has one prompt."""

    def setUp(self) -> None:
        """Look at the folder, and know the model."""
        super().setUp()
        self.entry = self.publish()
        self.view = view_of(self.path, Clock(), Threads())
        self.identity = identity_of(MODEL)
        self.finding = Finding(self.view, self.identity)
        self.key = self.entry.snapshot.key

    def look(self) -> None:
        """Check the folder, and see what is there."""
        for work in (self.view.check, self.view.look):
            self.successResultOf(Deferred.fromCoroutine(work()))

    def test_not_looked_at(self) -> None:
        """Before the folder was checked nothing is found, and the model is known all the same."""
        self.assertEqual((None, None), (self.finding.model, self.finding.prompt("code", self.key)))
        self.assertEqual(MODEL, self.finding.certain_model)

    def test_prompt(self) -> None:
        """A prompt is found for its text, its shape and its model; the name alone does not count."""
        self.look()
        self.assertEqual(self.entry, self.finding.prompt("code", self.key))
        self.assertIsNone(self.finding.prompt("notes", self.key))
        self.assertIsNone(self.finding.prompt("code", Key("", "another text")))
        self.identity.current = OTHER
        self.assertIsNone(self.finding.prompt("code", self.key))

    def test_uncertain(self) -> None:
        """A model that is only believed to run serves for a look-up, and is not certain."""
        self.look()
        self.identity.certain = False
        self.assertEqual((MODEL, None), (self.finding.model, self.finding.certain_model))
        self.assertEqual(self.entry, self.finding.prompt("code", self.key))

    def test_unknown(self) -> None:
        """Without a model there is nothing."""
        self.look()
        self.identity.current, self.identity.certain = None, False
        self.assertEqual((None, None), (self.finding.model, self.finding.prompt("code", self.key)))
