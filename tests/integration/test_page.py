"""The live page, in a real browser with a real llama.cpp behind."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from bioproxy.demo import tiny_model
from tests.integration.conftest import TOOLS_TEMPLATE, LlamaOf, ModelOf, Run
from tests.integration.support import (
    FOREGROUND,
    Call,
    LlamaServer,
    Twistd,
    answers,
    async_fixture,
    async_test,
    conversation,
    environment,
    eventually,
    fetch,
    free_port,
    prose,
    until,
)
from tests.integration.test_real_head_start import DROPS_REASONING, THINKING
from tests.support.browser import Browser

SHORT = ["-n", "16"]
"""Flags that end each answer: a model with random weights would go on until its context is full."""

EVIL = "<img src=x onerror=document.title='owned'>"
"""What somebody may put into a path."""


class Page:
    """The live page of one bioproxy, which runs in a process of its own so that it can be started again."""

    def __init__(self, browser: Browser, folder: Path, run: Run, llama: LlamaServer) -> None:
        self.browser = browser
        self.folder = folder
        self.url, self.admin_url = (f"http://127.0.0.1:{free_port()}" for _ in range(2))
        self._run = run
        self.llama = llama
        self._process: Twistd | None = None

    async def start(self, *templates: str, **settings: Any) -> None:
        """Start bioproxy."""
        configuration = {
            "port": int(self.url.rpartition(":")[2]),
            "admin_port": int(self.admin_url.rpartition(":")[2]),
            "llama_url": self.llama.url,
            "prefixes": {f"@{name}": str(self.folder / f"{name}.txt") for name in templates},
            "state_dir": str(self.folder / "state"),
            "poll_interval": 0.2,
            **settings,
        }
        configuration = {key: value for key, value in configuration.items() if value is not None}
        file = self.folder / "conf.json"
        file.write_text(json.dumps(configuration))
        self._process = self._run(*FOREGROUND, "--config", str(file))
        await eventually(lambda: answers(self.admin_url + "/healthz"))

    async def start_without_file(self, *options: str) -> None:
        """Start bioproxy with what it needs on the command line."""
        ports = [url.rpartition(":")[2] for url in (self.url, self.admin_url)]
        given = ["--port", ports[0], "--admin-port", ports[1], "--llama-url", self.llama.url, *options]
        self._process = self._run(*FOREGROUND, *given)
        await eventually(lambda: answers(self.admin_url + "/healthz"))

    async def stop(self) -> None:
        """Stop it."""
        assert self._process is not None
        await self._process.terminate()
        assert "Traceback" not in self._process.output

    def open(self) -> None:
        """Show the page, in a window of a usual size."""
        self.browser.look(1280, 900)
        self.browser.driver.get(self.admin_url + "/")

    def text(self, selector: str) -> str:
        """Return the text that is shown there; nothing where nothing is shown."""
        script = (
            "const node = document.querySelector(arguments[0]); return node?.checkVisibility() ? node.innerText : ''"
        )
        return str(self.browser.run(script, selector))

    async def says(self, selector: str, *words: str) -> None:
        """Wait until these words are shown there."""
        await until(lambda: all(word in self.text(selector) for word in words))

    def row(self, number: int = 1) -> str:
        """Return the text of one of the latest requests."""
        return self.text(f"#request-rows tr:nth-child({number})")

    def headings(self) -> list[str]:
        """Return the titles of the steps that a new user has to do."""
        return list(
            self.browser.run("return [...document.querySelectorAll('#steps h3')].map((each) => each.innerText)")
        )

    def lines(self) -> list[str]:
        """Return what these steps say is to be typed."""
        script = "return [...document.querySelectorAll('#steps .type')].map((each) => each.innerText)"
        return list(self.browser.run(script))

    def type(self, line: str) -> str:
        """Type a line at a shell of a user whose home is the test's folder; return what it prints."""
        found = subprocess.run(
            ["sh", "-ec", line], cwd="/", env=environment(self.folder), capture_output=True, text=True, timeout=60
        )
        assert found.returncode == 0, (line, found.stdout, found.stderr)
        return found.stdout

    async def ask(self, message: str) -> None:
        """Ask bioproxy."""
        answer = await fetch("POST", self.url + "/v1/chat/completions", conversation(message))
        assert answer.status == 200

    def violations(self) -> list[str]:
        """Return what axe-core has against the page as it is now."""
        return self.browser.violations()

    def everybody_can_use_it(self) -> None:
        """Check it light and dark, wide and narrow; that it never has to be moved sideways, and that all fits."""
        wider = """
            const boxes = [...document.querySelectorAll(".panel, .tile")];
            return boxes.filter((each) => each.scrollWidth > each.clientWidth).map((each) => each.id);
        """
        for width in (1280, 1180, 1070, 700, 390):
            self.browser.look(width, 900)
            assert self.browser.run(wider) == [], width
        for dark in (False, True):
            for width in (1280, 390):
                self.browser.look(width, 900, dark)
                assert self.violations() == [], (dark, width)
                assert self.browser.run("return document.documentElement.scrollWidth") <= width
        self.browser.look(1280, 900)


