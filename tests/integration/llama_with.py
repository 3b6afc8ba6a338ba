"""A llama.cpp with parameters that the demo's has no options for: ``python -m tests.integration.llama_with JSON ...``.

JSON is an object of names and values of llama.cpp's `CommonParams`; the rest is as `bioproxy.demo.llama_child` has it.
"""

from __future__ import annotations

import json
import sys
from typing import Any

import xllamacpp  # type: ignore[import-untyped]

from bioproxy.demo import llama_child


def main() -> None:
    """Serve as `llama_child` does, with these parameters."""
    more: dict[str, Any] = json.loads(sys.argv.pop(1))
    plain = xllamacpp.CommonParams

    def params() -> Any:
        made = plain()
        for name, value in more.items():
            setattr(made, name, value)
        return made

    xllamacpp.CommonParams = params
    llama_child.main()


if __name__ == "__main__":
    main()
