"""What the documents refer to exists: links, headings, files, folders."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

ROOT = Path(__file__).parent.parent
CODE = ROOT / "bioproxy"
DOCUMENTS = [
    file for pattern in ("*.md", "docs/**/*.md", "examples/*.md", "changes/README.md") for file in ROOT.glob(pattern)
]

FENCE = re.compile(r"^ *```.*?^ *```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
CODE_SPAN = re.compile(r"`([^`\n]+)`")
FILE = re.compile(r"[\w./-]+\.(?:py|js|html|css|md|toml|conf|yaml|yml)")
FOLDER = re.compile(r"[\w-]+(?:/[\w-]+)*/")

TEST = re.compile(r"test_\w+")
MEMBER = re.compile(r"([A-Z]\w+)\.(\w+)(?:\(.*\))?")

FOREIGN = {"Deferred", "Task", "StreamWriter", "README", "CHANGELOG", "CONTRIBUTING", "NAME"}
"""What stands before a dot in documents and is no class of bioproxy: of Twisted, of asyncio, and names of files."""

MADE_LATER = {"bench-results/", "dist/", "site/", "site/index.html", "tables.md"}
"""What is named and exists only after a command of the documents."""


def prose(document: Path) -> str:
    """Return a document without its blocks of code."""
    return FENCE.sub("", document.read_text(encoding="utf-8"))


def anchors(document: Path) -> set[str]:
    """Return the names by which a document's headings can be linked to, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", prose(document), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def broken(document: Path) -> Iterator[str]:
    """Yield each relative link that leads nowhere."""
    for target in LINK.findall(prose(document)):
        path, _, anchor = target.partition("#")
        if re.match(r"[a-z]+:", target):
            continue
        file = (document.parent / path).resolve() if path else document
        if not file.exists() or (anchor and anchor not in anchors(file)):
            yield target


def exists(name: str) -> bool:
    """Tell whether a file or folder exists: from the root, in the package, or, for a bare file name, anywhere."""
    if any((base / name).exists() for base in (ROOT, CODE)):
        return True
    return "/" not in name and any(any(base.rglob(name)) for base in (CODE, ROOT / "tests", ROOT / "examples"))


def members() -> dict[str, set[str]]:
    """Return the names that each class of the package has: methods, attributes, fields."""
    found: dict[str, set[str]] = {}
    for file in CODE.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ClassDef):
                inside = list(ast.walk(node))
                found.setdefault(node.name, set()).update(
                    *({each.name} for each in inside if isinstance(each, ast.FunctionDef | ast.AsyncFunctionDef)),
                    *({each.attr} for each in inside if isinstance(each, ast.Attribute)),
                    *({each.id} for each in inside if isinstance(each, ast.Name)),
                )
    return found


def spans(pattern: re.Pattern[str]) -> Iterator[tuple[str, re.Match[str]]]:
    """Yield the documents and what in them is marked as code and is of this form."""
    for document in DOCUMENTS:
        if document.name != "CHANGELOG.md":  # it tells of what was
            for name in CODE_SPAN.findall(prose(document)):
                if match := pattern.fullmatch(name):
                    yield document.name, match


class Documents(SynchronousTestCase):
    """README.md, `docs/` and the others."""

    maxDiff = None

    def test_links(self) -> None:
        """Each link within the repository leads to a file and to a heading there."""
        self.assertEqual({}, {file.name: found for file in DOCUMENTS if (found := list(broken(file)))})

    def test_paths(self) -> None:
        """Each file and folder that is named exists; paths on the reader's machine begin with a slash or a tilde."""
        missing = {
            (document, match[0])
            for pattern in (FILE, FOLDER)
            for document, match in spans(pattern)
            if not match[0].startswith("/") and not exists(match[0])
        }
        self.assertEqual([], sorted(entry for entry in missing if entry[1] not in MADE_LATER))

    def test_members(self) -> None:
        """Each `Class.member` that is named exists in the package."""
        known = members()
        missing = [
            (document, match[0])
            for document, match in spans(MEMBER)
            if match[1] not in FOREIGN and match[2] not in known.get(match[1], ())
        ]
        self.assertEqual([], missing)

    def test_tests(self) -> None:
        """Each test that is named exists."""
        tests = set(re.findall(r"def (test_\w+)", "".join(file.read_text() for file in ROOT.glob("tests/**/*.py"))))
        self.assertEqual([], [(document, match[0]) for document, match in spans(TEST) if match[0] not in tests])

    def test_tree(self) -> None:
        """The tree in README.md has each folder of the package, in the order of the layers, and no other."""
        text = (ROOT / "README.md").read_text(encoding="utf-8")
        tree = text[text.index("\nbioproxy/\n") : text.index("\ntwisted/plugins/")]
        named = re.findall(r"^  (\w+)/ ", tree, re.MULTILINE)
        folders = {file.parent.name for file in CODE.glob("*/__init__.py")}
        self.assertEqual(folders, set(named))
        self.assertEqual(len(folders), len(named))

    def test_order(self) -> None:
        """The order in which to read the code has each folder of the package, and in each step files of its folders."""
        order = (ROOT / "docs" / "reading-the-code.md").read_text(encoding="utf-8").split("## In which order")[1]
        steps = [CODE_SPAN.findall(row) for row in order.splitlines() if re.match(r"\| \d+ ", row)]
        named = [[each for each in step if each.endswith("/")] for step in steps]
        folders = {f"{file.parent.name}/" for file in CODE.glob("*/__init__.py")}
        self.assertEqual(folders, {folder for step in named for folder in step})
        for step, mine in zip(steps, named, strict=True):
            # `service.py` stands in no folder.
            files = [each for each in step if each.endswith(".py") and "/" in each]
            self.assertEqual(set(mine), {file[: file.index("/") + 1] for file in files})
