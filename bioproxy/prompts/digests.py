"""Fingerprints of texts and of tokens: equal for equal ones, and for no others (SHA-256).

What was computed for a prompt may be used for another one only as far as both are the same.  Comparing fingerprints
tells that without keeping the texts, which are long, and nobody else's business.

Pure.
"""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Sequence

MARK = 256
"""Tokens between two marks."""


def digest(*texts: str) -> str:
    """Return a fingerprint of some texts, in this order."""
    result = hashlib.sha256()
    for text in texts:
        # "surrogatepass": JSON can spell half a character ("\ud800"), which is no valid UTF-8.
        encoded = text.encode("utf-8", "surrogatepass")
        # The length first: otherwise ("ab", "c") and ("a", "bc") would look the same.
        result.update(b"%d:" % len(encoded))
        result.update(encoded)
    return result.hexdigest()


def marks(tokens: Sequence[int]) -> tuple[str, ...]:
    """Return fingerprints of a list of tokens: of its first 256, its first 512 and so on, and last of all of it."""
    result, found = hashlib.sha256(), []
    for start in range(0, len(tokens), MARK):
        result.update(array("q", tokens[start : start + MARK]).tobytes())
        found.append(result.hexdigest()[:16])
    return tuple(found)


def shared(saved: Sequence[str], length: int, tokens: Sequence[int]) -> int:
    """Return how many tokens are surely the same at the beginning of two lists.

    Of the one only its marks and its `length` are known: all of it, or a multiple of 256, is found to be shared.
    """
    if length <= len(tokens) and marks(tokens[:length]) == tuple(saved):
        return length
    equal = 0
    for one, other in zip(saved[: length // MARK], marks(tokens), strict=False):
        if one != other:
            break
        equal += 1
    return equal * MARK
