"""A real llama.cpp server in a process of its own: ``python -m bioproxy.demo.llama_child --help``.

The wheel `xllamacpp` has llama.cpp's server as a Python extension.  It runs in a child process and not in bioproxy's
own, because llama.cpp ends its *process* when it fails hard (a failed assertion in C++ is not an exception), and
because the tests need a server that can be killed.

The child lives as long as its standard input is open, a pipe that the parent never writes to.  When the parent ends,
however hard (``kill -9`` included), the operating system closes the pipe, the child reads its end and ends too.  No
process is left behind, and no process id has to be stored.

Blocking Python without Twisted: llama.cpp serves in threads of its own, and the main thread only waits for that end.
Does not know the rest of bioproxy.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
from pathlib import Path

from bioproxy.demo import tiny_model

SIZES = {"tiny": tiny_model.TINY, "small": tiny_model.SMALL}
"""What ``--generate`` can make, by its name."""

CACHE_RAM = 256
"""MiB of memory for prompts that are finished; llama.cpp's own default is 8 GiB.

0 would turn that cache off, and with it some of what a real llama-server does.  With half as much fewer prompts fit;
with twice as much a demonstration takes more memory than a visitor expects.
"""


def arguments() -> argparse.ArgumentParser:
    """Return the parser of the command line.

    An option that the real `llama-server` has too has the same name and the same meaning here.
    """
    parser = argparse.ArgumentParser(prog="python -m bioproxy.demo.llama_child", description=__doc__.split("\n")[0])
    # Where everything is.  The defaults suit a test, which asks for any free port and reads it from the output.
    parser.add_argument("--model", type=Path, required=True, help="GGUF file; generated if it is missing")
    parser.add_argument("--generate", choices=SIZES, default="tiny", help="what to generate (default: tiny)")
    parser.add_argument("--port", type=int, default=0, help="where to listen on 127.0.0.1 (default: any free port)")
    parser.add_argument("--ctx-size", type=int, default=16384, help="tokens of context (default: 16384)")
    parser.add_argument("--slot-save-path", type=Path, help="folder for slot files; without it they are switched off")
    parser.add_argument("--predict", type=int, default=-1, help="tokens of an answer that names no limit")
    # One core is left to others.  llama.cpp's threads wait for each other in busy loops: if one of them has no core of
    # its own, all the others spin until it gets one, and a prompt takes several times as long.
    threads = max(1, min(4, (os.cpu_count() or 1) - 1))
    parser.add_argument("--threads", type=int, default=threads, help=f"CPU threads (default here: {threads})")
    # What changes llama-server's behaviour: bioproxy has to cope with each of these.
    parser.add_argument("--no-slots", action="store_true", help="switch `GET /slots` off")
    parser.add_argument("--parallel", type=int, default=1, help="number of slots (default: 1)")
    parser.add_argument("--swa-full", action="store_true", help="keep all of a sliding window's past")
    parser.add_argument("--ctx-checkpoints", type=int, help="states kept to go back to, where a model cannot by itself")
    parser.add_argument(
        "--cache-ram", type=int, default=CACHE_RAM, help=f"MiB for finished prompts (default: {CACHE_RAM})"
    )
    parser.add_argument("--no-cache-prompt", action="store_true", help="reuse nothing")
    parser.add_argument("--sleep-idle-seconds", type=int, default=-1, help="unload the model after so much idle time")
    return parser


def main() -> None:
    """Serve until standard input ends; print ``listening on URL`` once requests are answered."""
    options = arguments().parse_args()
    # Ctrl-C in a terminal, and closing the terminal, signal all processes in it, this one too.  But the parent still
    # needs llama.cpp then, to finish the answers in progress; it closes the pipe when it is done.  Somebody who runs
    # this by hand has a terminal as standard input, and ends it with Ctrl-C.
    if not sys.stdin.isatty():
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
    # The first start makes the model, which takes some seconds for the larger size; later ones find it.
    options.model.parent.mkdir(parents=True, exist_ok=True)
    if not options.model.exists():
        tiny_model.write_model(options.model, SIZES[options.generate])

    # Imported late: loading the extension takes a moment, and ``--help`` works without it.
    import xllamacpp  # type: ignore[import-untyped]

    # The names below are those of llama.cpp's C++ structure, which the real program fills from its command line.
    params = xllamacpp.CommonParams()
    params.model.path = str(options.model)
    params.port = options.port
    params.n_parallel = options.parallel
    params.n_ctx = options.ctx_size
    params.n_predict = options.predict
    params.cpuparams.n_threads = options.threads
    params.cpuparams_batch.n_threads = options.threads
    # Parts of llama-server's HTTP interface, each of which can be switched off.
    params.endpoint_slots = not options.no_slots
    params.endpoint_metrics = True
    params.endpoint_props = True
    params.cache_ram_mib = options.cache_ram
    # What is kept of earlier tokens, and for how long.
    params.swa_full = options.swa_full
    params.cache_prompt = not options.no_cache_prompt
    params.sleep_idle_seconds = options.sleep_idle_seconds
    if options.ctx_checkpoints is not None:
        params.n_ctx_checkpoints = options.ctx_checkpoints
    if options.slot_save_path is not None:
        options.slot_save_path.mkdir(parents=True, exist_ok=True)
        # llama.cpp appends a file's name without a slash.  The real program adds one when it parses its options,
        # which is bypassed here.
        params.slot_save_path = f"{options.slot_save_path}/"
    # Returns when the model is loaded and the port is open: the parent need not poll for that.
    server = xllamacpp.Server(params)
    print(f"listening on {server.listening_address}", flush=True)

    # Blocks until the parent closes the pipe or is gone.
    sys.stdin.buffer.read()
    # Not `sys.exit`, which would wait for the C++ threads: an answer in progress may take minutes.
    os._exit(0)


if __name__ == "__main__":
    main()