@async_fixture
async def page(chromium: Browser, tmp_path: Path, run: Run, llama_of: LlamaOf, slow: Path) -> AsyncIterator[Page]:
    """Return a page; neither llama.cpp nor bioproxy are started yet.  In the end the console must be empty."""
    page = Page(chromium, tmp_path, run, llama_of(model=slow))
    chromium.console()
    yield page
    chromium.driver.get("about:blank")
    assert chromium.console() == []


@async_test
async def test_at_work(page: Page) -> None:
    """It shows a warm-up that moves, an error, and requests with what became of them and why."""
    await page.llama.start()
    code = page.folder / "code.txt"
    code.write_text(prose(5000, seed=1) + "<{message}>")
    page.folder.joinpath("mail.txt").write_text("Sign with <{signature.txt}> <{message}>")
    await page.start("mail", "code", warmup_chunk=128)
    page.open()
    seen: list[float] = []

    def moving() -> bool:
        value = page.browser.run("return document.querySelector('[data-key=code] progress')?.value")
        if value is not None and value not in seen:
            seen.append(value)
        if len(seen) < 2 and "saved" in page.text("[data-key=code]"):
            seen.clear()  # too fast to be seen
            code.write_text(prose(12000, seed=2) + "<{message}>")
        return len(seen) >= 2

    await until(moving)
    assert seen == sorted(seen)
    assert "Warm-up of code" in page.text("#inside")
    await page.says("[data-key=mail]", "warm", "signature.txt: No such file or directory")
    await page.says("[data-key=code]", "warm", "tokens", "saved")
    assert "2 of 2 warm" in page.text("#tile-warm")
    assert "1 with an error" in page.text("#tile-warm")

    # Requests: the slot holds code, so that is hot; mail comes from its file; an edited one is cold.
    await page.ask("@code why?")
    await page.says("#request-rows tr:nth-child(1)", "code", "hot", "reused", "200")
    # What that was worth, in the row of the request and in that of the template, which the slot holds.
    told = re.search(r"would have taken (\d+(?:\.\d)?) s, took (\d+(?:\.\d)?) (s|ms)", page.row())
    assert told is not None, page.row()
    assert float(told[1]) > float(told[2]) / (1000 if told[3] == "ms" else 1), page.row()
    await until(lambda: re.search(r"cold \d+(\.\d)? s, now 0 s", page.text("[data-key=code]")))
    await page.ask("@mail why?")
    await page.says("#request-rows tr:nth-child(1)", "mail", "restored")
    # Now a request on the other one would have to restore it.
    await page.ask("@code why?")
    await page.says("#request-rows tr:nth-child(1)", "code", "restored", "would have taken")
    await page.ask("@mail why?")
    await until(lambda: re.search(r"cold [\d.]+ s, now ([1-9]\d* ms|[\d.]+ s)", page.text("[data-key=code]")))
    page.folder.joinpath("mail.txt").write_text("Another one: " + prose(50, seed=2) + "<{message}>")
    await page.ask("@mail why?")
    await page.says("#request-rows tr:nth-child(1)", "cold", "the template's text changed")
    assert "hot" in page.row(5)
    # Its error is over, and it is warmed up anew.
    await page.says("[data-key=mail]", "warm", "saved")
    assert "No such file" not in page.text("[data-key=mail]")
    # Whatever a client writes is text.
    await fetch("POST", f"{page.url}/slots/{EVIL.replace(' ', '%20').replace('<', '%3C').replace('>', '%3E')}")
    await until(
        lambda: page.browser.run("return document.querySelector('#request-rows .sub').title.includes('onerror')")
    )
    assert page.browser.run("return document.title") == "bioproxy"
    # The plots have the numbers, for those who cannot see them, too.
    await page.says("#plot-list figure:nth-child(3)", "% of")  # every few seconds there is a point
    labels = page.browser.run("return [...document.querySelectorAll('.plot')].map((each) => each.ariaLabel)")
    assert [label.partition(":")[0] for label in labels] == [
        "Waiting requests",
        "Time to first token",
        "Prompt tokens from cache",
        "Computing time saved",
    ]
    assert "% of" in labels[2], "where the eyes see it, screen readers do"
    page.browser.run("document.querySelector('#numbers summary').click()")
    await until(lambda: page.browser.run("return document.querySelectorAll('#number-rows tr').length") > 0)
    page.everybody_can_use_it()


