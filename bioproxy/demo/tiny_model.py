"""Writes a small language model with random weights, so that nothing has to be downloaded.

llama.cpp reads one file format, GGUF: a list of keys (number and width of the layers, vocabulary, chat template)
followed by the weights.  All of that can be generated.  Such a model writes nonsense, but everything that bioproxy
deals with is real: tokens, slots, the KV cache and its files, and the time that a prompt takes.  Two sizes are useful:

* `TINY` (0.7 MB) evaluates thousands of tokens a second, for tests.
* `SMALL` (112 MB) needs about 1.5 s for 1,000 tokens on two CPU cores, so that a user can feel the difference between a
  prompt that is computed and one that is restored.

The vocabulary is of the kind that SentencePiece makes and Llama has.  The tokenizer starts from single characters and
merges two neighbours whenever the merged text is a token as well.  So every *prefix* of a common word has to be a
token: without the steps ``t``, ``te``, ``tem`` no merge could ever reach ``template``.

What llama.cpp can do with a saved KV cache depends on the model's layers, so there are three kinds of models: *dense*,
where each token attends to all tokens before it; *sliding window*, where most layers see only the last 512 tokens; and
*hybrid*, where some layers keep one state, which changes with each token and cannot be changed back.

Plain Python and numpy.  Does not know Twisted or the rest of bioproxy.
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
"""The character that stands for the space before a word in SentencePiece's tokens."""

CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
"""The Jinja text that turns messages into a prompt: ChatML, the simplest of the common formats."""

# The types of tokens in GGUF (`tokenizer.ggml.token_type` in its specification).
NORMAL, UNKNOWN, CONTROL, BYTE = 1, 2, 3, 6

WINDOW = 512
"""Tokens that a sliding window has.

Tests use prompts that are a few times as long.  With half of it they would still work; with twice as much, their
prompts would have to be longer.
"""

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


@dataclass(frozen=True)
class Size:
    """The shape of a model."""

    blocks: int
    """Layers, one after the other."""

    width: int
    """Numbers in the embedding of a token; a multiple of `heads`."""

    heads: int
    """Attention heads of each layer, which share the width."""

    feed_forward: int
    """Width of the feed-forward part of each layer."""

    context: int = 16384
    """Tokens that a prompt and its answer may have together."""

    architecture: str = "llama"
    """One that llama.cpp implements: ``llama`` (dense), ``gemma3`` (sliding window) or ``lfm2`` (hybrid)."""

    def is_recurrent(self, block: int) -> bool:
        """Tell whether a layer keeps a state instead of attending to all tokens: every other one of a hybrid model."""
        return self.architecture == "lfm2" and block % 2 == 0


QUANTIZED_BLOCK = 32
"""Numbers that share a scale in the formats ``Q8_0`` and ``Q4_0``, as GGUF defines them.

Tests need such formats because rounding makes small differences large: where llama.cpp's kernels for short and long
batches disagree in the last digits, a quantized model says so plainly, and one with plain floats hardly does.
"""

CONVOLUTION = 3
"""Tokens that a recurrent layer of a hybrid model combines at a time."""

TINY = Size(blocks=2, width=64, heads=4, feed_forward=128)
"""For tests: dense, and fast enough that most tests need not wait for it."""

SMALL = Size(blocks=8, width=512, heads=8, feed_forward=1536)
"""For the demonstration: dense, and slow enough that computing a template can be felt."""

SLIDING = Size(blocks=6, width=64, heads=4, feed_forward=128, architecture="gemma3")
"""For tests of models with a sliding window.  In this architecture each sixth layer sees all tokens."""

HYBRID = Size(blocks=4, width=64, heads=4, feed_forward=128, architecture="lfm2")
"""For tests of models with recurrent layers."""


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


def write_model(
    path: Path, size: Size, seed: int = 1, chat_template: str = CHAT_TEMPLATE, quantization: str = "F32"
) -> None:
    """Write a GGUF file with random weights to `path`, whole or not at all.

    `seed` selects the weights: the same seed gives the same bytes, and two seeds give two models of the same shape with
    different answers.  `chat_template` is the Jinja text that turns messages into a prompt.  `quantization` is the
    format of the matrices, by ggml's name: ``F32``, or ``Q8_0`` or ``Q4_0`` for blocks of 32 small integers, as most
    downloaded models have.  Blocks for some seconds if `size` is large.  Raises `OSError` if the file cannot be
    written.
    """
    # Imported here, because `gguf` and `numpy` come with the extra `demo`, and only generating a model needs them.
    import gguf

    # The file is written beside its place and then renamed, so that a process that is killed meanwhile leaves no
    # incomplete model, which llama.cpp would refuse at each later start.
    draft = path.with_name(f"{path.name}.{os.getpid()}.draft")
    writer = gguf.GGUFWriter(str(draft), size.architecture)
    describe(writer, size)
    # "llama" is the name for SentencePiece, after the first model that had it here.
    tokens, scores, types = vocabulary()
    writer.add_tokenizer_model("llama")
    writer.add_token_list(tokens)
    writer.add_token_scores(scores)
    writer.add_token_types(types)
    # An answer ends with the token that ends a message in the chat template.
    writer.add_bos_token_id(tokens.index("<s>"))
    writer.add_eos_token_id(tokens.index("<|im_end|>"))
    writer.add_unk_token_id(tokens.index("<unk>"))
    writer.add_chat_template(chat_template)
    for name, values in weights(size, types, seed):
        add_weights(writer, name, values, quantization)
    # The writer holds all tensors in memory until here; 112 MB for the largest model.
    try:
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)


