"""Where something was measured: the machine, and the versions of all that took part.

A figure without these is worth nothing a year later.  What cannot be found out is left out.

Linux is read from ``/proc``, versions of Python's packages from their metadata, and those of programs from what they
print.  Does not know what was measured.
"""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
import time
from importlib import metadata
from pathlib import Path

from benchmarks.servers import ROOT

PACKAGES = ("twisted", "treq", "klein", "xllamacpp")
"""What bioproxy and the measured llama.cpp are made of."""

SBIN = os.pathsep.join((os.environ.get("PATH", ""), "/usr/sbin", "/usr/local/sbin"))
"""Where programs are looked for: servers stand in folders that an ordinary user's path leaves out."""


def machine() -> dict[str, str]:
    """Return what is known of this machine and of what is measured on it, as texts by their names.

    Called before each theme: the load at that moment tells whether something else was running.
    """
    processor = first_match("/proc/cpuinfo", r"model name\s*: (.*)") or platform.machine()
    found = {
        "date": time.strftime("%Y-%m-%d %H:%M", time.gmtime()) + " UTC",
        "processor": f"{os.cpu_count()} of {processor}",
        "memory": memory(),
        "system": platform.platform(terse=True),
        "load": f"{os.getloadavg()[0]:.1f}",
        "python": platform.python_version(),
        "bioproxy": commit(),
    }
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    for name, option in (("nginx", "-v"), ("haproxy", "-v")):
        if version := program_version(name, option):
            found[name] = version
    return found


def memory() -> str:
    """Return this machine's memory, in GiB."""
    kilobytes = first_match("/proc/meminfo", r"MemTotal:\s*(\d+)")
    return f"{int(kilobytes) / 2**20:.0f} GiB" if kilobytes else "unknown"


def first_match(file: str, pattern: str) -> str | None:
    """Return the first group of a pattern in a file, `None` if there is none."""
    try:
        found = re.search(pattern, Path(file).read_text())
    except OSError:
        return None
    return found[1].strip() if found else None


def commit() -> str:
    """Return bioproxy's version and, in a checkout, the commit; with a plus sign where files differ from it."""
    version = metadata.version("bioproxy")
    git = ["git", "-C", str(ROOT), "describe", "--always", "--dirty=+", "--exclude=*"]
    try:
        return f"{version} ({subprocess.run(git, capture_output=True, text=True, check=True).stdout.strip()})"
    except (OSError, subprocess.CalledProcessError):
        return version


def program(name: str) -> str | None:
    """Return the path of an installed program, `None` if there is none."""
    return shutil.which(name, path=SBIN)


def program_version(name: str, option: str) -> str | None:
    """Return the version that an installed program prints, `None` if it is not installed."""
    path = program(name)
    if path is None:
        return None
    # nginx prints its version as an error, HAProxy does not; so both outputs are read.
    printed = subprocess.run([path, option], capture_output=True, text=True, check=False)
    found = re.search(r"\d+\.\d+(?:\.\d+)?", printed.stdout + printed.stderr)
    return found[0] if found else None
