"""``--check``: says what the configuration amounts to, and what is wrong with it.

Knows nothing of Twisted: nothing is started for a check.
"""

from __future__ import annotations

from bioproxy import config, templates
from bioproxy.config import Settings
from bioproxy.connections import trusted
from bioproxy.errors import ConfigError, TemplateError
from bioproxy.keys import Keys


def report(settings: Settings) -> tuple[list[str], list[str]]:
    """Read every template.

    Returns what was found, line by line, and the problems, one a line: none means that all is well.
    """
    lines = [f"{key} = {getattr(settings, key)}" for key in config.FIELDS if key != "prefixes"]
    problems = []
    for read in (
        Keys(settings.api_key_file, settings.llama_api_key_file).read,
        lambda: trusted(settings.llama_ca_file),
    ):
        try:
            read()
        except ConfigError as error:
            problems.append(str(error))
    if settings.slot_save_path is not None and not settings.slot_save_path.is_dir():
        problems.append(f"slot_save_path: {settings.slot_save_path} is no folder")
    if not settings.templates:
        lines.append("no templates: every request passes through as it is")
    for template in settings.templates:
        lines.append(f"{template.prefix} -> {template.path}")
        try:
            text = templates.read(template)
        except TemplateError as error:
            problems.append(str(error))
            continue
        lines.append(f"    {len(text.prefix)} characters before the message, {len(text.includes)} files included")
        lines.extend(f"    includes {include}" for include in text.includes)
        problems.extend(f"template {template.name}: {error}" for error in text.errors)
        if not text.prefix.strip():
            lines.append("    warning: begins with <{message}>, so there is nothing to warm")
    return lines, problems
