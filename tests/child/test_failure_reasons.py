"""Why llama.cpp ended: lines that it really wrote, and what is made of them."""

from __future__ import annotations

import signal

from twisted.trial.unittest import SynchronousTestCase

from bioproxy.child.failure_reasons import failure_reason

MEMORY = (
    "0.00.008.546 W srv          init: security: no API key is set and CORS allows all origins\n"
    "0.00.031.944 E ggml_aligned_malloc: insufficient memory (attempted to allocate 256.00 MB)\n"
    "0.00.031.965 E ggml_backend_cpu_buffer_type_alloc_buffer: failed to allocate buffer of size 268435456\n"
)

ENDING = (
    "0.00.032.428 E srv          init: exiting due to model loading error\n"
    "error: Failed to init server, please check the input params."
)

# What was written, and the beginning of the reason.  Recorded from build b11549 in the wheel.
TABLE = {
    (
        "0.00.017.397 E gguf_init_from_reader: invalid magic characters: '?Wn&', expected 'GGUF'\n"
        "0.00.017.519 E llama_model_load: error loading model: llama_model_loader: failed to load model from /m.gguf\n"
        "0.00.017.618 E cmn  common_init_: failed to load model '/m.gguf'\n" + ENDING
    ): "the model is not a GGUF file",
    (
        "0.00.031.195 E gguf_init_from_reader: this GGUF file is version 3886617614 but this software only supports up"
        " to version 3\n"
        "0.00.031.449 E llama_model_load: error loading model: llama_model_loader: failed to load model from /m.gguf\n"
    ): "the model's GGUF version is not known",
    (
        "0.00.005.326 E llama_model_load: error loading model: tensor 'token_embd.weight' data is not within the file"
        " bounds, model is corrupted or incomplete\n"
        "0.00.005.424 E common_fit_params: encountered an error while trying to fit params to free device memory:"
        " failed to load model\n" + ENDING
    ): "the model's file is incomplete",
    (
        "0.00.007.252 E srv         start: couldn't bind HTTP server socket, hostname: 127.0.0.1, port: 18999\n"
        "0.00.007.253 I srv    operator(): operator(): cleaning up before exit...\n"
        "0.00.011.543 E srv          init: exiting due to HTTP server error"
    ): "port 18999 is in use by another program",
    (
        MEMORY + "0.00.032.087 E llama_init_from_model: failed to initialize the context: failed to allocate buffer for"
        " kv cache\n" + ENDING
    ): "the context does not fit in memory",
    (MEMORY + ENDING): "there is not enough memory",
    "error: invalid argument: --no-such-flag": "llama_args: llama.cpp does not know --no-such-flag",
    "0.1 E llama_model_load: error loading model: unknown model architecture: 'new'": (
        "this llama.cpp does not know the model's architecture new"
    ),
    "0.1 E llama_model_load: error loading model: something else": "the model cannot be loaded: something else",
    "0.1 I all is well\n0.2 E srv init: nobody knows why\n" + ENDING: "it ended with exit code 1: srv init: nobody",
    "0.1 I all is well": "it ended with exit code 1",
    "": "it ended with exit code 1",
}


class Reasons(SynchronousTestCase):
    """`failure_reason`."""

    def test_table(self) -> None:
        """The line that explains most is found, among those that follow each failure."""
        for text, reason in TABLE.items():
            found = failure_reason(text.splitlines(), 1, None)
            self.assertTrue(found.startswith(reason), f"{found}: {text}")
            self.assertNotIn("\n", found)

    def test_killed(self) -> None:
        """A process that the system kills says nothing itself, and an old line explains nothing."""
        lines = [*MEMORY.splitlines()]
        for code, number in ((None, int(signal.SIGKILL)), (128 + signal.SIGKILL, None)):
            self.assertEqual(
                "it was killed (SIGKILL): the system does that if memory runs out", failure_reason(lines, code, number)
            )

    def test_signals(self) -> None:
        """Another signal is named, with the last error; an unknown one by its number."""
        lines = ["0.1 E GGML_ASSERT(x) failed"]
        self.assertEqual(
            "it was ended by the signal SIGABRT: GGML_ASSERT(x) failed", failure_reason(lines, None, signal.SIGABRT)
        )
        self.assertEqual("it was ended by the signal 99", failure_reason([], 128 + 99, None))

    def test_not_started(self) -> None:
        """Where there was no process, what the system said is told."""
        self.assertEqual("it could not be started: no room", failure_reason(["error: no room"], None, None))
