"""The site of the documents: it is built without a warning, and works where there is no network and no server."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tests.integration.support import PATIENCE, ROOT
from tests.support.browser import Browser
from tools import self_contained

pytest.importorskip("mkdocs")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of the site, built as `make docs` does."""
    folder = tmp_path_factory.mktemp("site")
    # With `--quiet` mkdocs would not count the warnings that `--strict` forbids.
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    env = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=PATIENCE)
    assert done.returncode == 0, done.stderr
    return folder


def until_true(browser: Browser, script: str) -> Any:
    """Return what a script in the page returns, as soon as that is true."""
    deadline = time.monotonic() + PATIENCE
    while not (value := browser.run(script)):
        assert time.monotonic() < deadline, script
    return value


def test_self_contained(site: Path) -> None:
    """No page loads anything but files of the site."""
    assert list(self_contained.wrong(site)) == []


def test_links(site: Path) -> None:
    """Links that leave `docs/` lead to pages of the site; where the site has none, only their text is left."""
    operation = (site / "operation.html").read_text(encoding="utf-8")
    assert 'href="examples/index.html"' in operation
    examples = (site / "examples" / "index.html").read_text(encoding="utf-8")
    assert 'href="files-systemd.html"' in examples
    assert 'href="docs/architecture.html' not in (site / "CONTRIBUTING.html").read_text(encoding="utf-8")
    # No link of any page leads to a file of the repository that the site does not have.
    missing = []
    for page in site.rglob("*.html"):
        if page.name != "404.html":
            text = re.sub(r"<code.*?</code>", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
            for target in re.findall(r'<a\b[^>]*\bhref="([^"#]+)', text):
                if not re.match(r"[a-z]+:", target) and not (page.parent / target).exists():
                    missing.append((page.name, target))
    assert missing == []


def test_examples(site: Path) -> None:
    """The example files are on the site, to read and to download; a long one only to download."""
    page = (site / "examples" / "files-systemd.html").read_text(encoding="utf-8")
    assert "ExecReload" in page
    assert (site / "examples" / "systemd" / "bioproxy.service").read_bytes() == (
        ROOT / "examples" / "systemd" / "bioproxy.service"
    ).read_bytes()
    dashboard = (site / "examples" / "files-grafana.html").read_text(encoding="utf-8")
    assert 'href="grafana/dashboards/bioproxy.json"' in dashboard
    assert "fieldConfig" not in dashboard


def test_opened_as_a_file(site: Path, chromium: Browser) -> None:
    """A page that was opened as a file can be searched, loads nothing from elsewhere, and complains of nothing."""
    chromium.look(1280, 900)
    chromium.driver.get((site / "index.html").as_uri())
    chromium.driver.find_element("css selector", ".md-search__input").send_keys("queue_timeout")
    found = until_true(chromium, "return document.querySelector('.md-search-result__link')?.href")
    assert found.startswith((site / "settings.html").as_uri())
    loaded = chromium.run("return performance.getEntriesByType('resource').map(entry => entry.name)")
    assert [name for name in loaded if not name.startswith(site.as_uri())] == []
    assert chromium.console() == []


@pytest.mark.parametrize("page", ["index", "concepts", "settings", "reading-the-code"])
def test_everybody_can_use_it(site: Path, chromium: Browser, page: str) -> None:
    """The pages pass the usual checks, light and dark, wide and narrow, and never have to be moved sideways."""
    for dark in (False, True):
        for width in (1280, 390):
            chromium.look(width, 900, dark)
            chromium.driver.get((site / f"{page}.html").as_uri())
            # The theme keeps the colours of earlier visits; this is to be the first one.
            chromium.run("localStorage.clear()")
            chromium.driver.get((site / f"{page}.html").as_uri())
            # Colours that are still changing have any contrast.
            until_true(chromium, "return document.getAnimations().length === 0")
            assert chromium.violations() == [], (dark, width)
            assert chromium.run("return document.documentElement.scrollWidth") <= width
            scheme = chromium.run("return document.body.getAttribute('data-md-color-scheme')")
            assert scheme == ("slate" if dark else "default")
