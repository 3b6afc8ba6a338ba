"""Sizes in bytes, written for a human reader: ``1.4 GB``.

``--check``, the live page and the log show the same size with the same words, because all of them call `shown_size`.
The units are powers of 1024, as in the settings (`bioproxy.settings.kinds.size` reads ``8G``) and in what ``ls -h``
prints.  Machines that read, such as Prometheus and clients of `/status`, get plain numbers of bytes instead.

A pure function, without Twisted.  Does not know what the bytes are of, nor how a setting is written.
"""

from __future__ import annotations

UNITS = ("KB", "MB", "GB", "TB", "PB")
"""The units above the byte.  Each is 1024 times the one before."""


def shown_size(count: int) -> str:
    """Return a number of bytes as a short text: ``0 B``, ``1023 B``, ``1.0 KB``, ``1.4 GB``.

    `count` is the number of bytes, at least 0.  From a kilobyte on, the text has one digit after the point.
    """
    # Whole bytes have no fraction, and "12.0 B" would look as if they could.
    if count < 1024:
        return f"{count} B"
    size, larger = count / 1024, list(UNITS[1:])
    unit = UNITS[0]
    # Compared after rounding: one byte less than a megabyte is "1.0 MB", not "1024.0 KB".  A size beyond the last unit
    # keeps that unit, with a number over 1024.
    while round(size, 1) >= 1024 and larger:
        size, unit = size / 1024, larger.pop(0)
    return f"{size:.1f} {unit}"
