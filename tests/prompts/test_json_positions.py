"""Positions of values in a JSON text."""

from __future__ import annotations

import json
import random
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from bioproxy.prompts import json_positions
from bioproxy.prompts.json_positions import Path, find, first_member, trimmed

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


def replace(text: str, path: Path, value: str) -> str:
    """Return the text with the value at a path replaced."""
    begin, end = find(text, [path])[path]
    return text[:begin] + value + text[end:]


class Finding(SynchronousTestCase):
    """`find`, `first_member` and `trimmed`."""

    def test_replaced(self) -> None:
        """Only the value changes; numbers, repeated keys, white space and escapes around it stay the same."""
        for text, path, expected in REPLACED:
            # Without an expected text, the value is the only 0 behind an "a".
            self.assertEqual(expected or text.replace('"a":0', '"a":"N"'), replace(text, path, '"N"'), text)

    def test_added(self) -> None:
        """A new key can be inserted in front of the members of the outermost object."""
        for text, expected in ADDED:
            at, empty = first_member(text)
            self.assertEqual(expected, text[:at] + ('"a": 0' if empty else '"a": 0, ') + text[at:])

    def test_several(self) -> None:
        """Several values are found at once, in whatever order the paths are given."""
        text = '{"a":1,"b":[2,3],"c":4}'
        paths: list[Path] = [("b", 1), ("a",), ("new",), ("c",)]
        for order in (paths, paths[::-1]):
            found = {path: text[begin:end] for path, (begin, end) in find(text, order).items()}
            self.assertEqual({("b", 1): "3", ("a",): "1", ("c",): "4"}, found)

    def test_trimmed(self) -> None:
        """The inside of a string is trimmed correctly, in whatever way its characters are written."""
        for source, left, right, expected in (
            (r'"abc"', 1, 0, "bc"),
            (r'"abc \n\u000a\u2003 "', 1, 5, "bc"),
            (r'"\u0040code \n x\n"', 8, 1, "x"),
            (r'"\/\ud83d\ude00\\n"', 2, 0, r"\\n"),
            ('"\U0001f600\u00a0x\u2003"', 2, 1, "x"),
            (r'"\u00e9\n\n"', 1, 2, ""),
            (r'"x\u000c\f"', 1, 2, ""),
        ):
            begin, end = trimmed(source, (0, len(source)), json.loads(source), left, right)
            self.assertEqual(expected, source[begin:end], source)

    def test_missing(self) -> None:
        """A path that leads nowhere is missing in the result."""
        for text, path in MISSING:
            self.assertEqual({}, find(text, [path]))

    def test_many_values(self) -> None:
        """Each part of the text is decoded a few times at most, however many values are looked for."""
        text = json.dumps({"messages": [{"content": str(number)} for number in range(300)]})
        decoded: list[int] = []
        decode = json_positions._decode

        def counted(text: str, at: int) -> tuple[Any, int]:
            value, end = decode(text, at)
            decoded.append(end - at)
            return value, end

        self.patch(json_positions, "_decode", counted)
        found = find(text, [("messages", number, "content") for number in range(300)])
        self.assertEqual([f'"{number}"' for number in range(300)], [text[begin:end] for begin, end in found.values()])
        self.assertLess(sum(decoded), 5 * len(text))

    def test_random_documents(self) -> None:
        """In random documents the span of each path contains exactly its value."""
        dice = random.Random(8081)
        for _ in range(400):
            document = value(dice, 4, outermost=True)
            text = written(dice, document)
            self.assertEqual(document, json.loads(text))
            paths = list(places(document))
            if not paths:
                continue
            path = dice.choice(paths)
            start, end = find(text, [path])[path]
            expected = document
            for step in path:
                expected = expected[step]
            self.assertEqual(expected, json.loads(text[start:end]))
            self.assertEqual(text[start:end].strip(), text[start:end])


TEXTS = ["", "a", "b", "id_slot", '"', "\\", "}]", "é", "\ud800", "\n", "\U0001f600", "0", '"a":{']
PLAIN = [None, True, False, 0, -1.5, 1e300, 10**30, *TEXTS]


def value(dice: random.Random, depth: int, outermost: bool = False) -> Any:
    """Return a random JSON value."""
    kind = dice.choice("oa" if outermost else "oapp") if depth else "p"
    if kind == "p":
        return dice.choice(PLAIN)
    values = [value(dice, depth - 1) for _ in range(dice.randrange(5))]
    return values if kind == "a" else {dice.choice(TEXTS): each for each in values}


def places(document: Any) -> list[Path]:
    """Return the paths of all values in a document."""
    if not isinstance(document, dict | list):
        return []
    steps = document.items() if isinstance(document, dict) else enumerate(document)
    return [path for step, inner in steps for path in ((step,), *((step, *rest) for rest in places(inner)))]


def written(dice: random.Random, document: Any) -> str:
    """Return a document as JSON, with random white space and escapes."""

    def space() -> str:
        return "".join(dice.choices(" \t\r\n", k=dice.randrange(3)))

    if isinstance(document, dict):
        pairs = [f"{written(dice, key)}:{written(dice, each)}" for key, each in document.items()]
        # Sometimes a key is given twice.  The first one does not count.
        pairs = pairs[:1] * dice.choice((0, 0, 1)) + pairs
        inside = "{" + (",".join(pairs) or space()) + "}"
    elif isinstance(document, list):
        inside = "[" + (",".join(written(dice, each) for each in document) or space()) + "]"
    else:
        inside = json.dumps(document, ensure_ascii=document == "\ud800" or dice.random() < 0.5)
    return space() + inside + space()
