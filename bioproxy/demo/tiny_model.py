"""Writes a small language model with random weights, so that nothing needs to be downloaded.

llama.cpp reads one file format, GGUF: a list of keys (how many layers, how wide, the vocabulary, the chat
template) followed by the weights.  All of that can be made up.  Such a model talks nonsense, but everything
that bioproxy is about is real with it: tokens, slots, the KV cache, its files, and the time that a prompt
takes.  Two sizes are useful:

* `TINY` (0.7 MB) evaluates thousands of tokens a second: for tests;
* `SMALL` (112 MB) needs about 1.5 s for 1,000 tokens on two CPU cores: slow enough that a person feels the
  difference between a prompt that is computed and one that is restored.

The vocabulary follows SentencePiece, as Llama's does: the tokenizer starts from single characters and merges
neighbours for as long as the merged text is a token too.  Therefore every *prefix* of a common word is a
token: without the steps ``t``, ``te``, ``tem`` a merge could never reach ``template``.

What llama.cpp can do with a saved KV cache depends on how a model remembers, so there are three kinds: *dense*, where
each token looks at all before it; *sliding window*, where most layers see only the last 512; *hybrid*, where some
layers keep one state that is changed with each token and cannot be taken back.

Knows nothing of Twisted or of the rest of bioproxy.
"""

from __future__ import annotations

import os
import string
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    import gguf
    import numpy

    Values: TypeAlias = numpy.typing.NDArray[numpy.float32]

WORD_MARK = "\u2581"
"""SentencePiece writes the space before a word as this character."""

CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
"""ChatML, the plainest of the common chat formats."""

# The kinds of token that GGUF knows (`tokenizer.ggml.token_type` in GGUF's specification).
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


@dataclass(frozen=True)
class Size:
    """The shape of a model.

    `blocks` layers of width `width` (numbers in an embedding), `heads` attention heads, a feed-forward part of
    `feed_forward` numbers, and at most `context` tokens.  `architecture` is one that llama.cpp knows: ``llama``
    (dense), ``gemma3`` (sliding window) or ``lfm2`` (hybrid).
    """

    blocks: int
    width: int
    heads: int
    feed_forward: int
    context: int = 16384
    architecture: str = "llama"

    def is_recurrent(self, block: int) -> bool:
        """Tell whether a layer of the hybrid kind keeps a state instead of looking at all tokens: every other does."""
        return self.architecture == "lfm2" and block % 2 == 0


CONVOLUTION = 3
"""How many tokens a recurrent layer of the hybrid kind mixes."""

TINY = Size(blocks=2, width=64, heads=4, feed_forward=128)
SMALL = Size(blocks=8, width=512, heads=8, feed_forward=1536)
SLIDING = Size(blocks=6, width=64, heads=4, feed_forward=128, architecture="gemma3")
HYBRID = Size(blocks=4, width=64, heads=4, feed_forward=128, architecture="lfm2")


def vocabulary() -> tuple[list[str], list[float], list[int]]:
    """Return the tokens, their scores (higher merges first) and their types, three lists of equal length."""
    tokens = ["<unk>", "<s>", "</s>"]
    types = [UNKNOWN, CONTROL, CONTROL]
    tokens += [f"<0x{byte:02X}>" for byte in range(256)]
    types += [BYTE] * 256
    tokens += ["<|im_start|>", "<|im_end|>"]
    types += [CONTROL] * 2
    pieces = dict.fromkeys([WORD_MARK, "\n"])
    for character in string.digits + string.ascii_letters + string.punctuation:
        pieces.update(dict.fromkeys([character, WORD_MARK + character]))
    for word in COMMON_WORDS:
        for length in range(1, len(word) + 1):
            pieces.update(dict.fromkeys([word[:length], WORD_MARK + word[:length]]))
    tokens += list(pieces)
    types += [NORMAL] * len(pieces)
    # Longer pieces score higher, so a word that can be completed is completed.
    scores = [float(len(token)) if kind == NORMAL else 0.0 for token, kind in zip(tokens, types, strict=True)]
    return tokens, scores, types


