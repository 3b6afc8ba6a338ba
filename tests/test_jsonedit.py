"""Replacing values in a JSON text: every other byte stays."""

from __future__ import annotations

import copy
import json
import random
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from bioproxy import jsonedit
from bioproxy.jsonedit import Path, find, replace

# Text, path, and the text with the value there replaced by "N".
REPLACED: list[tuple[str, Path, str]] = [
    ('{"a":1}', ("a",), '{"a":"N"}'),
    (' \r\n{\t"a" :\n1 , "b": 2 }\n', ("a",), ' \r\n{\t"a" :\n"N" , "b": 2 }\n'),
    ('{"big":1e400,"a":0,"ten":1.10,"minus":-0,"long":12345678901234567890.0}', ("a",), ""),
    ('{"k":1,"k":2,"a":0,"k":3}', ("a",), ""),
    ('{"k":1,"k":2}', ("k",), '{"k":1,"k":"N"}'),
    ('{"k":{"a":1},"k":{"b":2}}', ("k", "b"), '{"k":{"a":1},"k":{"b":"N"}}'),
    (r'{"\u0061":1}', ("a",), r'{"\u0061":"N"}'),
    (r'{"s":"\u00e9\/\n\"}]","é":"\\","half":"\ud800","a":0}', ("a",), ""),
    (r'{"a":"}\"]"}', ("a",), '{"a":"N"}'),
    ('{"a":[[1,2],[3,4]],"b":[]}', ("a", 1, 0), '{"a":[[1,2],["N",4]],"b":[]}'),
    ('{"a":[{},{"0":[null,true]}]}', ("a", 1, "0", 1), '{"a":[{},{"0":[null,"N"]}]}'),
    ('{"a":{"b":[1]},"c":2}', ("a",), '{"a":"N","c":2}'),
    ("[ 1 , 2 ]", (1,), '[ 1 , "N" ]'),
    ('{"":0}', ("",), '{"":"N"}'),
]

# Text, and the text with "a": 0 added.
ADDED = [
    ("{}", '{"a": 0}'),
    (" { } ", ' {"a": 0 } '),
    ('{"b":1.10}', '{"a": 0, "b":1.10}'),
    ('\n{\n  "b": {"a": 1}\n}', '\n{"a": 0, \n  "b": {"a": 1}\n}'),
]

MISSING: list[tuple[str, Path]] = [
    ('{"a":{}}', ("a", "b")),
    ('{"a":[1]}', ("a", 1)),
    ('{"a":[1]}', ("a", "0")),
    ('{"a":{"0":1}}', ("a", 0)),
    ('{"a":"text"}', ("a", 0)),
    ("{}", (0,)),
    ("[]", (0,)),
    ("[1]", ("a", "b")),
]


