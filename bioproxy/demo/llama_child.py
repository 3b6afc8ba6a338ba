"""A real llama.cpp server in a process of its own: ``python -m bioproxy.demo.llama_child --help``.

The wheel `xllamacpp` brings llama.cpp's server as a Python extension.  It runs in a child process and not in
bioproxy's own because llama.cpp ends its *process* when it fails hard (an assertion in C++ is not an
exception), and because a server that can be killed is what the tests need.

The child holds on to its parent by its standard input, a pipe that the parent never writes to: when the
parent ends, however hard (``kill -9`` included), the operating system closes the pipe, the child reads its
end and goes too.  Nothing is left behind, and nobody has to remember a process id.

Knows nothing of the rest of bioproxy.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from bioproxy.demo import tiny_model

SIZES = {"tiny": tiny_model.TINY, "small": tiny_model.SMALL}


def arguments() -> argparse.ArgumentParser:
    """Describe the command line, in the words of the real `llama-server` where it has them."""
    parser = argparse.ArgumentParser(prog="python -m bioproxy.demo.llama_child", description=__doc__.split("\n")[0])
    parser.add_argument("--model", type=Path, required=True, help="GGUF file; generated if it is missing")
    parser.add_argument("--generate", choices=SIZES, default="tiny", help="what to generate (default: tiny)")
    parser.add_argument("--port", type=int, default=0, help="where to listen on 127.0.0.1 (default: any free port)")
    parser.add_argument("--ctx-size", type=int, default=16384, help="tokens of context (default: 16384)")
    parser.add_argument("--slot-save-path", type=Path, help="folder for slot files; without it they are switched off")
    parser.add_argument("--predict", type=int, default=-1, help="tokens of an answer that names no limit")
    # One core is left to others: llama.cpp's threads wait for each other without sleeping, and where one of them has
    # no core of its own, all of them crawl.
    threads = max(1, min(4, (os.cpu_count() or 1) - 1))
    parser.add_argument("--threads", type=int, default=threads, help=f"CPU threads (default here: {threads})")
    parser.add_argument("--no-slots", action="store_true", help="switch `GET /slots` off")
    parser.add_argument("--parallel", type=int, default=1, help="number of slots (default: 1)")
    parser.add_argument("--swa-full", action="store_true", help="keep all of a sliding window's past")
    parser.add_argument("--ctx-checkpoints", type=int, help="states kept to go back to, where a model cannot by itself")
    parser.add_argument("--no-cache-prompt", action="store_true", help="reuse nothing")
    parser.add_argument("--sleep-idle-seconds", type=int, default=-1, help="unload the model after so much idle time")
    return parser


def main() -> None:
    """Serve until standard input ends; print ``listening on URL`` once requests are answered."""
    options = arguments().parse_args()
    options.model.parent.mkdir(parents=True, exist_ok=True)
    if not options.model.exists():
        tiny_model.write_model(options.model, SIZES[options.generate])

    import xllamacpp  # type: ignore[import-untyped]

    params = xllamacpp.CommonParams()
    params.model.path = str(options.model)
    params.port = options.port
    params.n_parallel = options.parallel
    params.n_ctx = options.ctx_size
    params.n_predict = options.predict
    params.cpuparams.n_threads = options.threads
    params.cpuparams_batch.n_threads = options.threads
    params.endpoint_slots = not options.no_slots
    params.endpoint_metrics = True
    params.endpoint_props = True
    # Finished prompts are kept in memory too, by default up to 8 GiB.  A child for a demonstration is more modest.
    params.cache_ram_mib = 256
    params.swa_full = options.swa_full
    params.cache_prompt = not options.no_cache_prompt
    params.sleep_idle_seconds = options.sleep_idle_seconds
    if options.ctx_checkpoints is not None:
        params.n_ctx_checkpoints = options.ctx_checkpoints
    if options.slot_save_path is not None:
        options.slot_save_path.mkdir(parents=True, exist_ok=True)
        params.slot_save_path = f"{options.slot_save_path}/"  # llama.cpp appends the name as it is: the slash is ours
    server = xllamacpp.Server(params)
    print(f"listening on {server.listening_address}", flush=True)

    sys.stdin.buffer.read()
    # Not `sys.exit`: that would wait for the C++ threads, and a generation in progress may take minutes.
    os._exit(0)


if __name__ == "__main__":
    main()
