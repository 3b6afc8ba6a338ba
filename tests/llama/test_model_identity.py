"""Telling one model from another, and finding out which one runs."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from bioproxy.llama.answers import FIXED_MARKER
from bioproxy.llama.model_identity import SAMPLE, TOLERANCE, Model
from bioproxy.runtime.errors import LlamaError, UpstreamError
from tests.support.world import SlotTest

ODDS = ((7, -0.5), (8, -1.5), (9, -2.5), (10, -3.5))
NEAR, FAR = TOLERANCE * 0.9, TOLERANCE * 1.1


class Matching(SynchronousTestCase):
    """`Model.matches` and its way through JSON."""

    def test_matches(self) -> None:
        """Equal models have nearly equal odds, in any order, except for the last rank; different models do not."""
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

    def test_names(self) -> None:
        """File and build are only for people: a model that was moved is still the same."""
        self.assertTrue(Model("a", ODDS, "one.gguf", "b1").matches(Model("a", ODDS, "two.gguf", "b2")))

    def test_few_odds(self) -> None:
        """Without any odds nothing is proved; a single one must be the same."""
        self.assertFalse(Model("a", ()).matches(Model("a", ())))
        self.assertTrue(Model("a", ODDS[:1]).matches(Model("a", ODDS[:1])))
        self.assertFalse(Model("a", ODDS[:1]).matches(Model("a", ODDS[1:2])))

    def test_no_number(self) -> None:
        """Odds with a NaN match nothing, at whatever rank it stands."""
        for place in range(len(ODDS)):
            odds = tuple((token, float("nan") if rank == place else odd) for rank, (token, odd) in enumerate(ODDS))
            self.assertFalse(Model("a", ODDS).matches(Model("a", odds)), place)

    def test_json(self) -> None:
        """A model survives JSON unchanged."""
        model = Model("a", ODDS, "model.gguf", "b1")
        self.assertEqual(model, Model.from_json(json.loads(json.dumps(asdict(model)))))

    def test_not_a_model(self) -> None:
        """Anything that is not a model in JSON raises one of the documented errors."""
        values: list[Any] = [None, 1, "x", [], {}, {"facts": "a"}, {"odds": []}, {"facts": "a", "odds": None}]
        told = {"facts": "a", "file": "", "build": ""}
        values += [{**told, "odds": odds} for odds in (1, [1], [[1]], [[1, 2, 3]], [["x", 1]], [[1, None]])]
        values += [{"facts": "a", "odds": [], "file": ""}, {"facts": "a", "odds": [], "build": ""}]
        for value in values:
            with self.assertRaises((KeyError, TypeError, ValueError), msg=str(value)):
                Model.from_json(value)


class FindingOut(SlotTest):
    """`ModelIdentity.find_out`, with a llama-server whose model is already known."""

    def find_out(self) -> tuple[Model, bool]:
        """Find out; return the model and whether its fingerprint was taken for that."""
        before = len(self.server.requests)
        model = self.run_now(self.built.identity.find_out)
        self.assertEqual(model, self.built.identity.current)
        return model, "/completion" in self.asked_since(before)

    def taken(self) -> bool:
        """Find out; return whether the fingerprint was taken."""
        return self.find_out()[1]

    def test_once(self) -> None:
        """The fingerprint is taken once for each process, and the slot is left alone otherwise."""
        before = list(self.server.tokens)
        model, taken = self.find_out()
        self.assertEqual((False, before), (taken, self.server.tokens))
        self.assertEqual(("/models/fake.gguf", "b1-fake"), (model.file, model.build))
        self.assertEqual(tuple(self.server.odds), model.odds)
        self.server.restart()
        again, taken = self.find_out()
        self.assertEqual((model, True), (again, taken))
        self.assertEqual(SAMPLE, self.server.requests[-1][1]["prompt"])
        self.assertFalse(self.taken())

    def test_another_model(self) -> None:
        """Another model at the same path, which says the same about itself, is recognized."""
        model, _ = self.find_out()
        self.server.odds = [(token, odd - 1) for token, odd in self.server.odds]
        self.server.restart()
        self.assertFalse(model.matches(self.find_out()[0]))

    def test_says_other_things(self) -> None:
        """A model with other facts is another one, even in the same process: adapters can be changed."""
        model, _ = self.find_out()
        self.server.answers["/lora-adapters"] = [{"id": 0, "scale": 1.0}]
        other, taken = self.find_out()
        self.assertEqual((True, False), (taken, model.matches(other)))

    def test_switched_meanwhile(self) -> None:
        """Adapters that are switched while the model is found out count, at whichever question that happens."""
        for path in ("/props", "/v1/models", "/lora-adapters", "/slots", "/completion"):
            self.server.answers.pop("/lora-adapters", None)
            self.server.restart(f"<__media_{path}__>")
            before, _ = self.find_out()
            self.server.restart(f"<__media_again_{path}__>")
            self.server.pause_at = {path}
            finding = self.built.start(self.built.identity.find_out)
            self.server.pause_at = set()
            self.server.answers["/lora-adapters"] = [{"id": 0, "scale": 1.0}]
            self.built.slot.model_changed()
            self.server.go_on()
            self.built.settle()
            model = self.successResultOf(finding)
            self.assertFalse(before.matches(model), path)
            self.assertEqual((model, True), (self.built.identity.current, self.built.identity.certain), path)
            self.assertEqual((model, False), self.find_out(), path)

    def test_context(self) -> None:
        """The size of the context is no property of the model."""
        model, _ = self.find_out()
        self.server.context = 8192
        self.server.restart()
        self.assertTrue(model.matches(self.find_out()[0]))

    def test_older_builds(self) -> None:
        """Builds without a random marker are asked each time, because their processes cannot be told apart."""
        self.server.restart(FIXED_MARKER)
        self.assertEqual([True] * 3, [self.taken() for _ in range(3)])

    def test_seen_asleep(self) -> None:
        """Once a process was seen asleep only the fingerprint counts: it may sleep between two looks."""
        self.find_out()
        identity = self.built.identity
        self.assertTrue(identity.certain)
        identity.fell_asleep()
        self.assertEqual((False, False), (identity.certain, identity.current is None))
        self.assertEqual([True] * 3, [self.taken() for _ in range(3)])
        self.assertTrue(identity.certain)
        self.server.restart()
        self.assertEqual([True, False], [self.taken() for _ in range(2)])

    def test_woken_up(self) -> None:
        """After sleep the model is loaded again from its file, and may be another one in the same process."""
        model, _ = self.find_out()
        self.server.asleep = True
        self.server.tokens, self.server.task = [], None
        self.server.odds = [(token, odd - 1) for token, odd in self.server.odds]
        other, taken = self.find_out()
        self.assertEqual((True, False), (taken, model.matches(other)))
        self.server.asleep = False
        self.assertFalse(self.taken())

    def test_slept_unnoticed(self) -> None:
        """Sleep is noticed afterwards too, by a slot in which nothing was done yet."""
        self.server.tokens, self.server.task = [], None
        self.assertTrue(self.taken())

    def test_slept_without_slots(self) -> None:
        """With `--no-slots` the fingerprint is taken again if the process says that it is asleep."""
        self.server.slots_shown = False
        self.assertFalse(self.taken())
        self.server.asleep = True
        self.assertTrue(self.taken())

    def test_unknown_odds(self) -> None:
        """Log-probabilities that are not finite are left out of a fingerprint."""
        self.server.odds = [(7, -0.5), (8, float("-inf")), (9, float("nan"))]
        self.server.restart()
        self.assertEqual(((7, -0.5),), self.find_out()[0].odds)

    def test_trouble(self) -> None:
        """If a request fails, `find_out` fails, and the next one takes the fingerprint."""
        for path in ("/props", "/v1/models", "/slots", "/completion"):
            self.server.restart(f"<__media_{path}__>")
            self.server.answers = {path: "nonsense"}
            self.failureResultOf(self.built.start(self.built.identity.find_out), UpstreamError)
            self.server.answers = {}
            self.assertTrue(self.taken(), path)
        self.server.loading = True
        self.failureResultOf(self.built.start(self.built.identity.find_out), LlamaError)

    def test_met(self) -> None:
        """The model is unknown as soon as another process was met, and stays known otherwise."""
        for marker, known in ((self.server.marker, True), ("<__media_other__>", False)):
            self.server.marker = marker
            self.built.identity.met(self.run_now(self.built.llama.props))
            self.assertEqual(known, self.built.identity.current is not None)