def add_weights(writer: gguf.GGUFWriter, name: str, values: Values, quantization: str) -> None:
    """Add one tensor to the file, quantized if llama.cpp takes it so: see `write_model`.

    Norms and convolutions stay exact: llama.cpp multiplies them number by number and wants plain floats.
    """
    import gguf
    import gguf.quants

    # A row is divided into blocks of 32 numbers that share a scale, so its length must be a multiple of 32.  Other
    # matrices stay as they are; the convolutions of a hybrid model, with rows of 3, are among them.
    kind = gguf.GGMLQuantizationType[quantization]
    matrix = values.ndim == 2 and values.shape[1] % QUANTIZED_BLOCK == 0
    if matrix and quantization != "F32":
        writer.add_tensor(f"{name}.weight", gguf.quants.quantize(values, kind), raw_dtype=kind)
    else:
        writer.add_tensor(f"{name}.weight", values)


def describe(writer: gguf.GGUFWriter, size: Size) -> None:
    """Write the keys that describe the shape of a model.  Each architecture requires a few of its own."""
    # Numbers that one attention head works with.
    head = size.width // size.heads
    # Shown by llama-server, so that nobody takes the model for a real one.
    writer.add_name(f"bioproxy-demo-{size.width}x{size.blocks}")
    writer.add_context_length(size.context)
    writer.add_embedding_length(size.width)
    writer.add_feed_forward_length(size.feed_forward)
    writer.add_block_count(size.blocks)
    writer.add_head_count(size.heads)
    # A norm divides by a root mean square; this small number keeps it from dividing by zero.
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(head)
    if size.architecture == "lfm2":
        # A layer without attention heads is how this architecture says that the layer is recurrent.
        writer.add_head_count_kv([0 if size.is_recurrent(block) else size.heads for block in range(size.blocks)])
        writer.add_shortconv_l_cache(CONVOLUTION)
    else:
        writer.add_head_count_kv(size.heads)
    # Other architectures derive both lengths from width and heads.
    if size.architecture == "gemma3":
        writer.add_key_length(head)
        writer.add_value_length(head)
        writer.add_sliding_window(WINDOW)


# A `yield` for each tensor, instead of a dict of all of them: the writer takes them one by one.


def weights(size: Size, types: list[int], seed: int) -> Iterator[tuple[str, Values]]:
    """Yield the names of all tensors with random values, one at a time; `types` are those of the tokens.

    The names are those that llama.cpp looks for in a model of the architecture.
    """
    import numpy

    # A generator of its own: numpy's global one may be used elsewhere, and the file would depend on that.
    random = numpy.random.default_rng(seed)

    def some(*shape: int) -> Values:
        """Return normally distributed numbers, small enough that activations do not grow from layer to layer."""
        values = random.standard_normal(shape, dtype=numpy.float32)
        return values / numpy.float32(numpy.sqrt(shape[-1]))

    def ones(length: int) -> Values:
        """Return the weights of a norm that changes nothing but the magnitude."""
        return numpy.ones(length, dtype=numpy.float32)

    # `some` returns numbers of about the magnitude 1 / sqrt(width), as weights need them; embeddings need about 1.
    # Gemma multiplies them itself.
    scale = 1 if size.architecture == "gemma3" else size.width**0.5
    yield "token_embd", some(len(types), size.width) * numpy.float32(scale)
    yield ("token_embd_norm" if size.architecture == "lfm2" else "output_norm"), ones(size.width)
    # Tokens that are no ordinary text get a row of zeros, so their score is always 0, and some word always has a higher
    # one.  Otherwise the nonsense would be full of broken UTF-8, and answers would end at random.
    # The factor 4 makes some words much more likely than others; without it all would be about equally likely.
    output = some(len(types), size.width) * numpy.float32(4)
    output[[kind != NORMAL for kind in types]] = 0
    yield "output", output
    # From here on, names differ between the architectures: each has the parts that its own layers need.
    more_norms = ("post_attention_norm", "post_ffw_norm") if size.architecture == "gemma3" else ()
    # The layers.  A name begins with the number of its layer.
    for block in range(size.blocks):
        layer = f"blk.{block}"
        for norm in ("attn_norm", "ffn_norm", *more_norms):
            yield f"{layer}.{norm}", ones(size.width)
        if size.is_recurrent(block):
            # Instead of attention: a short convolution over the last few tokens.
            yield f"{layer}.shortconv.conv", some(size.width, CONVOLUTION)
            yield f"{layer}.shortconv.in_proj", some(3 * size.width, size.width)
            yield f"{layer}.shortconv.out_proj", some(size.width, size.width)
        else:
            for part in ("attn_q", "attn_k", "attn_v", "attn_output"):
                yield f"{layer}.{part}", some(size.width, size.width)
            for norm in () if size.architecture == "llama" else ("attn_q_norm", "attn_k_norm"):
                yield f"{layer}.{norm}", ones(size.width // size.heads)
        # The feed-forward part, which all kinds of layers have.
        yield f"{layer}.ffn_gate", some(size.feed_forward, size.width)
        yield f"{layer}.ffn_up", some(size.feed_forward, size.width)
        yield f"{layer}.ffn_down", some(size.width, size.feed_forward)
