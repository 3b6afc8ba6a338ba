"""Takes the pictures of the live page in docs/screenshots: ``make screenshots``.

Nothing in them is made up: a real llama.cpp with a small random model runs behind a bioproxy with four templates, and
clients ask for a minute or two, an agent among them whose prompt nobody configured.  Then there are two scenes: users
who wait, and a warm-up.
"""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from bioproxy.demo import tiny_model
from bioproxy.demo.vocabulary import COMMON_WORDS
from tests.support.browser import Browser

ROOT = Path(__file__).parent.parent
FOLDER = ROOT / "docs" / "screenshots"
MODEL = tiny_model.Size(blocks=6, width=256, heads=4, feed_forward=768)

AGENT = "You are an agent. "
"""How the agent's system message begins; words of its own follow."""

SIZES = {"wide": (1280, 1300, 1.0), "narrow": (390, 844, 1.5)}
"""Width and height in CSS pixels, and pixels for each.  The narrow ones are as high as they need."""

PORT, ADMIN, LLAMA = 18081, 18082, 18080


class Stage:
    """All that has to be there, in a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._running: list[subprocess.Popen[bytes]] = []

    def build(self) -> None:
        """Write templates and start everything."""
        self.write("architecture.md", 1200)
        self.write("code.txt", 1600, "<{architecture.md}>\n\n")
        self.write("review.txt", 900)
        self.write("handbook.txt", 1500)
        self.write("mail.txt", 500, "<{signature.txt}>\n\n")
        prefixes = {f"@{name}": f"{name}.txt" for name in ("code", "review", "handbook", "mail")}
        configuration = {
            "port": PORT,
            "admin_port": ADMIN,
            "llama_url": f"http://127.0.0.1:{LLAMA}",
            "prefixes": prefixes,
            "poll_interval": 0.3,
            "state_dir": "state",
            "slot_save_path": "slots",
            "warmup_chunk": 128,
        }
        (self.folder / "slots").mkdir(mode=0o700)
        (self.folder / "conf.json").write_text(json.dumps(configuration))
        model = self.folder / "random-12M-q8_0.gguf"
        tiny_model.write_model(model, MODEL)
        self._run(
            "-m",
            "benchmarks.llama_child",
            "--model",
            model,
            "--port",
            LLAMA,
            "--threads",
            1,
            "--slot-save-path",
            self.folder / "slots",
        )
        self._run(Path(sys.executable).with_name("twistd"), "--pidfile=", "-n", "bioproxy", "--config", "conf.json")
        until(lambda: all(each["state"] == "warm" for each in status()["templates"]), 120)

    def write(self, name: str, words: int, before: str = "") -> None:
        """Write a template, or a file for one, with so many words."""
        text = " ".join(word(index) for index in range(words))
        end = "\n<{message}>\n" if name.endswith(".txt") else "\n"
        (self.folder / name).write_text(f"{before}{time.time()} {text}{end}")

    def end(self) -> None:
        """End what was started here."""
        for process in reversed(self._running):
            process.terminate()
            process.wait(timeout=20)

    def _run(self, *command: Any) -> None:
        with open(self.folder / "output", "ab") as output:
            self._running.append(
                subprocess.Popen(
                    [sys.executable, *map(str, command)],
                    cwd=self.folder,
                    stdin=subprocess.PIPE,
                    stdout=output,
                    stderr=output,
                    env={"PYTHONPATH": str(ROOT), "HOME": str(self.folder), "PATH": "/usr/bin:/bin"},
                )
            )


def word(index: int) -> str:
    """Return some word."""
    return COMMON_WORDS[index * 7919 % len(COMMON_WORDS)]


def status() -> Any:
    """Return `/status`, or nothing much while it is not there."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{ADMIN}/status", timeout=5) as answer:
            return json.load(answer)
    except OSError:
        return {"templates": [{"state": "unknown"}], "gate": {"busy": None, "waiting": 0}}