@async_test
async def test_queue(page: Page) -> None:
    """It shows who is inside, who waits, and for how long, which it counts by itself; and who hung up."""
    await page.llama.start()
    await page.start()
    page.open()
    await page.says("#tile-llama", "Up")
    await page.says("#inside", "The slot is free")

    def come(tokens: int) -> Call:
        body = conversation("hello", max_tokens=tokens, ignore_eos=True)
        return Call(page.url + "/v1/chat/completions", body)

    inside = come(12000)  # longer than anybody looks
    await page.says("#inside", "Request without template", "/v1/chat/completions")
    waiting = [come(1), come(1)]
    await page.says("#queue-length", "2 requests wait", "the first for")
    assert page.browser.run("return document.querySelectorAll('#queue li').length") == 2
    first = page.text("#inside time")
    await until(lambda: page.text("#inside time") != first)
    page.everybody_can_use_it()
    inside.hang_up()
    for call in waiting:
        await call.over
        assert call.status == 200
    await page.says("#inside", "The slot is free")
    await page.says("#inside", "the next request starts at once")
    assert page.text("#queue") == ""
    await page.says("#request-rows tr:nth-child(2)", "no template", "200")
    await page.says("#request-rows tr:nth-child(3)", "499 client disconnected")


@async_test
async def test_estimates(page: Page) -> None:
    """It shows how long a request will wait and, afterwards, how good that was; and how far a prompt is."""
    await page.llama.start()
    await page.start(ping_interval=0.2)
    page.open()
    await page.says("#tile-llama", "Up")

    def come(tokens: int, words: int) -> Call:
        body = conversation(prose(words, seed=words), max_tokens=tokens, ignore_eos=True, stream=True)
        return Call(page.url + "/v1/chat/completions", body)

    # What the estimates learn from.
    for _ in range(3):
        await come(300, words=40).over
    inside = come(12000, words=41)  # longer than anybody looks
    await page.says("#inside", "Request without template")
    waiting = come(1, words=42)
    await page.says("#queue li:nth-child(1) .estimate", "of about", "s")
    page.everybody_can_use_it()
    # More than a second later: only then is an estimate compared with what it was.
    await until(lambda: waiting.received.count(b": waiting, 1st of 1, about") >= 8)
    inside.hang_up()
    await waiting.over
    await page.says("#inside", "the next request starts at once")
    await page.says("#request-rows", "estimated")
    # A long prompt, of which a client that waits for a stream is told how far it is.
    long = come(1, words=9000)
    await page.says("#inside .progress", "tokens of the prompt read")
    assert page.violations() == []
    await long.over
    assert b": reading the prompt, " in long.received


@async_test
async def test_stopped_head_starts(page: Page, llama_of: LlamaOf, model_of: ModelOf) -> None:
    """It shows for which kinds of clients head starts were stopped, and why."""
    page.llama = llama_of(model=model_of("thinking-dense", tiny_model.TINY, chat_template=DROPS_REASONING))
    await page.llama.start()
    await page.start(slot_save_path=str(page.llama.slots), learn_minimum=64)
    page.open()
    await page.says("#tile-llama", "Up")
    assert page.text("#stopped-list") == ""

    async def ask(*said: str, **more: Any) -> None:
        roles = ("user", "assistant")
        messages = [{"role": roles[number % 2], "content": text} for number, text in enumerate(said)]
        body = {"messages": messages, "max_tokens": 4, "temperature": 0, **more}
        headers = {"User-Agent": f"{EVIL.split()[0]}client/1"}
        assert (await fetch("POST", page.url + "/v1/chat/completions", body, headers)).status == 200

    async def head_starts() -> float:
        text = (await fetch("GET", page.admin_url + "/metrics")).body.decode()
        lines = [each for each in text.splitlines() if each.startswith("bioproxy_head_starts_total{")]
        return sum(float(each.rpartition(" ")[2]) for each in lines if 'result="done"' in each)

    # The client sends another answer back than the one that it got.
    for number in range(2):
        question = prose(300, seed=number)

        async def more(before: float = number) -> bool:
            return await head_starts() > before

        await ask(question, grammar=THINKING, max_tokens=700)
        await eventually(more)
        await ask(question, prose(100, seed=10 + number), "and then?")
    await page.says("#stopped-list", "no more head starts for", "2 times in a row")
    page.everybody_can_use_it()


