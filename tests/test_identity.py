"""Telling one model from another; the questions to llama-server are tested elsewhere."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from bioproxy.identity import TOLERANCE, Model

ODDS = ((7, -0.5), (8, -1.5), (9, -2.5), (10, -3.5))
NEAR, FAR = TOLERANCE * 0.9, TOLERANCE * 1.1


class Matching(SynchronousTestCase):
    """`Model.matches` and its way through JSON."""

    def test_matches(self) -> None:
        """The same model shows about the same odds, in any order, but for the last rank; another one does not."""
        for expected, facts, odds in (
            (True, "a", ODDS),
            (True, "a", tuple((token, odd + NEAR) for token, odd in ODDS)),
            (True, "a", ODDS[::-1]),
            (True, "a", (*ODDS[:3], (11, -3.5))),
            (False, "b", ODDS),
            (False, "a", ODDS[:3]),
            (False, "a", ()),
            (False, "a", (*ODDS[:3], (10, -3.5 - FAR))),
            (False, "a", ((7, -0.5 + FAR), *ODDS[1:])),
            (False, "a", (*ODDS[:2], (11, -2.5), (12, -3.5))),
            (False, "a", ((8, -0.5), (7, -1.5), *ODDS[2:])),
            (False, "a", ((7, -0.5), (8, -1.5), (9, -2.5), (10, float("inf")))),
        ):
            one, two = Model("a", ODDS), Model(facts, odds)
            self.assertEqual(expected, one.matches(two), (facts, odds))
            self.assertEqual(expected, two.matches(one), (facts, odds))

    def test_few_odds(self) -> None:
        """Without any odds nothing is proved; a single one must be the same."""
        self.assertFalse(Model("a", ()).matches(Model("a", ())))
        self.assertTrue(Model("a", ODDS[:1]).matches(Model("a", ODDS[:1])))
        self.assertFalse(Model("a", ODDS[:1]).matches(Model("a", ODDS[1:2])))

    def test_no_number(self) -> None:
        """Odds that are no numbers match nothing, wherever they stand."""
        for place in range(len(ODDS)):
            odds = tuple((token, float("nan") if rank == place else odd) for rank, (token, odd) in enumerate(ODDS))
            self.assertFalse(Model("a", ODDS).matches(Model("a", odds)), place)

    def test_json(self) -> None:
        """A model comes back from JSON as it was."""
        model = Model("a", ODDS)
        self.assertEqual(model, Model.from_json(json.loads(json.dumps(asdict(model)))))

    def test_not_a_model(self) -> None:
        """Anything else in its place is one of the errors that a reader of the record expects."""
        values: list[Any] = [None, 1, "x", [], {}, {"facts": "a"}, {"odds": []}, {"facts": "a", "odds": None}]
        values += [{"facts": "a", "odds": odds} for odds in (1, [1], [[1]], [[1, 2, 3]], [["x", 1]], [[1, None]])]
        for value in values:
            with self.assertRaises((KeyError, TypeError, ValueError), msg=str(value)):
                Model.from_json(value)
