"""A llama.cpp with parameters that the demo's has no options for: ``python -m tests.integration.llama_with JSON ...``.

JSON is an object of names and values of llama.cpp's `CommonParams`; the rest is as `bioproxy.demo.llama_child` has it.
"""

from __future__ import annotations

import json
import sys
from typing import Any

import xllamacpp  # type: ignore[import-untyped]

from bioproxy.demo import llama_child


def assign(params: Any, values: dict[str, Any]) -> None:
    """Assign values; an object stands for the values of a structure inside."""
    for name, value in values.items():
        if isinstance(value, dict):
            assign(getattr(params, name), value)
        else:
            setattr(params, name, value)


def main() -> None:
    """Serve as `llama_child` does, with these parameters."""
    more: dict[str, Any] = json.loads(sys.argv.pop(1))
    plain = xllamacpp.CommonParams

    def params() -> Any:
        made = plain()
        assign(made, more)
        return made

    xllamacpp.CommonParams = params
    llama_child.main()


if __name__ == "__main__":
    main()
