"""`bioproxy.command.status_view`: `/status` as lines."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from bioproxy.command.status_view import Screen, bar, duration, is_bioproxy, is_busy, lines, number, seconds, slot
from bioproxy.command.table import width
from tests.support.world import WorldTest

NOW = datetime(2026, 3, 1, 13, 0, 0, tzinfo=timezone(timedelta(hours=1)))
WIDE = Screen(100, False)


def prompt(name: str = "code", **more: Any) -> dict[str, Any]:
    """Return a prompt of `/status`, a warm template if nothing else is said."""
    warmup = {"due": False, "reason": "warm", "until": None}
    same = {"kind": "template", "state": "warm", "progress": 1.0, "tokens": 6012, "hits": 3, "error": None}
    return {"name": name, **same, "warmup": warmup, **more}


def request(**more: Any) -> dict[str, Any]:
    """Return a request of `/status`, one that was restored if nothing else is said."""
    return {
        "time": "2026-03-01T11:59:58.000+00:00",
        "path": "/v1/chat/completions",
        "template": "code",
        "prompt": "code",
        "status": 200,
        "cache": "restored",
        "total_ms": 910.4,
        "ttft_ms": 140.2,
        "prompt_tokens": 6021,
        "cached_tokens": 6012,
        **more,
    }


def status(**more: Any) -> dict[str, Any]:
    """Return a `/status` of a bioproxy at rest, without prompts and requests."""
    return {
        "version": "1.2",
        "uptime_s": 3725.4,
        "llama": {"url": "http://127.0.0.1:8080", "up": True, "model": "/models/m.gguf", "note": None, "trouble": None},
        "gate": {"busy": None, "waiting": 0, "lingering": False, "inside": None},
        "prompts": [],
        "shelf": {},
        "requests": [],
        **more,
    }


def at_gate(busy: str = "user", waiting: int = 0, **inside: Any) -> dict[str, Any]:
    """Return the gate of `/status` with somebody inside."""
    who = {"path": "/x", "template": None, "prompt": None, "since": "2026-03-01T11:59:50+00:00", "progress": None}
    return {"busy": busy, "waiting": waiting, "lingering": False, "inside": {**who, **inside}}


class Lines(SynchronousTestCase):
    """What is printed."""

    maxDiff = None

    def test_nothing_yet(self) -> None:
        """Without prompts and requests, that is said."""
        expected = [
            "bioproxy 1.2, up for 1 h 2 min",
            "llama-server is up with m.gguf at http://127.0.0.1:8080",
            "the slot is free",
            "",
            "no prompts: no template is configured, and nothing was learned yet",
            "",
            "no requests yet",
        ]
        self.assertEqual(expected, lines(status(), WIDE, NOW))

    def test_tables(self) -> None:
        """Prompts and requests are tables; conversations are counted; times are those of the user's time zone."""
        found = status(
            prompts=[
                prompt(),
                prompt("auto-0123456789ab", state="warming", progress=0.436, tokens=None, hits=0),
                prompt("auto-ffffffffffff", kind="conversation"),
            ],
            shelf={"conversation": {"files": 12}},
            requests=[
                request(),
                request(prompt="", template="", cache="cold", ttft_ms=None),
                request(status=499, total_ms=None, prompt_tokens=None, cached_tokens=None),
                request(status=502),
                request(status=0),
                request(cache=None),
            ],
        )
        expected = [
            "PROMPT             STATE    PROGRESS              TOKENS  USES",
            "code               warm     ############## 100 %   6,012     3",
            "auto-0123456789ab  warming  ######........  43 %       -     0",
            "and 12 conversations in files",
            "",
            "REQUEST               CACHE      SECONDS  FIRST  TOKENS  REUSED      TIME",
            "code                  restored      0.91   0.14   6,021   6,012  12:59:58",
            "/v1/chat/completions  cold          0.91      -   6,021   6,012  12:59:58",
            "code                  left             -   0.14       -       -  12:59:58",
            "code                  error 502     0.91   0.14   6,021   6,012  12:59:58",
            "code                  no answer     0.91   0.14   6,021   6,012  12:59:58",
            "code                  -             0.91   0.14   6,021   6,012  12:59:58",
        ]
        self.assertEqual(expected, lines(found, WIDE, NOW)[4:])

    def test_latest_requests(self) -> None:
        """Eight requests are shown, the first ones of the list."""
        found = lines(status(requests=[request(template="", prompt=f"p{n}") for n in range(20)]), WIDE, NOW)
        self.assertEqual([f"p{n}" for n in range(8)], [line.split()[0] for line in found[7:]])

    def test_conversations_without_prompts(self) -> None:
        """Conversations are counted also if there is no prompt."""
        found = lines(status(shelf={"conversation": {"files": 2}}), WIDE, NOW)
        self.assertIn("and 2 conversations in files", found)

    def test_troubles(self) -> None:
        """A llama-server that is not ready, a note, and the errors of prompts are sentences in colour."""
        llama = {"url": "http://h:1", "up": False, "model": None, "note": "restoring is of no use", "trouble": None}
        found = status(llama=llama, prompts=[prompt(state="error", error="no <{message}> in it")])
        shown = lines(found, Screen(100, True), NOW)
        self.assertEqual("\x1b[31mllama-server is not ready: no answer (http://h:1)\x1b[0m", shown[1])
        self.assertEqual("\x1b[33mnote: restoring is of no use\x1b[0m", shown[2])
        self.assertEqual("\x1b[31mcode: no <{message}> in it\x1b[0m", shown[4])
        found["llama"]["trouble"] = "it loads its model"
        self.assertTrue(lines(found, WIDE, NOW)[1].startswith("llama-server is not ready: it loads its model"))
        unnamed = status(llama={**llama, "up": True})
        self.assertIn("llama-server is up with a model at http://h:1", lines(unnamed, WIDE, NOW))

    def test_narrow(self) -> None:
        """No line is wider than the terminal, whatever its width is, and 40 columns have the states and the cache."""
        found = status(
            gate=at_gate(waiting=3, prompt="提示词和代码的说明", progress={"reused": 4096, "computed": 1024}),
            prompts=[prompt("提示词和代码的说明", error="这个模板不能读取"), prompt(state="warming", progress=0.5)],
            requests=[request(), request(path="/提示词", prompt="", template="")],
            shelf={"conversation": {"files": 12}},
        )
        for cells in (*range(1, 100), 200):
            for line in lines(found, Screen(cells, False), NOW):
                self.assertLessEqual(width(line), cells, line)
        text = "\n".join(lines(found, Screen(40, False), NOW))
        for expected in ("warming", "#######.......  50 %", "restored", "0.91"):
            self.assertIn(expected, text)

    def test_no_escape_sequences_from_outside(self) -> None:
        """A client's path, a template's name and llama-server's words cannot do anything to the terminal."""
        evil = "\x1b]0;evil\x07"
        found = status(
            llama={"url": "http://h", "up": False, "model": evil, "note": evil, "trouble": evil},
            gate=at_gate(path=evil),
            prompts=[prompt(evil, error=evil)],
            requests=[request(path=evil, prompt="", template="")],
        )
        self.assertNotIn("\x1b", "".join(lines(found, WIDE, NOW)))
        self.assertNotIn("\x07", "".join(lines(found, WIDE, NOW)))


