"""The vocabulary of the generated model: its tokens, with what the tokenizer must know of each.

The vocabulary is of the kind that SentencePiece makes and Llama has.  The tokenizer starts from single characters and
merges two neighbours whenever the merged text is a token as well.  So every *prefix* of a common word has to be a
token: without the steps ``t``, ``te``, ``tem`` no merge could ever reach ``template``.

The words are common English ones, and some of this program's own subject.  Everything else becomes letters.

Plain Python, without Twisted.  Does not know the model's layers or its file.
"""

from __future__ import annotations

import string

WORD_MARK = "\u2581"
"""The character that stands for the space before a word in SentencePiece's tokens."""

# The types of tokens in GGUF (`tokenizer.ggml.token_type` in its specification).
NORMAL, UNKNOWN, CONTROL, BYTE = 1, 2, 3, 6

COMMON_WORDS = (
    "the of and to in is you that it he was for on are as with his they at be this have from or one had by word but"
    " not what all were we when your can said there use an each which she do how their if will up other about out"
    " many then them these so some her would make like him into time has look two more write go see number no way"
    " could people my than first water been call who its now find long down day did get come made may part over new"
    " sound take only little work know place year live me back give most very after thing our just name good"
    " sentence man think say great where help through much before line right too mean old any same tell follow came"
    " want show also around form three small set put end does another well large must big even such because turn"
    " here why ask went men read need land different home us move try kind hand picture again change off play spell"
    " air away animal house point page letter mother answer found study still learn should world code file function"
    " class method value list test error return import module template prompt token cache slot model server proxy"
    " request response message user system assistant question context warm restore save state process memory"
).split()
"""Words that are one token each.  All other text is tokenized into letters and common beginnings of words."""


def vocabulary() -> tuple[list[str], list[float], list[int]]:
    """Return the tokens, their scores and their types: three lists of equal length.

    The tokenizer merges the pair with the highest score first.
    """
    # Special tokens first, by convention, and one for each byte, so that any text at all can be tokenized.
    tokens = ["<unk>", "<s>", "</s>"]
    types = [UNKNOWN, CONTROL, CONTROL]
    tokens += [f"<0x{byte:02X}>" for byte in range(256)]
    types += [BYTE] * 256
    tokens += ["<|im_start|>", "<|im_end|>"]
    types += [CONTROL] * 2
    # A dict and not a set, because it keeps the order: the file is the same each time.
    pieces = dict.fromkeys([WORD_MARK, "\n"])
    # Each with and without a space before it: a word in the middle of a text is one token together with its space.
    for character in string.digits + string.ascii_letters + string.punctuation:
        pieces.update(dict.fromkeys([character, WORD_MARK + character]))
    for word in COMMON_WORDS:
        for length in range(1, len(word) + 1):
            pieces.update(dict.fromkeys([word[:length], WORD_MARK + word[:length]]))
    # Single characters are in it as well, so that each merge has something to begin with.
    tokens += list(pieces)
    types += [NORMAL] * len(pieces)
    # Longer tokens score higher, so that merging goes on until a word is complete.
    scores = [float(len(token)) if kind == NORMAL else 0.0 for token, kind in zip(tokens, types, strict=True)]
    return tokens, scores, types
