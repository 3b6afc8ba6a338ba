"""The tables of `docs/heuristics.md` agree with the constants in the code, in both directions."""

from __future__ import annotations

import ast
import operator
import re
from collections.abc import Iterator
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

ROOT = Path(__file__).parent.parent
CODE = ROOT / "bioproxy"
DOCUMENT = ROOT / "docs" / "heuristics.md"

NO_HEURISTICS: dict[tuple[str, ...], str] = {
    **dict.fromkeys((("command", "MISUSE"), ("command", "INTERRUPTED")), "exit codes as shells have them"),
    ("command", "LOADING"): "the HTTP status of a llama-server that loads its model",
    ("command", "CLIENT_GONE"): "the HTTP status that is noted for a lost client",
    **dict.fromkeys(
        (("command", each) for each in ("GREEN", "YELLOW", "RED", "CYAN", "BOLD")), "numbers of colours (ECMA-48)"
    ),
    ("demo", "QUANTIZED_BLOCK"): "defined by the GGUF format",
    ("demo", "CONVOLUTION"): "part of the demo model's architecture",
    **dict.fromkeys(
        (("demo", "NORMAL"), ("demo", "UNKNOWN"), ("demo", "CONTROL"), ("demo", "BYTE")), "llama.cpp's types of tokens"
    ),
    ("child", "PR_SET_PDEATHSIG"): "Linux' number for a call",
    ("operator", "UINT32"): "GGUF's number for a type",
    ("prompts", "FORMAT"): "the version of the file's format",
    ("prompts", "DIGITS"): "what names of learned prompts look like, on which users rely",
    ("proxy", "CLIENT_GONE"): "the HTTP status that is noted for a lost client",
    ("runtime", "LARGEST"): "the range of llama-server's 64-bit integers",
    ("runtime", "LARGEST_TOKEN"): "the range of llama.cpp's 32-bit tokens",
    ("runtime", "SECONDS", "metrics.py"): "the edges of histograms, on which dashboards rely",
    ("runtime", "RATIOS"): "the edges of a histogram, on which dashboards rely",
    ("runtime", "WIDTH"): "the width of a column of the text log",
    ("shared", "FORMAT"): "the version of the entries' format",
    ("slot_files", "FORMAT"): "the version of the record's format",
    ("slot", "STRANGER"): "the number of a token, which each vocabulary has",
}
"""Numbers that are facts: folder and name (and the module, where another one has the name, too), and why."""

UNITS = {"KiB": 1 << 10, "Ki": 1 << 10, "MiB": 1 << 20, "Mi": 1 << 20, "GiB": 1 << 30}
ROW = re.compile(r"\| `([A-Z][A-Z0-9_]*)` \| `([a-z_]+\.py)` \| ([^|]+) \| ([^|]+) \| ([^|]+) \| ([^|]+) \|")
NUMBER = re.compile(r"\d[\d,]*(?:\.\d+)?(?:e-?\d+)?")
NAME = re.compile(r"[A-Z][A-Z0-9_]*")

OPERATIONS = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.Pow: operator.pow,
    ast.LShift: operator.lshift,
}

Constant = tuple[str, str, str]
"""Folder, module and name."""


def number(node: ast.expr) -> float | None:
    """Return what an expression of numbers amounts to; `None` for any other expression."""
    if isinstance(node, ast.Constant):
        return node.value if isinstance(node.value, int | float) and not isinstance(node.value, bool) else None
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        value = number(node.operand)
        return None if value is None else -value
    if isinstance(node, ast.BinOp) and type(node.op) in OPERATIONS:
        left, right = number(node.left), number(node.right)
        return None if left is None or right is None else float(OPERATIONS[type(node.op)](left, right))
    return None


def numbers(node: ast.expr) -> tuple[float, ...] | None:
    """Return the value of a number, or of a tuple of numbers, as a tuple; `None` for anything else."""
    found = [number(each) for each in (node.elts if isinstance(node, ast.Tuple) else [node])]
    values = [each for each in found if each is not None]
    return tuple(values) if found and len(values) == len(found) else None


def assignments(node: ast.stmt) -> Iterator[tuple[str, ast.expr]]:
    """Yield names and values of an assignment; of ``A, B = 1, 2`` each name with its own value."""
    if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and node.value is not None:
        yield node.target.id, node.value
    elif isinstance(node, ast.Assign):
        for target in node.targets:
            if isinstance(target, ast.Name):
                yield target.id, node.value
            elif isinstance(target, ast.Tuple) and isinstance(node.value, ast.Tuple):
                yield from (
                    (one.id, value)
                    for one, value in zip(target.elts, node.value.elts, strict=True)
                    if isinstance(one, ast.Name)
                )


def all_numbers() -> dict[Constant, tuple[float, ...]]:
    """Return all numeric constants at module level."""
    return {
        (file.parent.relative_to(CODE).as_posix(), file.name, name): values
        for file in sorted(CODE.rglob("*.py"))
        for statement in ast.parse(file.read_text(encoding="utf-8")).body
        for name, node in assignments(statement)
        if NAME.fullmatch(name) and (values := numbers(node)) is not None
    }


def why_a_fact(constant: Constant) -> str | None:
    """Return why a constant is a fact and no choice; `None` where it is a choice."""
    folder, module, name = constant
    return NO_HEURISTICS.get((folder, name)) or NO_HEURISTICS.get((folder, name, module))


def in_the_code() -> dict[Constant, tuple[float, ...]]:
    """Return all numeric constants at module level that are choices."""
    return {constant: values for constant, values in all_numbers().items() if why_a_fact(constant) is None}


def in_the_document() -> dict[Constant, tuple[float, ...]]:
    """Return what the tables say.  A table stands under the name of its folder."""
    found: dict[Constant, tuple[float, ...]] = {}
    folder = ""
    for line in DOCUMENT.read_text(encoding="utf-8").splitlines():
        if line.startswith("## "):
            folder = line[3:].rstrip("/") if line.endswith("/") else "."
        elif row := ROW.fullmatch(line):
            name, module, value = row[1], row[2], row[3]
            unit = next((UNITS[word] for word in value.split() if word in UNITS), 1)
            found[folder, module, name] = tuple(float(each.replace(",", "")) * unit for each in NUMBER.findall(value))
    return found


class Heuristics(SynchronousTestCase):
    """`docs/heuristics.md`."""

    maxDiff = None

    def test_complete(self) -> None:
        """Each numeric constant at module level is in the table, and the table has no other."""
        code, document = in_the_code(), in_the_document()
        self.assertEqual([], sorted(code.keys() - document.keys()), "to be added to docs/heuristics.md")
        self.assertEqual([], sorted(document.keys() - code.keys()), "to be removed from docs/heuristics.md")

    def test_values(self) -> None:
        """The table has the value of each."""
        code, document = in_the_code(), in_the_document()
        self.assertEqual({each: code[each] for each in document.keys() & code.keys()}, document)

    def test_each_row_is_read(self) -> None:
        """No row of the tables is overlooked because of its form: each has six columns, none of them empty."""
        rows = [line for line in DOCUMENT.read_text(encoding="utf-8").splitlines() if line.startswith("| `")]
        self.assertEqual([], [line for line in rows if not ROW.fullmatch(line)])
        self.assertEqual(len(rows), len(in_the_document()))

    def test_facts(self) -> None:
        """Each constant that is exempted exists."""
        known = {entry for folder, module, name in all_numbers() for entry in ((folder, name), (folder, name, module))}
        self.assertEqual(set(), NO_HEURISTICS.keys() - known)