class Real(WorldTest):
    """Against a whole bioproxy."""

    def test_the_real_status(self) -> None:
        """What bioproxy says at `/status` is understood."""
        world = self.warm_world()
        found = world.status.whole()
        self.assertTrue(is_bioproxy(found))
        self.assertFalse(is_busy(found))
        self.assertIn("code    warm", "\n".join(lines(found, WIDE, datetime.now(timezone.utc))))


class Gate(SynchronousTestCase):
    """The sentence about the slot."""

    def test_sentences(self) -> None:
        """It says who is inside and for how long, and how far the prompt is."""
        progress = {"reused": 4096, "computed": 1024}
        lingering = {"busy": None, "waiting": 2, "lingering": True, "inside": None}
        for found, expected in (
            (at_gate(prompt="code", template="x"), "serving code for 10 s"),
            (at_gate(template="x"), "serving x for 10 s"),
            (at_gate(), "serving /x for 10 s"),
            (at_gate(path=None), "serving a request for 10 s"),
            (at_gate("warmup", prompt="code"), "warming up code for 10 s"),
            (at_gate(progress=progress), "serving /x for 10 s, 4,096 tokens reused, 1,024 computed"),
            (lingering, "the slot waits for the next request of a conversation"),
        ):
            self.assertEqual(expected, slot(found, NOW))

    def test_waiting(self) -> None:
        """How many wait has a line of its own."""
        self.assertIn("3 waiting", lines(status(gate=at_gate(waiting=3)), WIDE, NOW))

    def test_busy(self) -> None:
        """It is busy while somebody is inside or waits, and while a warm-up is due; not while a prompt has to wait."""
        due = {"due": True, "reason": "new", "until": None}
        for found, expected in (
            (status(), False),
            (status(gate=at_gate()), True),
            (status(gate=at_gate("warmup")), True),
            (status(gate={"busy": None, "waiting": 1}), True),
            (status(prompts=[prompt(warmup=due)]), True),
            (status(prompts=[prompt(), prompt(warmup=None)]), False),
        ):
            self.assertIs(expected, is_busy(found))


class Words(SynchronousTestCase):
    """Numbers in words."""

    def test_durations(self) -> None:
        """A duration has its two largest units; one that lies in the future is 0."""
        for value, expected in (
            (-5, "0 s"),
            (59.9, "59 s"),
            (60, "1 min 0 s"),
            (3599, "59 min 59 s"),
            (3600, "1 h 0 min"),
            (90000, "1 d 1 h"),
        ):
            self.assertEqual(expected, duration(value))

    def test_bar(self) -> None:
        """A bar is full, and says 100 %, for what is finished only."""
        self.assertEqual("..............   0 %", bar(0))
        self.assertEqual("#############.  99 %", bar(0.999))
        self.assertEqual("############## 100 %", bar(1))

    def test_numbers(self) -> None:
        """What is not known is a hyphen."""
        self.assertEqual(["-", "1,234", "-", "1.23"], [number(None), number(1234), seconds(None), seconds(1234)])

    def test_is_bioproxy(self) -> None:
        """Only an object with all keys that are shown is taken for a status."""
        without = status()
        del without["gate"]
        self.assertEqual([True, False, False], [is_bioproxy(status()), is_bioproxy(without), is_bioproxy([])])
