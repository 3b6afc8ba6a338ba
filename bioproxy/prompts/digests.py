"""Digests of texts and of tokens (SHA-256): equal for equal content, and different for different content.

What was computed for one prompt may be used for another one only as far as both are the same.  Comparing digests
decides that without storing the prompts, which are long and private.  SHA-256 is a cryptographic hash, so nobody can
write a text that has the digest of another one, and get an answer that was computed for that.

Tokens get a digest for each prefix of 64, 128, ... tokens.  One digest of all tokens could only tell "equal" or
"different".  With one at each block boundary it can be determined how long the common beginning is, which is what
counts for a KV cache.

This module is pure.  It does not know what the texts and tokens mean.
"""

from __future__ import annotations

import hashlib
from array import array
from bisect import bisect_left
from collections.abc import Sequence

TOKENS_PER_DIGEST = 64
"""Tokens from one digest to the next.

What two prompts share is known to a multiple of it.  After an edit of a template up to so many tokens are evaluated
again although they are the same.
Halved, the record has twice as many digests (16 characters for each); doubled, more is evaluated twice.  A changed
value makes the digests in existing records useless: they were made with the old one.
"""


def digest(*texts: str) -> str:
    """Return a digest of some texts, in this order, as 64 hexadecimal digits."""
    result = hashlib.sha256()
    for text in texts:
        # "surrogatepass": JSON can contain half of a surrogate pair ("\ud800"), which has no valid UTF-8.
        encoded = text.encode("utf-8", "surrogatepass")
        # The length goes first.  Without it ("ab", "c") and ("a", "bc") would have the same digest.
        result.update(b"%d:" % len(encoded))
        result.update(encoded)
    return result.hexdigest()


def prefix_digests(tokens: Sequence[int]) -> tuple[str, ...]:
    """Return digests of the first 64 tokens, of the first 128 and so on, and last of all of them.

    The digests are shortened to 16 digits: 64 bits are enough to compare some thousands of files.
    """
    result, found = hashlib.sha256(), []
    for start in range(0, len(tokens), TOKENS_PER_DIGEST):
        # A hash object can be asked for its digest at any time and then go on, so each token is hashed only once.
        # "q": eight bytes for each token, whatever its size.
        result.update(array("q", tokens[start : start + TOKENS_PER_DIGEST]).tobytes())
        found.append(result.hexdigest()[:16])
    return tuple(found)


class DigestedTokens:
    """A token list that is compared with many others by their digests.

    Invariant: the digests are those of the tokens.  They are computed once, whatever the number of comparisons.
    """

    def __init__(self, tokens: Sequence[int]) -> None:
        self._tokens = tokens
        self._digests = prefix_digests(tokens)

    def shared_with(self, saved: Sequence[str], length: int) -> int:
        """Return with how many tokens that are certainly equal this list and another one begin.

        `saved` are the `prefix_digests` of the other list and `length` is its number of tokens.  The result is `length`
        or a multiple of 64.  It is never too large; it may be up to 63 too small.
        """
        mine = self._digests
        blocks = min(len(saved), length // TOKENS_PER_DIGEST, len(self._tokens) // TOKENS_PER_DIGEST)
        # Each digest covers all tokens before it, so from the first different one on all are different.  A binary
        # search finds that one, and most lists differ at once.
        equal = 0
        if blocks and saved[0] == mine[0]:
            equal = bisect_left(range(blocks), True, key=lambda block: saved[block] != mine[block])
        # The last digest covers the rest after the last multiple of 64.  It can only be compared at the same length,
        # which takes a digest of its own; that is computed only if everything before is equal.
        whole = -(-length // TOKENS_PER_DIGEST)
        comparable = len(saved) == whole and equal == length // TOKENS_PER_DIGEST and length <= len(self._tokens)
        if comparable and (whole == equal or prefix_digests(self._tokens[:length])[-1] == saved[-1]):
            return length
        return equal * TOKENS_PER_DIGEST
