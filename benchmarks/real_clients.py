"""Which clients `benchmarks.soak_real_clients` runs: how each is installed, pointed to bioproxy, and asked something.

A row says what its page in `docs/clients/` says to a user, for one question without a terminal.  ``{url}`` in it stands
for bioproxy's address, and ``{question}`` for what is asked.

Plain values, and the two ways to install.  Nothing here starts bioproxy, and nothing is known of what clients send.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

INSTALL_SECONDS = 600
"""Seconds that an installation may take.

Half as many are too few for 400 MB over a slow line; twice as many let a registry that does not answer hold up the
other clients for longer.
"""

CONTEXT = 131072
"""Tokens of context of the generated model.  Its vocabulary is small: what is 25,000 tokens for a usual model is 43,000
for this one."""


class NotInstalled(Exception):
    """A client could not be installed; the text says why, in one line."""


@dataclass(frozen=True)
class RealClient:
    """A client that a registry has, and how it asks one question.

    Invariant: running it writes only into its home and its working folder.
    """

    name: str
    """Of its page and its fixture."""

    registry: str
    """``npm`` or ``pypi``."""

    package: str
    """What the registry calls it."""

    program: str
    """Its command."""

    ask: tuple[str, ...]
    """Arguments by which a new session asks ``{question}``."""

    goes_on: tuple[str, ...] = ()
    """Arguments by which the last session goes on; none where the client cannot."""

    environment: Mapping[str, str] = field(default_factory=dict)
    """Variables of its environment."""

    files: Mapping[str, str] = field(default_factory=dict)
    """Files that it reads, by their paths in its home."""

    learned: bool = True
    """Whether two of its sessions share a prompt that is long enough to be learned."""

    has_tools: bool = True
    """Whether that prompt has tools: then its first session is enough to learn it."""

    shares: bool = False
    """Whether they share long first messages of the user instead, which are found in a conversation's file."""


OPENCODE = {
    "provider": {
        "bioproxy": {
            "npm": "@ai-sdk/openai-compatible",
            "options": {"baseURL": "{url}/v1", "apiKey": "local"},
            "models": {"local": {"name": "llama.cpp", "limit": {"context": CONTEXT, "output": 4096}}},
        }
    },
    "model": "bioproxy/local",
    "small_model": "bioproxy/local",
}
"""OpenCode's ``opencode.json``."""

CODEX = """
model = "local"
model_provider = "bioproxy"

[model_providers.bioproxy]
name = "bioproxy"
base_url = "{url}/v1"
wire_api = "responses"
"""
"""Codex's ``config.toml``."""

NOTES = "".join(f"{number}. The house number {number} by the sea is small.\n" for number in range(1, 101))
"""What a client that has no long prompt of its own reads: 4,800 characters."""

OPENAI = {"OPENAI_API_BASE": "{url}/v1", "OPENAI_API_KEY": "local"}
"""Where clients find bioproxy that are made with OpenAI's package."""

LLM = ".config/io.datasette.llm/"
"""Folder of llm, in its home."""

MODELS = [{"model_id": "local", "model_name": "local", "api_base": "{url}/v1"}]
"""The list of llm's ``extra-openai-models.yaml``."""

LANGCHAIN = """
import pathlib, sys
from langchain_openai import ChatOpenAI
notes = pathlib.Path.home().joinpath("notes.md").read_text()
print(ChatOpenAI(model="local").invoke([("system", notes), ("user", sys.argv[1])]).content)
"""
"""A program that uses LangChain."""

