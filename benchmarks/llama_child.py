"""A real llama.cpp with a generated model: ``python -m benchmarks.llama_child --generate small --model FILE ...``.

The model is made if the file is missing.  All else is as `bioproxy.child.wheel_server` has it, but for defaults that
suit measurements: little memory for finished prompts, and all of llama.cpp's interface.
"""

from __future__ import annotations

import sys
from pathlib import Path

from bioproxy.child import wheel_server
from bioproxy.demo import tiny_model

SIZES = {"tiny": tiny_model.TINY, "small": tiny_model.SMALL}
"""What ``--generate`` can make, by its name."""


def main(arguments: list[str]) -> None:
    """Make the model, and serve."""
    size = tiny_model.TINY
    if "--generate" in arguments:
        place = arguments.index("--generate")
        size = SIZES[arguments[place + 1]]
        del arguments[place : place + 2]
    model = Path(arguments[arguments.index("--model") + 1])
    model.parent.mkdir(parents=True, exist_ok=True)
    if not model.exists():
        tiny_model.write_model(model, size)
    if "--slot-save-path" in arguments:
        Path(arguments[arguments.index("--slot-save-path") + 1]).mkdir(parents=True, exist_ok=True)
    wheel_server.main(["--cache-ram", "256", "--metrics", "--props", *arguments])


if __name__ == "__main__":
    main(sys.argv[1:])
