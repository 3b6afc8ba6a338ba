"""What mkdocs cannot do alone for the documentation site: pages from outside `docs/`, and links to them.

mkdocs makes pages of what is below `docs/`, and only knows links among these.  But the documents are also read in the
repository, where `docs/operation.md` leads to `../examples/README.md`.  So the few documents outside `docs/` become
pages, too, and so do the example files, for a reader who has only the site.  A link to one of them is translated; a
link to any other file of the repository becomes plain text, because the site has nothing behind it.

mkdocs imports this file and calls each ``on_...`` function at the moment of the build that its name says: `on_files`
when the files below `docs/` are known, `on_nav` when the navigation is made, `on_page_markdown` for each page before it
becomes HTML.  ``make docs`` runs mkdocs.

Does not know what the pages say, nor how they look (`mkdocs.yml`).
"""

from __future__ import annotations

import fnmatch
import os.path
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parent.parent
"""The checkout."""

OUTSIDE = ("examples/README.md", "examples/haproxy/README.md", "CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md")
"""Documents outside `docs/` that are pages of the site, by their paths in the repository."""

LONGEST = 300
"""Lines of an example file that its page shows; of a longer file it has only a link.  That is a dashboard, as JSON."""

LANGUAGES = {".json": "json", ".yml": "yaml", ".yaml": "yaml", ".conf": "nginx", ".service": "ini", ".socket": "ini"}
"""The language of an example file for its colours, by the end of its name; others have none."""

PARTS = re.compile(r"(^ *```.*?^ *```$|`[^`\n]+`)", re.MULTILINE | re.DOTALL)
"""Code in a document, in which nothing is a link."""

LINK = re.compile(r"(?<!!)\[([^\]]*)\]\(([^)\s]+)\)")
"""A link: its text and its target."""


def on_config(config: Any) -> Any:
    """Put the pages for the names with a ``*`` into the navigation.  Called by mkdocs first of all."""
    # The files are not known to mkdocs yet, and its check for pages that the navigation omits comes with them.
    pages = [path.relative_to(config.docs_dir).as_posix() for path in Path(config.docs_dir).rglob("*.md")]
    pages += OUTSIDE
    pages += [page_of(folder) for folder in example_folders()]
    config.nav = list(expanded(config.nav, sorted(pages, key=lambda each: (not each.endswith("README.md"), each))))
    # `mkdocs serve` builds again when one of these has changed.
    config.watch += [str(ROOT / "examples"), *(str(ROOT / each) for each in OUTSIDE)]
    return config


def expanded(entries: list[Any], pages: list[str]) -> Iterator[Any]:
    """Yield the entries of a navigation, with names in place of patterns; what matches nothing is left out."""
    # In `mkdocs.yml` an entry is the name of a page, or a title with a page or with a list of entries: in Python a
    # text, or a dict with one key.
    for entry in entries:
        if isinstance(entry, str):
            yield from fnmatch.filter(pages, entry) if "*" in entry else [entry]
            continue
        ((title, value),) = entry.items()
        # A section without a page would be a title that leads nowhere.
        inside = list(expanded([value] if isinstance(value, str) else value, pages))
        if inside:
            yield {title: inside[0] if isinstance(value, str) else inside}


def example_folders() -> list[Path]:
    """Return the folders of `examples/`, in order of their names."""
    return sorted(path for path in (ROOT / "examples").iterdir() if path.is_dir())


def page_of(folder: Path) -> str:
    """Return the path on the site of the page with the files of a folder of `examples/`."""
    return f"examples/files-{folder.name}.md"


def on_files(files: Files, config: Any) -> Files:
    """Add the documents from outside `docs/`, and the example files.  Called by mkdocs when it has found the others.

    A generated file is one that mkdocs does not find by itself: with a path, its content is read from there, so that
    `mkdocs serve` shows changes; with content, it is on no disk.
    """
    for name in OUTSIDE:
        files.append(File.generated(config, name, abs_src_path=str(ROOT / name)))
    for folder in example_folders():
        shown = [f"# {folder.name}/\n"]
        # A text about the files is a page of its own.
        for file in sorted(path for path in folder.rglob("*") if path.is_file() and path.suffix != ".md"):
            # The file itself is on the site, too, to be downloaded.
            name = file.relative_to(ROOT).as_posix()
            files.append(File.generated(config, name, abs_src_path=str(file)))
            title = file.relative_to(folder).as_posix()
            shown.append(f"## {title}\n\n[Download]({folder.name}/{title})\n")
            text = file.read_text(encoding="utf-8")
            # Four backticks, because an example may have a block of three in it.
            if text.count("\n") <= LONGEST:
                shown.append(f"````{LANGUAGES.get(file.suffix, 'text')}\n{text}````\n")
        files.append(File.generated(config, page_of(folder), content="\n".join(shown)))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    """Return a page's text with its links as the site needs them.  Called by mkdocs before the page becomes HTML."""
    # These pages were made with the right links.  In their code, what looks like a link is none.
    if page.file.src_uri.startswith("examples/files-"):
        return markdown
    # A page's place in the repository, by which its links are meant.
    place = os.path.dirname(page.file.src_uri if page.file.src_uri in OUTSIDE else f"docs/{page.file.src_uri}")

    def translated(link: re.Match[str]) -> str:
        """Return a link as it must be on the site."""
        text, target = link.groups()
        # A link within the page, and one to elsewhere, are right already.
        path, hash_sign, anchor = target.partition("#")
        if not path or re.match(r"[a-z]+:", target):
            return link[0]
        # First where the link leads in the repository, then where that is on the site, then the way there from this
        # page. The README.md of the repository and that of `docs/` both become the first page of the site.
        found = os.path.normpath(os.path.join(place, path))
        uri = page_of(ROOT / found) if (ROOT / found).is_dir() else found.removeprefix("docs/")
        # A link to a file that is missing stays as it is: mkdocs warns of it, and the build fails.
        if files.get_file_from_path(uri) is None:
            return text if (ROOT / found).exists() else link[0]
        relative = os.path.relpath(uri, os.path.dirname(page.file.src_uri) or ".")
        return f"[{text}]({relative}{hash_sign}{anchor})"

    # `split` with one group gives text and code in turns.
    pieces = PARTS.split(markdown)
    return "".join(piece if index % 2 else LINK.sub(translated, piece) for index, piece in enumerate(pieces))
