"""Builds the packages of the last commit, an sdist and a wheel, into ``dist/``: ``make wheel``.

Who builds the same commit with the same setuptools and Python gets the same bytes, so that everybody can check what a
package was made of.  Three things would differ otherwise: times, which are set to the commit's (or to
`SOURCE_DATE_EPOCH`, which the tools that build packages agreed upon); modes of files, which depend on the umask; and
what lies in the folder and is in no commit.  So a fresh clone is built, with a umask of its own.

setuptools looks at `SOURCE_DATE_EPOCH` for a wheel only: the sdist is packed again here.
"""

from __future__ import annotations

import gzip
import os
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path
from tempfile import TemporaryDirectory

ROOT = Path(__file__).resolve().parent.parent


def run(*command: str | Path, **variables: str) -> str:
    """Run a program with more environment variables, and return its output.  Raises `CalledProcessError`."""
    return subprocess.run(
        command, env={**os.environ, **variables}, cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True
    ).stdout


def pack_again(source: Path, target: Path, epoch: int) -> None:
    """Copy a .tar.gz: in order of its names, each file of this time (seconds since 1970), nobody's, readable by all."""
    with (
        tarfile.open(source) as old,
        open(target, "wb") as file,
        gzip.GzipFile("", "wb", fileobj=file, mtime=epoch) as packed,
        tarfile.open(fileobj=packed, mode="w", format=tarfile.PAX_FORMAT) as new,
    ):
        for info in sorted(old.getmembers(), key=lambda each: each.name):
            info.mtime, info.pax_headers = epoch, {}
            info.uid = info.gid = 0
            info.uname = info.gname = ""
            info.mode = 0o755 if info.isdir() or info.mode & 0o100 else 0o644
            new.addfile(info, old.extractfile(info) if info.isfile() else None)


def main() -> None:
    """Build both."""
    epoch = os.environ.get("SOURCE_DATE_EPOCH") or run("git", "log", "-1", "--format=%ct").strip()
    os.umask(0o022)
    dist = ROOT / "dist"
    shutil.rmtree(dist, ignore_errors=True)
    dist.mkdir()
    with TemporaryDirectory() as folder:
        clone, built = Path(folder, "clone"), Path(folder, "built")
        run("git", "clone", "--quiet", ROOT, clone)
        # The wheel is made from what is in the sdist: so whoever has only that gets the same.
        run(sys.executable, "-m", "build", "--no-isolation", "--outdir", built, clone, SOURCE_DATE_EPOCH=epoch)
        for package in built.iterdir():
            if package.suffix == ".whl":
                shutil.copyfile(package, dist / package.name)
            else:
                pack_again(package, dist / package.name, int(epoch))
            print(dist / package.name)


if __name__ == "__main__":
    main()
