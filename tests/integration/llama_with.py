"""A llama.cpp with parameters that there are no flags for: ``python -m tests.integration.llama_with JSON ...``.

JSON is an object of names and values of llama.cpp's `CommonParams`; the rest is as `bioproxy.child.wheel_server` has
it.
"""

from __future__ import annotations

import json
import sys
from typing import Any

import xllamacpp  # type: ignore[import-untyped]

from bioproxy.child import wheel_server


def assign(params: Any, values: dict[str, Any]) -> None:
    """Assign values; an object stands for the values of a structure inside."""
    for name, value in values.items():
        if isinstance(value, dict):
            assign(getattr(params, name), value)
        elif name == "lora_adapters":
            params.lora_adapters = [adapter(path) for path in value]
        else:
            setattr(params, name, value)


def adapter(path: str) -> Any:
    """Return a LoRA adapter that is in a file, for the list `lora_adapters`."""
    made = xllamacpp.CommonAdapterLoraInfo()
    made.path, made.scale = path, 1.0
    return made


def main() -> None:
    """Serve as `wheel_server` does, with these parameters."""
    more: dict[str, Any] = json.loads(sys.argv.pop(1))
    plain = xllamacpp.CommonParams

    def params() -> Any:
        made = plain()
        assign(made, more)
        return made

    xllamacpp.CommonParams = params
    wheel_server.main(sys.argv[1:])


if __name__ == "__main__":
    main()