def write_model(path: Path, size: Size, seed: int = 1, chat_template: str = CHAT_TEMPLATE) -> None:
    """Write a GGUF file with random weights, whole or not at all.

    `seed` chooses the weights: two seeds give two models of the same shape with different answers.  `chat_template` is
    the Jinja text that makes prompts of messages.  Raises `OSError` where the file cannot be written.
    """
    # Imported here: `gguf` and `numpy` come with the extra `demo`, and only who generates a model needs them.
    import gguf

    # Written beside its place and then renamed: a start that was killed leaves no half model behind.
    draft = path.with_name(f"{path.name}.{os.getpid()}.draft")
    writer = gguf.GGUFWriter(str(draft), size.architecture)
    describe(writer, size)
    tokens, scores, types = vocabulary()
    writer.add_tokenizer_model("llama")
    writer.add_token_list(tokens)
    writer.add_token_scores(scores)
    writer.add_token_types(types)
    writer.add_bos_token_id(tokens.index("<s>"))
    writer.add_eos_token_id(tokens.index("<|im_end|>"))
    writer.add_unk_token_id(tokens.index("<unk>"))
    writer.add_chat_template(chat_template)
    for name, values in weights(size, types, seed):
        writer.add_tensor(f"{name}.weight", values)
    try:
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)


def describe(writer: gguf.GGUFWriter, size: Size) -> None:
    """Write the keys that say what shape the model has."""
    head = size.width // size.heads
    writer.add_name(f"bioproxy-demo-{size.width}x{size.blocks}")
    writer.add_context_length(size.context)
    writer.add_embedding_length(size.width)
    writer.add_feed_forward_length(size.feed_forward)
    writer.add_block_count(size.blocks)
    writer.add_head_count(size.heads)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(head)
    if size.architecture == "lfm2":
        writer.add_head_count_kv([0 if size.is_recurrent(block) else size.heads for block in range(size.blocks)])
        writer.add_shortconv_l_cache(CONVOLUTION)
    else:
        writer.add_head_count_kv(size.heads)
    if size.architecture == "gemma3":
        writer.add_key_length(head)
        writer.add_value_length(head)
        writer.add_sliding_window(512)


def weights(size: Size, types: list[int], seed: int) -> Iterator[tuple[str, Values]]:
    """Yield the names of all tensors with random values; `types` are those of the tokens."""
    import numpy

    random = numpy.random.default_rng(seed)

    def some(*shape: int) -> Values:
        """Normally distributed numbers that keep activations at about the same magnitude from layer to layer."""
        values = random.standard_normal(shape, dtype=numpy.float32)
        return values / numpy.float32(numpy.sqrt(shape[-1]))

    def ones(length: int) -> Values:
        """The weights of a norm that changes nothing."""
        return numpy.ones(length, dtype=numpy.float32)

    # Gemma multiplies the embeddings itself.
    scale = 1 if size.architecture == "gemma3" else size.width**0.5
    yield "token_embd", some(len(types), size.width) * numpy.float32(scale)
    yield ("token_embd_norm" if size.architecture == "lfm2" else "output_norm"), ones(size.width)
    # Only ordinary text gets a chance: a row of zeros gives a token the score 0, which some word always beats.
    # Otherwise the nonsense would be full of broken UTF-8 and would end at random.
    output = some(len(types), size.width) * numpy.float32(4)
    output[[kind != NORMAL for kind in types]] = 0
    yield "output", output
    more_norms = ("post_attention_norm", "post_ffw_norm") if size.architecture == "gemma3" else ()
    for block in range(size.blocks):
        layer = f"blk.{block}"
        for norm in ("attn_norm", "ffn_norm", *more_norms):
            yield f"{layer}.{norm}", ones(size.width)
        if size.is_recurrent(block):
            yield f"{layer}.shortconv.conv", some(size.width, CONVOLUTION)
            yield f"{layer}.shortconv.in_proj", some(3 * size.width, size.width)
            yield f"{layer}.shortconv.out_proj", some(size.width, size.width)
        else:
            for part in ("attn_q", "attn_k", "attn_v", "attn_output"):
                yield f"{layer}.{part}", some(size.width, size.width)
            for norm in () if size.architecture == "llama" else ("attn_q_norm", "attn_k_norm"):
                yield f"{layer}.{norm}", ones(size.width // size.heads)
        yield f"{layer}.ffn_gate", some(size.feed_forward, size.width)
        yield f"{layer}.ffn_up", some(size.feed_forward, size.width)
        yield f"{layer}.ffn_down", some(size.width, size.feed_forward)
