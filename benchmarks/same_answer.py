"""Are answers through bioproxy those of a cold run?  On any model: ``python -m benchmarks.same_answer MODEL.gguf``.

A prompt of about 4,000 tokens, once as a template whose warm-up is interrupted and once as a system message that is
learned; ten questions on each, two more after a restart of llama-server.  Then the same questions past bioproxy, with
nothing reused.  For each question it prints the largest difference of the ten likeliest first tokens'
log-probabilities, and whether 40 tokens at temperature 0 have the same words.

A cache that changes answers is no cache.  That reused tokens give what computed ones give is not a matter of course:
llama.cpp computes in batches, and a batch that ends elsewhere has other rounding errors, which may tip the choice
between two words that are nearly as likely.  `docs/same-answer.md` says what bioproxy does about that; this program
shows on any model whether it is enough.

Nothing is judged here.  A difference of 0 is the same computation, bit for bit.
"""

from __future__ import annotations

import json
import random
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from benchmarks import agents_day
from benchmarks.agents_day import Llama, metric, shelf
from benchmarks.servers import Children, free_ports, get, wait_for
from bioproxy.demo.vocabulary import COMMON_WORDS

NOTES = " ".join(random.Random(5).choices(COMMON_WORDS, k=3930))
"""The prompt: so long that it has several batches, and its end is no multiple of anything."""

QUESTIONS = tuple(" ".join(random.Random(words).choices(COMMON_WORDS, k=words)) + "?" for words in range(2, 22, 2))
"""Questions of different lengths: where a prompt ends decides how its last batch is computed."""

EXACT: dict[str, Any] = {"logprobs": True, "top_logprobs": 10, "temperature": 0, "max_tokens": 40}
"""Fields that show what is computed and not only what is said."""

PATH = "/v1/chat/completions"
"""Where the questions go."""


def template(question: str) -> dict[str, Any]:
    """Return a question on the template, filled in."""
    return {"messages": [{"role": "user", "content": f"{NOTES}\n{question}"}], **EXACT}


def system(question: str) -> dict[str, Any]:
    """Return a question behind the system message."""
    return {"messages": [{"role": "system", "content": NOTES}, {"role": "user", "content": question}], **EXACT}


def post(port: int, body: Any) -> tuple[Any, Any]:
    """Send a chat; return the answer and its headers."""
    answer, headers = agents_day.post(port, PATH, body)
    return json.loads(answer), headers


def odds(answer: Any) -> dict[str, float]:
    """Return the ten likeliest first tokens of an answer, with the logarithms of their probabilities."""
    first = answer["choices"][0]["logprobs"]["content"][0]
    return {each["token"]: each["logprob"] for each in first["top_logprobs"]}


def difference(one: Any, other: Any) -> float:
    """Return the largest difference of two answers' first tokens; infinite if the tokens are not the same."""
    first, second = odds(one), odds(other)
    if first.keys() != second.keys():
        return float("inf")
    return max(abs(first[token] - second[token]) for token in first)


def main(model: Path) -> None:
    """Ask through bioproxy and past it, and print how much each pair of answers differs."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        (folder / "notes.txt").write_text(f"{NOTES}\n<{{message}}>")
        children = Children(stack, folder)
        llama = Llama(children, folder, model)
        port, admin = free_ports(2)
        options = ("--slot-save-path", llama.slots, "--prefix", f"@notes={folder / 'notes.txt'}")
        children.bioproxy("same", port, admin, f"http://127.0.0.1:{llama.port}", *options)

        def warm() -> bool:
            """Tell whether the template is warm."""
            return bool(get(admin, "/status")["templates"][0]["state"] == "warm")

        # A user comes in the middle of the warm-up, when a part of it is in a file.
        wait_for("a part of the warm-up", lambda: metric(admin, "slot_saves_total") >= 1, 300)
        post(port, {"messages": [{"role": "user", "content": "Hello"}], "max_tokens": 1})
        wait_for("the template to be warm", warm, 300)
        interrupted = metric(admin, "warmups_total", result="preempted")

        def ask(question: str, learned: bool) -> Any:
            """Ask on the learned prompt or on the template; return the answer and its headers."""
            typed = {"messages": [{"role": "user", "content": f"@notes {question}"}], **EXACT}
            return post(port, system(question) if learned else typed)

        # Two conversations with the same beginning: that is when it is learned.
        for word in ("One.", "Another."):
            ask(word, True)
        wait_for("the system message to be learned", lambda: len(shelf(admin, "learned")) >= 1, 300)
        seen = [(kind, question, *ask(question, kind)) for kind in (False, True) for question in QUESTIONS]
        # From here on what is reused comes from files.
        llama.kill()
        llama.start()
        seen += [(kind, question, *ask(question, kind)) for kind in (False, True) for question in QUESTIONS[:2]]
        worst, same = 0.0, 0
        cold_answers: dict[tuple[bool, str], Any] = {}
        for learned, question, answer, headers in seen:
            # Past bioproxy, and with nothing reused: that is what an answer should be.
            body = system(question) if learned else template(question)
            # Each takes half a minute with a real model.
            if (learned, question) not in cold_answers:
                cold_answers[learned, question], _ = post(llama.port, {**body, "cache_prompt": False})
            cold = cold_answers[learned, question]
            differs = difference(answer, cold)
            words = answer["choices"][0]["message"]["content"] == cold["choices"][0]["message"]["content"]
            worst, same = max(worst, differs), same + words
            length, cached = cold["usage"]["prompt_tokens"], answer["timings"]["cache_n"]
            what = "learned" if learned else "template"
            print(
                f"{what:9}{headers['X-Bioproxy-Cache']:9}{length:6} tokens ({length % 512:3} behind a batch),"
                f" {cached:5} reused: difference {differs:.6f}, {'same words' if words else 'OTHER WORDS'}"
            )
        print(f"interrupted {interrupted:.0f} times; worst {worst:.6f}; {same} of {len(seen)} with the same words")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
