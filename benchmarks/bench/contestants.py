"""What bioproxy is compared with where only the way of a request matters: proxies in front of one server.

A `Contestant` is a name and a function that starts it in front of a server's port.  The function returns the `Child`,
or raises `Missing` with one line where the program cannot be had; the run then goes on without it.

nginx and HAProxy are found on the path (``apt-get install nginx haproxy``), and are told to do as little as a proxy in
front of llama-server may: one process, no buffering of answers, connections to the server kept.  Without
``http-no-delay`` HAProxy holds small events back for up to 200 ms, which a user would notice.  LiteLLM's proxy comes
from PyPI into a virtual environment of its own, in the cache folder, where it stays.

Does not know what is measured.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from benchmarks.bench.machine import program
from benchmarks.servers import Child, Children, free_ports
from bioproxy.settings.configuration import xdg_folder

# Written for `str.format`: doubled braces are single ones in the file.  Each has the settings that its users would have
# to find out for llama-server: no buffering, long time limits, connections that are kept.
NGINX = """daemon off; master_process off; pid nginx.pid; error_log stderr; worker_processes 1;
events {{ worker_connections 4096; }}
http {{
  access_log off; keepalive_requests 1000000; client_max_body_size 64m;
  client_body_temp_path body; proxy_temp_path proxy; fastcgi_temp_path f; uwsgi_temp_path u; scgi_temp_path s;
  upstream llama {{ server 127.0.0.1:{server}; keepalive 64; keepalive_requests 1000000; }}
  server {{
    listen 127.0.0.1:{port};
    location / {{
      proxy_pass http://llama; proxy_http_version 1.1; proxy_set_header Connection ""; proxy_buffering off;
      proxy_read_timeout 600s;
    }}
  }}
}}
"""

HAPROXY = """global
  maxconn 4096
  nbthread 1
defaults
  mode http
  timeout connect 5s
  timeout client 600s
  timeout server 600s
  http-reuse always
  option http-no-delay
listen llama
  bind 127.0.0.1:{port}
  server llama 127.0.0.1:{server}
"""

LITELLM = """model_list:
  - model_name: stand-in
    litellm_params: {{model: openai/stand-in, api_base: "http://127.0.0.1:{server}/v1", api_key: none}}
litellm_settings: {{telemetry: false, num_retries: 0}}
"""

INSTALLING = 900
"""Seconds that the installation of LiteLLM may take: it has more than a hundred dependencies."""

STARTING = 300.0
"""Seconds that LiteLLM may take until it listens; over a minute is usual on two processors."""


KEY = "sk-bench"
"""The key that clients show.  LiteLLM asks for one, and the others do not look at it."""


class Missing(Exception):
    """A contestant cannot be had here; the text says why, in one line."""


@dataclass(frozen=True)
class Contestant:
    """A proxy: `start` gets where processes are started, a scratch folder and the server's port."""

    name: str
    """As it stands in tables and pictures."""
    start: Callable[[Children, Path, int], Child]
    """Starts it, and returns it when it listens; raises `Missing` if it cannot be had."""


def fifteen_lines(children: Children, folder: Path, server: int) -> Child:
    """Start the fifteen lines of Klein and treq."""
    (port,) = free_ports(1)
    url = f"http://127.0.0.1:{server}"
    return children.start("15-lines", ("-m", "benchmarks.bench.fifteen_lines", port, url), port)


def bioproxy(children: Children, folder: Path, server: int) -> Child:
    """Start bioproxy with a template, which is looked for in each request.  The stand-in has nothing to warm up."""
    port, admin = free_ports(2)
    template = folder / "small.txt"
    template.write_text("Answer briefly. <{message}>")
    return children.bioproxy(
        "bioproxy", port, admin, f"http://127.0.0.1:{server}", "--prefix", f"@x={template}", "--no-warmup"
    )


def nginx(children: Children, folder: Path, server: int) -> Child:
    """Start nginx, as one process without privileges, whose files are all in the scratch folder."""
    (port,) = free_ports(1)
    config = folder / "nginx.conf"
    config.write_text(NGINX.format(port=port, server=server))
    return children.start("nginx", ("-p", f"{folder}/", "-c", config), port, program=installed("nginx"))


def haproxy(children: Children, folder: Path, server: int) -> Child:
    """Start HAProxy, with one thread, as bioproxy has one."""
    (port,) = free_ports(1)
    config = folder / "haproxy.cfg"
    config.write_text(HAPROXY.format(port=port, server=server))
    return children.start("haproxy", ("-db", "-f", config), port, program=installed("haproxy"))


def installed(name: str) -> str:
    """Return the path of a program of Debian's.  Raises `Missing` with the command that installs it."""
    path = program(name)
    if path is None:
        raise Missing(f"{name} is not installed: apt-get install {name}")
    return path


def litellm(children: Children, folder: Path, server: int) -> Child:
    """Install LiteLLM's proxy if need be, and start it.

    It is the one that people put in front of several models, and does far more than passing on; its figures say what
    that costs.
    """
    (port,) = free_ports(1)
    command = environment("litellm", "litellm[proxy]", INSTALLING) / "litellm"
    config = folder / "litellm.yaml"
    config.write_text(LITELLM.format(server=server))
    arguments = ("--config", config, "--host", "127.0.0.1", "--port", port, "--num_workers", 1)
    # The list of prices of all models is in the package; without this the start fetches a newer one.
    # It does not start without a key that its clients must show.
    more = {"LITELLM_MASTER_KEY": KEY, "LITELLM_LOCAL_MODEL_COST_MAP": "True", "LITELLM_LOG": "ERROR"}
    try:
        return children.start("litellm", arguments, port, STARTING, command, **more)
    except SystemExit as error:
        raise Missing(f"LiteLLM did not start: {' '.join(str(error).split())[-300:]}") from None


def environment(name: str, requirement: str, seconds: float) -> Path:
    """Return the folder of programs of a virtual environment that has a package of PyPI; make it if need be.

    `requirement` is what pip installs, within so many `seconds`.  Raises `Missing`, in one line, if that fails.
    """
    # In the user's cache, so that the next run need not download it.  A file says that the installation came to its
    # end: one that was interrupted is made again.
    folder = xdg_folder("XDG_CACHE_HOME", ".cache") / "bench" / name
    finished = folder / "finished"
    if not finished.exists():
        print(f"  installing {requirement} into {folder}, once", flush=True)
        install = [str(folder / "bin" / "python"), "-m", "pip", "install", "--quiet", "--retries", "1", requirement]
        try:
            subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True, timeout=seconds)
            subprocess.run(install, check=True, timeout=seconds, capture_output=True, env={**os.environ})
        except (OSError, subprocess.SubprocessError) as error:
            raise Missing(f"{requirement} cannot be installed: {type(error).__name__}") from None
        finished.touch()
    return folder / "bin"


PROXIES = (
    Contestant("nginx", nginx),
    Contestant("HAProxy", haproxy),
    Contestant("15 lines", fifteen_lines),
    Contestant("bioproxy", bioproxy),
)
"""Those that start at once, from the barest one to bioproxy.

The fifteen lines are the yardstick: what Twisted, treq and Klein cost with nothing of bioproxy's in between.
"""
