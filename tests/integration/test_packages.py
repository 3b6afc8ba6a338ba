"""The sdist and the wheel that ``make wheel`` builds: what is in them, and that everybody gets the same."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

from bioproxy import __version__
from tests.integration.support import PATIENCE, ROOT

NOT_COPIED = shutil.ignore_patterns(
    *(".git", ".venv", ".*_cache", ".nox", ".hypothesis", ".coverage*", "__pycache__", "*.egg-info"),
    *("build", "dist", "site"),
)

REPOSITORY_ONLY = {".ci", ".dockerignore", ".gitattributes", ".gitignore"}
"""What an sdist has no use for."""


def commit(folder: Path, umask: int) -> None:
    """Make a copy of the checkout, as this umask has it, and commit it, always at the same time."""
    shutil.copytree(ROOT, folder, ignore=NOT_COPIED, copy_function=shutil.copyfile)
    for path in folder.rglob("*"):
        path.chmod((0o777 if path.is_dir() else 0o666) & ~umask)
    variables = {"GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_NOSYSTEM": "1"}
    for who in ("AUTHOR", "COMMITTER"):
        variables |= {f"GIT_{who}_{name}": "x" for name in ("NAME", "EMAIL")}
        variables[f"GIT_{who}_DATE"] = "1700000000 +0000"
    for command in (["init", "--quiet"], ["add", "."], ["commit", "--quiet", "--message", "All"]):
        subprocess.run(["git", *command], cwd=folder, check=True, env={**os.environ, **variables})


def build(folder: Path, umask: int, **variables: str) -> dict[str, bytes]:
    """Build the packages there; return their bytes by their names."""
    tool = [sys.executable, str(folder / "tools" / "packages.py")]
    env = {key: value for key, value in os.environ.items() if key != "SOURCE_DATE_EPOCH"} | variables
    done = subprocess.run(
        tool, umask=umask, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=PATIENCE
    )
    assert done.returncode == 0, done.stdout.decode()
    return {path.name: path.read_bytes() for path in (folder / "dist").iterdir()}


def check_wheel(folder: Path) -> None:
    """Check that the wheel has the files of the package and the plugin, readable by everybody, and no others."""
    expected = {
        str(path.relative_to(ROOT))
        for part in ("bioproxy", "twisted")
        for path in (ROOT / part).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts and path.name != "dropin.cache"
    }
    assert {
        "bioproxy/__main__.py",
        "bioproxy/command/main.py",
        "bioproxy/py.typed",
        "bioproxy/operator/page_files/index.html",
        "bioproxy/demo/templates/manual.txt",
    } <= expected
    assert "twisted/plugins/bioproxy_plugin.py" in expected
    with zipfile.ZipFile(next(folder.glob("dist/*.whl"))) as wheel:
        entries = {info.filename: info for info in wheel.infolist() if ".dist-info/" not in info.filename}
        scripts = wheel.read(f"bioproxy-{__version__}.dist-info/entry_points.txt").decode()
    assert "bioproxy = bioproxy.command.main:main" in scripts
    assert set(entries) == expected
    assert {info.external_attr >> 16 & 0o777 for info in entries.values()} == {0o644}
    assert {info.date_time for info in entries.values()} == {(2023, 11, 14, 22, 13, 20)}


def check_sdist(folder: Path) -> None:
    """Check that the sdist has all that is in the repository but what belongs to it alone, and nobody's name."""
    known = subprocess.run(["git", "ls-files"], cwd=folder, check=True, stdout=subprocess.PIPE, text=True)
    expected = {name for name in known.stdout.split() if name.partition("/")[0] not in REPOSITORY_ONLY}
    with tarfile.open(next(folder.glob("dist/*.tar.gz"))) as sdist:
        members = sdist.getmembers()
    files = {member.name.partition("/")[2] for member in members if member.isfile()}
    made = {name for name in files if name.startswith("bioproxy.egg-info/")} | {"PKG-INFO", "setup.cfg"}
    assert files == expected | made
    assert {(member.uid, member.gid, member.uname, member.gname) for member in members} == {(0, 0, "", "")}
    assert {member.mtime for member in members} == {1700000000}


def test_packages(tmp_path: Path) -> None:
    """Two builds of one commit are the same, whatever folder, umask, times, time zone and left-over files there are.

    And they are complete, see below.  One test for all: the tests are shared out among processes, and building is slow.
    """
    if shutil.which("git") is None:
        pytest.fail("git is missing") if os.environ.get("CI") else pytest.skip("git is missing")
    one, other = tmp_path / "one", tmp_path / "deeper" / "other"
    commit(one, 0o022)
    commit(other, 0o077)
    for path in other.rglob("*"):
        if ".git" not in path.parts:
            os.utime(path, (1e9, 1e9))
    (other / "bioproxy" / "left_over.py").touch()  # in no commit
    (other / "bioproxy" / "operator" / "page_files" / "left_over.js").touch()
    packages = build(one, 0o022, TZ="UTC", PYTHONHASHSEED="1")
    others = build(other, 0o077, TZ="Asia/Tokyo", PYTHONHASHSEED="2")
    assert sorted(packages) == [f"bioproxy-{__version__}-py3-none-any.whl", f"bioproxy-{__version__}.tar.gz"]
    assert packages.keys() == others.keys()
    assert [name for name in packages if packages[name] != others[name]] == []
    check_wheel(one)
    check_sdist(one)