@async_test
async def test_buttons(page: Page) -> None:
    """By keyboard alone: a template is warmed up once more, and its filled text is looked at."""
    from selenium.webdriver.common.by import By
    from selenium.webdriver.common.keys import Keys

    await page.llama.start()
    page.folder.joinpath("code.txt").write_text("Know <this> & that. <{message}>")
    await page.start("code")
    page.open()
    await page.says("[data-key=code]", "warm", "saved")

    async def warmed() -> float:
        text = (await fetch("GET", page.admin_url + "/metrics")).body.decode()
        line = next(each for each in text.splitlines() if each.startswith("bioproxy_warmups_total{") and "done" in each)
        return float(line.rpartition(" ")[2])

    assert await warmed() == 1
    warm, look = page.browser.driver.find_elements(By.CSS_SELECTOR, "[data-key=code] button")
    warm.send_keys(Keys.ENTER)
    await page.says("#said", "@code will be warmed up next")

    async def again() -> bool:
        return await warmed() == 2

    await eventually(again)
    await page.says("[data-key=code]", "warm")

    look.send_keys(Keys.SPACE)
    await page.says("#preview-text", "Know <this> & that. (the message)")
    page.browser.driver.switch_to.active_element.send_keys(Keys.TAB)
    page.browser.driver.switch_to.active_element.send_keys("why <b>?")
    await page.says("#preview-text", "Know <this> & that. why <b>?")
    await page.says("#preview-about", "characters")
    assert page.violations() == []
    page.browser.driver.switch_to.active_element.send_keys(Keys.ESCAPE)
    await until(lambda: not page.browser.run("return document.querySelector('#preview').open"))
    assert page.browser.driver.switch_to.active_element == look, "the focus is where it was"

    # A template that cannot be read says why, in its row and in the preview.
    page.folder.joinpath("code.txt").write_text("no place")
    await page.says("[data-key=code]", "error", "no <{message}> in it", "not warm: there is no usable text")
    look.send_keys(Keys.ENTER)
    await page.says("#preview-about", "The template cannot be filled")
    await page.says("#preview-text", "no <{message}> in it")
    page.browser.driver.switch_to.active_element.send_keys(Keys.ESCAPE)
    errors = page.browser.console()
    assert len(errors) == 1, "the browser notes the 500 by itself"
    assert "500" in errors[0]