CLIENTS = (
    RealClient(
        "claude-code",
        "npm",
        "@anthropic-ai/claude-code",
        "claude",
        ("-p", "{question}"),
        ("--continue", "-p", "{question}"),
        {
            "ANTHROPIC_BASE_URL": "{url}",
            "ANTHROPIC_AUTH_TOKEN": "local",
            "ANTHROPIC_MODEL": "local",
            "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1",
            "CLAUDE_CODE_ATTRIBUTION_HEADER": "0",
        },
    ),
    RealClient(
        "opencode",
        "npm",
        "opencode-ai",
        "opencode",
        ("run", "{question}"),
        ("run", "--continue", "{question}"),
        {"OPENCODE_DISABLE_AUTOUPDATE": "1", "OPENCODE_DISABLE_MODELS_FETCH": "1"},
        {".config/opencode/opencode.json": json.dumps(OPENCODE)},
    ),
    RealClient(
        "codex",
        "npm",
        "@openai/codex",
        "codex",
        ("exec", "--skip-git-repo-check", "{question}"),
        ("exec", "--skip-git-repo-check", "resume", "--last", "{question}"),
        files={".codex/config.toml": CODEX},
    ),
    RealClient(
        "aider",
        "pypi",
        "aider-chat",
        "aider",
        (
            *("--model", "openai/local", "--map-tokens", "0", "--edit-format", "ask", "--read", "../home/notes.md"),
            *("--yes-always", "--no-git", "--no-check-update", "--analytics-disable", "--no-show-model-warnings"),
            *("--message", "{question}"),
        ),
        environment=OPENAI,
        files={"notes.md": NOTES},
        learned=False,
        shares=True,
    ),
    RealClient(
        "langchain",
        "pypi",
        "langchain-openai",
        "python",
        ("-c", LANGCHAIN, "{question}"),
        environment=OPENAI,
        files={"notes.md": NOTES},
        has_tools=False,
    ),
    RealClient(
        "llm",
        "pypi",
        "llm",
        "llm",
        ("-t", "notes", "{question}"),
        ("-c", "{question}"),
        # JSON is YAML as well.
        files={
            LLM + "extra-openai-models.yaml": json.dumps(MODELS),
            LLM + "templates/notes.yaml": json.dumps({"model": "local", "system": NOTES}),
        },
        has_tools=False,
    ),
)
"""Each client, in the order in which they run."""


@dataclass(frozen=True)
class Installed:
    """A client that was installed: its program and its version."""

    client: RealClient
    program: Path
    version: str


def run(*command: str | Path, cwd: Path) -> str:
    """Run a command of an installation and return its output.  Raises `NotInstalled`."""
    try:
        done = subprocess.run(
            command, cwd=cwd, timeout=INSTALL_SECONDS, capture_output=True, text=True, stdin=subprocess.DEVNULL
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise NotInstalled(str(error)) from None
    if done.returncode:
        lines = [line for line in (done.stdout + done.stderr).splitlines() if "error" in line.lower()]
        raise NotInstalled(lines[0] if lines else f"{command[0]} ended with {done.returncode}")
    return done.stdout


def install(client: RealClient, folder: Path) -> Installed:
    """Install a client into an empty folder.  Raises `NotInstalled`."""
    folder.mkdir(parents=True)
    if client.registry == "npm":
        (folder / "package.json").write_text("{}")
        run("npm", "install", "--no-audit", "--no-fund", client.package, cwd=folder)
        modules = folder / "node_modules"
        version = json.loads((modules / client.package / "package.json").read_text())["version"]
        return Installed(client, modules / ".bin" / client.program, version)
    run(sys.executable, "-m", "venv", ".", cwd=folder)
    run(folder / "bin" / "pip", "install", "--quiet", "--disable-pip-version-check", client.package, cwd=folder)
    ask = f"import importlib.metadata; print(importlib.metadata.version({client.package!r}))"
    return Installed(
        client, folder / "bin" / client.program, run(folder / "bin" / "python", "-c", ask, cwd=folder).strip()
    )


def prepare(client: RealClient, home: Path, url: str) -> dict[str, str]:
    """Write a client's files into its home, and return its environment: nothing of the user's own but the path."""
    for path, text in client.files.items():
        file = home / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text.replace("{url}", url))
    own = {name: value.replace("{url}", url) for name, value in client.environment.items()}
    return {"PATH": os.environ["PATH"], "HOME": str(home), "TERM": "dumb", "LANG": "C.UTF-8", **own}
