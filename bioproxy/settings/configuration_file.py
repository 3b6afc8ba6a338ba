"""Reading the configuration file: one JSON object.

The file is written by hand, so each mistake in it gets one line that names the file: it cannot be read, it is no JSON,
a key is given twice.  The values are left as JSON has them; `bioproxy.settings.configuration` checks them.

It is read when the command line is parsed, before the reactor runs, and again by each reload, then in the reactor's
thread: nothing else runs meanwhile.  In Twisted that is a thing to avoid, and right for a small file on a local disk.

Does not know which settings there are.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from bioproxy.runtime.errors import ConfigError


def read_file(file: Path, may_be_missing: bool = False) -> dict[str, Any]:
    """Return the content of a configuration file, one JSON object.

    Raises `ConfigError`.  With `may_be_missing`, a missing file is the same as an empty object.
    """

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        """Return the pairs of an object as a dict.  Called by `json` for each object, innermost first."""
        # JSON allows a key to appear twice, and the last one silently wins.  In a configuration that is a mistake.
        names = [name for name, _ in pairs]
        for name in names:
            if names.count(name) > 1:
                raise ConfigError(f"{file}: {name!r}: given twice")
        return dict(pairs)

    # `utf-8-sig` accepts the byte-order mark that some editors under Windows put in front.
    try:
        content = json.loads(file.read_text(encoding="utf-8-sig"), object_pairs_hook=once)
    except OSError as error:
        if may_be_missing and isinstance(error, FileNotFoundError):
            return {}
        raise ConfigError(f"{file}: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{file}: not JSON: {error}") from None
    # A list or a text is valid JSON, too, and so is ``null``.
    if not isinstance(content, dict):
        raise ConfigError(f"{file}: must hold one JSON object")
    return content