@async_test
async def test_prompts(page: Page, llama_of: LlamaOf, model_of: ModelOf) -> None:
    """What was learned is shown with what it is worth; by keyboard alone it is pinned, and forgotten when sure."""
    from selenium.webdriver.common.by import By
    from selenium.webdriver.common.keys import Keys

    # Slow enough for what was saved to be a tenth of a second, and with a template that knows system messages.
    size = tiny_model.Size(blocks=6, width=256, heads=4, feed_forward=768)
    page.llama = llama_of(model=model_of("slow-with-tools", size, chat_template=TOOLS_TEMPLATE))
    await page.llama.start()
    await page.start(slot_save_path=str(page.llama.slots), learn_minimum=64)
    page.open()
    await page.ask("hello")
    await page.says("#no-learned", "Nothing learned yet")
    await page.says("#no-conversation", "No conversations kept yet")
    page.everybody_can_use_it()

    async def agent(question: str, system: str) -> None:
        body = conversation(question)
        body["messages"].insert(0, {"role": "system", "content": system})
        answer = await fetch("POST", page.url + "/v1/chat/completions", body)
        assert answer.status == 200

    secret = prose(500, seed=7)
    # Two clients whose beginnings differ at the end, a minute apart as it were.  What is the same is a prompt, too.
    for end in ("It is one o'clock. " * 20, "It is two o'clock. " * 20):
        for question in (prose(400, seed=1), "why?"):
            await agent(question, secret + end)
    await page.says("#learned-list", "auto-", "warm", "tokens", "shared part")
    await page.says("#conversation-list", "auto-", "tokens")
    await agent("and now?", secret + "It is one o'clock. " * 20)
    await page.says("#request-rows tr:nth-child(1)", "auto-", "reused")
    await page.says("#learned-list", "hit", "used", "of computing saved", "cold ", " s, now")
    await page.says("#conversation-list", "cold ")
    await page.says("#learned-total", "files", "of 8.0 GB")
    await page.says("#conversation-total", "of 16.0 GB")
    everything = page.browser.run("return document.body.innerText")
    assert secret[:20] not in everything
    page.everybody_can_use_it()

    first = page.text("#learned-list li:first-child .id")
    warm, pin, forget = page.browser.driver.find_elements(By.CSS_SELECTOR, "#learned-list li:first-child button")
    assert [each.get_attribute("aria-label") for each in (warm, pin, forget)] == [
        f"Warm up now: {first}",
        f"Pin {first}",
        f"Forget {first}",
    ]
    pin.send_keys(Keys.ENTER)
    await page.says("#said", f"{first} is pinned")
    await page.says("#learned-list li:first-child .head", "pinned")
    assert pin.text == "Unpin"
    assert page.browser.driver.switch_to.active_element == pin, "the focus is where it was"
    pin.send_keys(Keys.SPACE)
    await page.says("#said", f"{first} is not pinned any more")
    await until(lambda: "pinned" not in page.text("#learned-list li:first-child .head"))
    warm.send_keys(Keys.ENTER)
    await page.says("#said", f"{first} will be warmed up next")
    await page.says("#learned-list li:first-child", "warm")

    # Once is a question, and whoever goes on to something else has answered it.
    forget.send_keys(Keys.ENTER)
    await page.says("#said", "Press again to forget")
    assert forget.text == "Forget it?"
    assert page.violations() == []
    forget.send_keys(Keys.TAB)
    await until(lambda: forget.text == "Forget")
    forget.send_keys(Keys.ENTER)
    forget.send_keys(Keys.ENTER)
    await page.says("#said", f"{first} is forgotten")
    await until(lambda: first not in page.text("#learned-list"))
    assert page.browser.driver.switch_to.active_element.get_attribute("id") == "h-prompts"
    chat = page.text("#conversation-list li:first-child .id")
    page.browser.driver.find_element(By.CSS_SELECTOR, "#conversation-list li:first-child button:last-child").click()
    page.browser.driver.find_element(By.CSS_SELECTOR, "#conversation-list li:first-child button:last-child").click()
    await page.says("#said", f"{chat} is forgotten")


@async_test
async def test_troubles(page: Page) -> None:
    """llama-server away, bioproxy away, both back: it follows by itself; with nothing to show it says so."""
    await page.start()
    page.open()
    await page.says("#tile-llama", "Down", page.llama.url)
    await page.says("#inside", "requests get an error")
    await page.llama.start()
    await page.says("#tile-llama", "Up", "gguf")
    assert page.text("#inside").endswith("the next request starts at once")
    # From now on it is no first visit: what there is to do stands where it belongs, and the sections are there.
    await page.ask("hello")
    await page.says("#no-templates", "Make a template", '"prefixes"', "/reload")
    await until(lambda: page.text("#next") == "")
    page.everybody_can_use_it()
    assert page.browser.console() == []

    await page.stop()
    await page.says("#lost", "No connection to bioproxy")
    await page.says("#line", "disconnected")
    page.folder.joinpath("code.txt").write_text("Know this. <{message}>")
    assert page.violations() == []
    await page.start("code")
    await page.says("#line", "live")
    assert page.text("#lost") == ""
    assert page.text("#no-templates") == ""
    # Not only "warm", which is also in "warm-up due".
    await page.says("[data-key=code]", "saved")
    errors = page.browser.console()
    assert all("/events" in error and "ERR_" in error for error in errors), "nothing but attempts to connect"
    await page.ask("@code why?")
    await page.says("#request-rows tr:nth-child(1)", "code", "hot")