def until(condition: Callable[[], Any], seconds: float = 60) -> None:
    """Wait for something."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise SystemExit(f"not within {seconds} s; /status says {json.dumps(status(), indent=1)}")
        time.sleep(0.05)


def ask(message: str, tokens: int = 12, *before: str, system: str = "") -> str:
    """Ask one question; return the answer."""
    roles = ("user", "assistant")
    messages = [{"role": roles[index % 2], "content": text} for index, text in enumerate((*before, message))]
    if system:
        messages.insert(0, {"role": "system", "content": system})
    body = json.dumps({"messages": messages, "max_tokens": tokens}).encode()
    request = urllib.request.Request(
        f"http://127.0.0.1:{PORT}/v1/chat/completions", body, {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=300) as answer:
        return str(json.load(answer)["choices"][0]["message"]["content"])


@contextmanager
def together(*questions: tuple[str, int]) -> Iterator[None]:
    """Have some clients ask at the same time, each a moment after the one before; wait for all at the end."""
    threads = [threading.Thread(target=ask, args=question) for question in questions]
    for thread in threads:
        thread.start()
        time.sleep(0.15)
    yield
    for thread in threads:
        thread.join()


def traffic() -> None:
    """Ask for a while, as people do."""
    ask("@code where is the line in front of the server?")
    ask("@code and how long is it?")
    ask("@review what is wrong here?")
    ask("hello", 30)
    agent()
    for round_ in range(6):
        burst = [(f"@code question {round_}", 30), (f"@review question {round_}", 20), ("no template", 30)]
        with together(*burst[: 1 + round_ % 3], *[("@handbook where?", 20)] * (round_ % 3)):
            pass
        time.sleep(5)


def agent() -> None:
    """Ask as an agent does, in three sessions of two turns, with the same long system message each time."""
    system = AGENT + " ".join(word(index) for index in range(1500))
    for session in range(3):
        question = f"Task {session}: " + " ".join(word(index) for index in range(300))
        answer = ask(question, 30, system=system)
        ask("Go on.", 20, question, answer, system=system)
        time.sleep(4)  # as long as a person takes, so that the conversation is saved


def take(browser: Browser, size: str, dark: bool) -> None:
    """Take one picture."""
    width, height, scale = SIZES[size]
    browser.look(width, height, dark, scale)
    time.sleep(0.6)  # the browser lays everything out anew, and the next second's event arrives
    if size == "narrow":
        height = int(browser.run("return document.querySelectorAll('#request-rows tr')[5].getBoundingClientRect().top"))
        browser.look(width, height, dark, scale)
        time.sleep(0.3)
    path = FOLDER / f"{size}-{'dark' if dark else 'light'}.png"
    browser.driver.get_screenshot_as_file(str(path))
    optimise(path)
    print(f"{path.relative_to(ROOT)}: {path.stat().st_size >> 10} kB")


def optimise(path: Path) -> None:
    """Make a picture small: 128 colours are plenty for it."""
    image = importlib.import_module("PIL.Image")
    picture = image.open(path).convert("RGB")
    picture.quantize(128, dither=image.Dither.NONE).save(path, optimize=True)


def main() -> None:
    """Take all pictures."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        stage = Stage(folder)
        stack.callback(stage.end)
        stage.build()
        browser = Browser(folder / "chromium")
        stack.callback(browser.quit)
        browser.look(1280, 900)
        browser.driver.get(f"http://127.0.0.1:{ADMIN}/")
        traffic()

        # A template has changed: the question that comes before its warm-up is cold.
        stage.write("review.txt", 900)
        ask("@review and now?", 8)
        # Another changes, and users come into the middle of its warm-up.
        until(lambda: template("review")["state"] == "warm")
        stage.write("handbook.txt", 6500)
        until(lambda: template("handbook")["state"] == "warming" and template("handbook")["progress"] > 0.3)
        with together(("@code why?", 1500), ("@review is it good?", 20), ("hello", 20)):
            time.sleep(3)  # a queue in which nobody has waited yet tells nothing
            take(browser, "wide", dark=False)
            take(browser, "narrow", dark=False)
        # They have gone, and it goes on.
        until(lambda: template("handbook")["progress"] > 0.4 and template("handbook")["state"] == "warming")
        take(browser, "wide", dark=True)
        take(browser, "narrow", dark=True)


def template(name: str) -> Any:
    """Return what `/status` says of a template."""
    return next(each for each in status()["templates"] if each["name"] == name)


if __name__ == "__main__":
    main()
