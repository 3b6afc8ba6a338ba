"""The shared shelf on real file systems that are small, read-only, or gone, with a real llama.cpp."""

from __future__ import annotations

import subprocess
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest
from twisted.logger import LogEvent, capturedLogs

from tests.integration.support import async_test, eventually
from tests.integration.test_real_shared_shelf import TEMPLATES, Pair, PairOf, pair_of
from tests.support.world import logged

__all__ = ["pair_of"]
"""The fixture of the other tests of the shared shelf."""


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Path]:
    """Return a folder on a file system of its own with 2 MB, less than bioproxy leaves free on any disk."""
    path = tmp_path / "mounted"
    path.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", path], capture_output=True).returncode:
        pytest.skip("mounting needs root")
    yield path
    subprocess.run(["umount", "--lazy", path], check=True)


def lines(events: Iterable[LogEvent]) -> str:
    """Return what was logged."""
    return "\n".join(logged(events))


def mount(option: str, path: Path) -> None:
    """Mount the small file system anew, read-only or not."""
    subprocess.run(["mount", "-o", f"remount,{option}", path], check=True)


async def usable(pair: Pair) -> bool:
    """Tell whether a pair can use the shared shelf."""
    return bool((await pair.proxy.status())["shared_shelf"]["usable"])


@async_test
async def test_full(pair_of: PairOf, small: Path) -> None:
    """On a disk without room everything is served, the reason is in `/status`, and in one line of the log."""
    with capturedLogs() as events:
        pair = await pair_of("a", shared_shelf=str(small / "shelf"))
        await pair.proxy.warm("code", "story")
        assert (await pair.proxy.chat("@code what?")).status == 200

        async def told() -> bool:
            return bool((await pair.proxy.status())["shared_shelf"]["trouble"] == "No space left on device")

        await eventually(told)
        assert await usable(pair)
    assert lines(events).count("files cannot be put on the shared shelf") == 1


@async_test
async def test_read_only(pair_of: PairOf, small: Path) -> None:
    """A disk that becomes read-only takes nothing more, and everything is served; writable again, it is used."""
    pair = await pair_of("a", shared_shelf=str(small / "shelf"), templates={"code": TEMPLATES["code"]})
    await pair.proxy.warm("code")
    mount("ro", small)
    assert (await pair.proxy.chat("@code what?")).status == 200
    mount("rw", small)

    async def up() -> bool:
        return await usable(pair)

    await eventually(up)


@async_test
async def test_vanishes(pair_of: PairOf, tmp_path: Path) -> None:
    """Renamed away, the folder is missed in one line of the log; back, it is used again, and nothing was made there."""
    with capturedLogs() as events:
        pair, second = await pair_of("a"), await pair_of("b")
        for each in (pair, second):
            await each.proxy.warm("code", "story")
        shelf = tmp_path / "shelf"
        shelf.rename(tmp_path / "away")

        async def gone() -> bool:
            return not (await usable(pair) or await usable(second))

        await eventually(gone)
        assert (await pair.proxy.chat("@code what?")).status == 200
        assert not shelf.exists()
        (tmp_path / "away").rename(shelf)

        async def back() -> bool:
            return await usable(pair) and await usable(second)

        await eventually(back, 60)
    # One line of each of the two.
    assert lines(events).count("the shared shelf cannot be used") == 2
    assert lines(events).count("the shared shelf can be used again") == 2