@async_test
async def test_first_visit(page: Page) -> None:
    """It says what to do next; each of its lines does that when it is typed, and then the step disappears."""
    await page.start()
    page.open()
    page.llama.arguments.extend(SHORT)
    # Nothing is there: the lines for llama-server have its address, and where nothing can be asked nothing is offered.
    await page.says("#steps", "Start llama-server", "refuses connections", f"--port {page.llama.port} ")
    assert page.headings() == ["Start llama-server", "Make a template"]
    assert [page.text(f"#{each}") for each in ("templates", "prompts", "plots", "requests")] == [""] * 4
    page.everybody_can_use_it()

    await page.llama.start()
    await until(lambda: page.headings() == ["Make a template", "Ask a first question"])
    assert '"content":"Who are you?"' in page.lines()[-1]
    # A template, as the page says: one line to type, one to write into the configuration, one that has that read.
    (page.folder / "notes.txt").write_text("The answer is in here.")
    write, setting, reload, _ = page.lines()
    page.type(write)
    file = page.folder / "conf.json"
    assert str(file) in page.text("#steps")
    configuration = json.loads(file.read_text())
    file.write_text(json.dumps({**configuration, **json.loads("{" + setting + "}")}))
    assert "prefixes" in page.type(reload)
    await page.says("[data-key=notes]", "@notes", "saved")
    await until(lambda: page.headings() == ["Ask a first question"])
    text = await fetch("GET", page.admin_url + "/templates/notes/render?message=why")
    assert "The answer is in here." in text.body.decode()
    page.everybody_can_use_it()

    # The question goes to this very port, with the template's prefix.
    [ask] = page.lines()
    assert page.text("#steps").count("@notes") == 2
    assert ask.startswith(f"curl -s {page.url}/v1/chat/completions ")
    assert json.loads(page.type(ask))["choices"]
    await page.says("#request-rows tr:nth-child(1)", "notes", "200")
    await until(lambda: page.text("#next") == "")
    # Also for whoever comes later.
    page.open()
    await page.says("#request-rows tr:nth-child(1)", "notes")
    assert page.text("#next") == ""


@async_test
async def test_first_configuration(page: Page) -> None:
    """Without a configuration file it says how to make one, for this installation and with what is in force."""
    (page.folder / "keys").write_text("secret\n")
    page.llama.arguments.extend(SHORT)
    await page.llama.start()
    await page.start_without_file("--api-key-file", "keys")
    page.open()
    await until(lambda: page.headings() == ["Make a template", "Ask a first question"])
    (page.folder / "notes.txt").write_text("The answer is in here.")
    init, reload, _ = page.lines()
    page.type(init)
    page.type(reload)
    await page.says("[data-key=notes]", "@notes", "saved")
    await until(lambda: page.headings() == ["Ask a first question"])
    # A key is asked for, and never shown.
    [ask] = page.lines()
    assert "secret" not in page.browser.run("return document.body.innerText")
    assert json.loads(page.type(ask.replace("KEY", "secret")))["choices"]
    await until(lambda: page.text("#next") == "")


@async_test
async def test_own_llama(page: Page) -> None:
    """With a model, it says that llama.cpp is starting, or what is wrong with it, until that is put right."""
    good = page.llama.model.read_bytes()
    model = page.folder / "mine.gguf"
    model.write_bytes(good[: len(good) // 2])
    page.folder.joinpath("code.txt").write_text("Know this. <{message}>")
    # A llama.cpp that begins to load when it is told to: by a file that is there, or by a writer to the pipe.  The pipe
    # is its standard input as well, because the wheel's server ends when that does.
    pipe, go, program = page.folder / "pipe", page.folder / "go", page.folder / "llama"
    os.mkfifo(pipe)
    program.write_text(
        f"#!/bin/sh\n[ -e '{go}' ] || read _ < '{pipe}'\n"
        f"exec '{sys.executable}' -m bioproxy.child.wheel_server --threads 1 \"$@\" <>'{pipe}'\n"
    )
    program.chmod(0o755)
    await page.start("code", llama_url=None, model=str(model), llama_server=str(program))
    page.open()
    await until(lambda: page.headings() == ["llama.cpp is starting"])
    assert "It loads mine.gguf. Requests wait" in page.text("#steps")
    await page.says("#tile-llama", "Starting", "mine.gguf")
    await page.says("#inside", "requests wait until llama.cpp is ready")
    assert page.violations() == []
    go.touch()
    pipe.write_text("\n")
    await page.says("#steps", "llama.cpp does not start", "The model's file is incomplete", "conf.json", "/reload")
    assert page.headings() == ["llama.cpp does not start"]
    await page.says("#tile-llama", "Down", "mine.gguf")
    page.everybody_can_use_it()
    # Put right under another name, and read as the page says.
    page.folder.joinpath("whole.gguf").write_bytes(good)
    file = page.folder / "conf.json"
    file.write_text(file.read_text().replace("mine.gguf", "whole.gguf"))
    [reload] = page.lines()
    page.type(reload)
    await page.says("#tile-llama", "Up", "whole.gguf")
    await until(lambda: page.headings() == ["Ask a first question"])
    assert page.text("#steps").count("@code") > 0
