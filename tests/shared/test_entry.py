"""An entry of the shared shelf, as a value and as JSON."""

from __future__ import annotations

import json
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from bioproxy.runtime.state_folder import MALFORMED
from bioproxy.shared.entry import entry_from_json, same_content
from bioproxy.slot_files.snapshot import CHAT, PART
from tests.shared.support import OTHER, chat, entry, snapshot


class Entries(SynchronousTestCase):
    """Entries."""

    def read(self, stem: str, **changed: Any) -> Any:
        """Read an entry's JSON with these changes."""
        return entry_from_json(stem, {**json.loads(json.dumps(entry().to_json())), **changed})

    def test_round_trip(self) -> None:
        """What was written is read."""
        for each in (entry(), chat(4, 2)):
            self.assertEqual(each, entry_from_json(each.stem, json.loads(json.dumps(each.to_json()))))

    def test_names(self) -> None:
        """No name leads elsewhere, or takes the place of another file."""
        self.read("code.prefix.x")
        evil = {"prompt": "../code", "filename": "../code.bin"}
        kinds = ({"kind": CHAT, "filename": "code.chat.bin"}, {"kind": PART, "filename": "code.part.bin"})
        for stem, changed in (
            ("other.prefix.x", {}),
            ("../code.prefix.x", evil),
            ("code.chat.x", kinds[0]),
            ("code.part.x", kinds[1]),
        ):
            self.assertRaises(ValueError, self.read, stem, **changed)

    def test_malformed(self) -> None:
        """What is no entry, or one of a newer version, raises one of `MALFORMED`."""
        for changed in ({"format": 2}, {"modified": None}, {"size": "x"}, {"unknown": 1}, {"filename": "x.bin"}):
            self.assertRaises(MALFORMED, self.read, "code.prefix.x", **changed)
        others: list[Any] = [[], None, "x", {}]
        for content in others:
            self.assertRaises(MALFORMED, entry_from_json, "code.prefix.x", content)

    def test_replaced(self) -> None:
        """A newer file of the same prompt and model takes the place of an older one; never each that of the other."""
        old, new = entry(1), entry(2)
        self.assertEqual((True, False), (old.replaced_by(new), new.replaced_by(old)))
        self.assertFalse(old.replaced_by(old))
        same = entry(1)
        self.assertNotEqual(old.replaced_by(same), same.replaced_by(old))
        self.assertFalse(old.replaced_by(entry(2, model=OTHER)) or old.replaced_by(entry(2, name="story")))

    def test_same_content(self) -> None:
        """The same tokens of the same prompt, whatever the file is called; another text or model is another content."""
        self.assertTrue(same_content(snapshot(), snapshot("story")))
        self.assertFalse(same_content(snapshot(), snapshot(text="other")))
        self.assertFalse(same_content(snapshot(), snapshot(model=OTHER)))
