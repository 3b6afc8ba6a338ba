"""Writes a small language model with random weights, so that nothing has to be downloaded.

llama.cpp reads one file format, GGUF: a list of keys (number and width of the layers, chat template, the vocabulary of
`bioproxy.demo.vocabulary`) followed by the weights.  All of that can be generated.  Such a model writes nonsense, but
everything that bioproxy deals with is real: tokens, slots, the KV cache and its files, and the time that a prompt
takes.  Two sizes are useful:

* `TINY` (0.7 MB) evaluates thousands of tokens a second, for tests.
* `SMALL` (112 MB) needs about 1.5 s for 1,000 tokens on two CPU cores, so that a user can feel the difference between a
  prompt that is computed and one that is restored.

What llama.cpp can do with a saved KV cache depends on the model's layers, so there are three kinds of models: *dense*,
where each token attends to all tokens before it; *sliding window*, where most layers see only the last 512 tokens; and
*hybrid*, where some layers keep one state, which changes with each token and cannot be changed back.

Plain Python and numpy.  Does not know Twisted or the rest of bioproxy.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from bioproxy.demo.vocabulary import NORMAL, vocabulary

if TYPE_CHECKING:
    import gguf
    import numpy

    Values: TypeAlias = numpy.typing.NDArray[numpy.float32]

CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
"""The Jinja text that turns messages into a prompt: ChatML, the simplest of the common formats."""

WINDOW = 512
"""Tokens that a sliding window has.

Tests use prompts that are a few times as long.  With half of it they would still work; with twice as much, their
prompts would have to be longer.
"""


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
