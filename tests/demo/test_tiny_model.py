"""The model that is made up on the spot."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import gguf

from bioproxy.demo import tiny_model
from bioproxy.demo.tiny_model import TINY, write_model
from bioproxy.demo.vocabulary import NORMAL, vocabulary
from tests.support.folders import FolderTest


class Writing(FolderTest):
    """`write_model`."""

    def write(self, name: str, seed: int = 1) -> Path:
        """Write a tiny model."""
        path = self.folder / name
        write_model(path, TINY, seed)
        return path

    def test_readable(self) -> None:
        """The file is GGUF: shape, vocabulary and weights are what was asked for."""
        reader = gguf.GGUFReader(self.write("model.gguf"))

        def value(key: str) -> Any:
            field = reader.get_field(key)
            assert field is not None, key
            return field.contents()

        tokens, _, types = vocabulary()
        self.assertEqual("llama", value("general.architecture"))
        self.assertEqual((TINY.blocks, TINY.width), (value("llama.block_count"), value("llama.embedding_length")))
        self.assertEqual(TINY.context, value("llama.context_length"))
        self.assertEqual((tokens, types), (value("tokenizer.ggml.tokens"), value("tokenizer.ggml.token_type")))
        self.assertEqual("<|im_end|>", tokens[value("tokenizer.ggml.eos_token_id")])
        self.assertEqual(tiny_model.CHAT_TEMPLATE, value("tokenizer.chat_template"))
        weights = {tensor.name: tensor for tensor in reader.tensors}
        self.assertEqual(3 + 9 * TINY.blocks, len(weights))
        self.assertEqual([TINY.width, len(tokens)], list(weights["output.weight"].shape))
        self.assertEqual([TINY.width, TINY.feed_forward], list(weights["blk.1.ffn_up.weight"].shape))

    def test_quantized(self) -> None:
        """Matrices are in the format that was asked for; norms, whose values all matter, stay plain floats."""
        path = self.folder / "model.gguf"
        write_model(path, TINY, quantization="Q8_0")
        kinds = {tensor.name: tensor.tensor_type.name for tensor in gguf.GGUFReader(path).tensors}
        self.assertEqual("Q8_0", kinds["output.weight"])
        self.assertEqual("Q8_0", kinds["blk.1.ffn_up.weight"])
        self.assertEqual("F32", kinds["blk.1.ffn_norm.weight"])
        self.assertEqual({"Q8_0", "F32"}, set(kinds.values()))

    def test_only_text_is_said(self) -> None:
        """Tokens that are no ordinary text have weights of zero, all others have not."""
        reader = gguf.GGUFReader(self.write("model.gguf"))
        [output] = [tensor for tensor in reader.tensors if tensor.name == "output.weight"]
        _, _, types = vocabulary()
        self.assertEqual([kind == NORMAL for kind in types], output.data.any(axis=1).tolist())

    def test_seed(self) -> None:
        """The same seed gives the same bytes, another one other bytes of the same length."""
        one, same, other = (self.write(f"{n}.gguf", seed).read_bytes() for n, seed in enumerate((1, 1, 2)))
        self.assertEqual(one, same)
        self.assertNotEqual(one, other)
        self.assertEqual(len(one), len(other))

    def test_atomic(self) -> None:
        """Only the model is left, and a model that was there is replaced, not written in place."""
        path = self.write("model.gguf", seed=1)
        before = path.read_bytes()
        with path.open("rb") as old:
            self.write("model.gguf", seed=2)
            self.assertEqual(before, old.read())
        self.assertNotEqual(before, path.read_bytes())
        self.assertEqual(["model.gguf"], os.listdir(self.folder))

    def test_failure(self) -> None:
        """Where the model cannot be put, it fails with `OSError` and leaves nothing behind."""
        with self.assertRaises(OSError):
            self.write("no/such/folder/model.gguf")
        (self.folder / "model.gguf").mkdir()
        with self.assertRaises(OSError):
            self.write("model.gguf")
        self.assertEqual(["model.gguf"], os.listdir(self.folder))