class Replacing(SynchronousTestCase):
    """`replace` and `find`."""

    def test_replaced(self) -> None:
        """The value changes, and nothing around it: numbers, repeated keys, white space, escapes."""
        for text, path, expected in REPLACED:
            # Where none is given, the value is the only 0 after an "a".
            self.assertEqual(expected or text.replace('"a":0', '"a":"N"'), replace(text, {path: "N"}), text)

    def test_added(self) -> None:
        """A key that the outermost object does not have is added in front."""
        for text, expected in ADDED:
            self.assertEqual(expected, replace(text, {("a",): 0}))

    def test_several(self) -> None:
        """Several places are replaced at once, in whatever order they are given."""
        values: dict[Path, Any] = {("b", 1): "long " * 9, ("a",): None, ("new",): [], ("c",): ""}
        expected = f'{{"new": [], "a":null,"b":[2,"{"long " * 9}"],"c":""}}'
        for order in (list(values), list(values)[::-1]):
            self.assertEqual(expected, replace('{"a":1,"b":[2,3],"c":4}', {path: values[path] for path in order}))
        self.assertEqual(' {"a":1.10}', replace(' {"a":1.10}', {}))

    def test_several_added(self) -> None:
        """Several missing keys are added, to an empty object too."""
        for text in ("{}", '{"c":3}'):
            values: dict[Path, Any] = {("a",): 1, ("b",): 2}
            self.assertEqual({**json.loads(text), "a": 1, "b": 2}, json.loads(replace(text, values)))

    def test_half_characters(self) -> None:
        """Half a character goes in as an escape: the text can be encoded."""
        self.assertEqual(rb'{"a":"\ud83d\u00e9"}', replace('{"a":0}', {("a",): "\ud83dé"}).encode())

    def test_missing(self) -> None:
        """A path that leads nowhere is a `KeyError`."""
        for text, path in MISSING:
            self.assertEqual({}, find(text, [path]))
            with self.assertRaises(KeyError, msg=f"{text} {path}"):
                replace(text, {path: 0})

    def test_no_object(self) -> None:
        """A key is not added to something that is no object."""
        for text in ("[]", "[1]", '"text"', "1"):
            with self.assertRaises(KeyError, msg=text):
                replace(text, {("a",): 0})

    def test_many_values(self) -> None:
        """Every part of the text is decoded a few times at most, however many values are replaced."""
        text = json.dumps({"messages": [{"content": str(number)} for number in range(300)]})
        decoded: list[int] = []
        decode = jsonedit._decode

        def counted(text: str, at: int) -> tuple[Any, int]:
            value, end = decode(text, at)
            decoded.append(end - at)
            return value, end

        self.patch(jsonedit, "_decode", counted)
        values: dict[Path, Any] = {("messages", number, "content"): "new" for number in range(300)}
        result = json.loads(replace(text, values))
        self.assertEqual({"messages": [{"content": "new"}] * 300}, result)
        self.assertLess(sum(decoded), 5 * len(text))

    def test_random_documents(self) -> None:
        """For any document and any place in it, just this value changes, and no character outside it."""
        dice = random.Random(8081)
        for _ in range(400):
            document = value(dice, 4, outermost=True)
            text = written(dice, document)
            self.assertEqual(document, json.loads(text))
            paths = list(places(document))
            if not paths:
                continue
            path, new = dice.choice(paths), value(dice, 2)
            start, end = find(text, [path])[path]
            result = replace(text, {path: new})
            self.assertEqual((text[:start], text[end:]), (result[:start], result[len(result) - len(text) + end :]))
            *way, last = path
            expected = copy.deepcopy(document)
            owner = expected
            for step in way:
                owner = owner[step]
            self.assertEqual(owner[last], json.loads(text[start:end]))
            owner[last] = new
            self.assertEqual(expected, json.loads(result))


TEXTS = ["", "a", "b", "id_slot", '"', "\\", "}]", "é", "\ud800", "\n", "\U0001f600", "0", '"a":{']
PLAIN = [None, True, False, 0, -1.5, 1e300, 10**30, *TEXTS]


def value(dice: random.Random, depth: int, outermost: bool = False) -> Any:
    """Make up a JSON value."""
    kind = dice.choice("oa" if outermost else "oapp") if depth else "p"
    if kind == "p":
        return dice.choice(PLAIN)
    values = [value(dice, depth - 1) for _ in range(dice.randrange(5))]
    return values if kind == "a" else {dice.choice(TEXTS): each for each in values}


def places(document: Any) -> list[Path]:
    """Return all paths in a document."""
    if not isinstance(document, dict | list):
        return []
    steps = document.items() if isinstance(document, dict) else enumerate(document)
    return [path for step, inner in steps for path in ((step,), *((step, *rest) for rest in places(inner)))]


def written(dice: random.Random, document: Any) -> str:
    """Write a document down with white space and escapes as they come."""

    def space() -> str:
        return "".join(dice.choices(" \t\r\n", k=dice.randrange(3)))

    if isinstance(document, dict):
        pairs = [f"{written(dice, key)}:{written(dice, each)}" for key, each in document.items()]
        # Now and then a key is there twice: the first one does not count.
        pairs = pairs[:1] * dice.choice((0, 0, 1)) + pairs
        inside = "{" + (",".join(pairs) or space()) + "}"
    elif isinstance(document, list):
        inside = "[" + (",".join(written(dice, each) for each in document) or space()) + "]"
    else:
        inside = json.dumps(document, ensure_ascii=document == "\ud800" or dice.random() < 0.5)
    return space() + inside + space()
