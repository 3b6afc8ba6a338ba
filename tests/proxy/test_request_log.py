"""What is noted of each request: counted, kept for `/status`, and logged."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any, cast

from twisted.internet.task import Clock
from twisted.logger import ILogObserver, LogEvent, capturedLogs, formatEvent, globalLogPublisher
from twisted.trial.unittest import SynchronousTestCase

from bioproxy.llama.speed import Speed
from bioproxy.proxy.request_log import LATEST, Record, RequestLog
from bioproxy.runtime.metrics import Metrics

CHAT = "/v1/chat/completions"
TIMINGS = {"cache_n": 900, "prompt_n": 100, "prompt_ms": 200.0}


class Closing(SynchronousTestCase):
    """`RequestLog.close` and `latest`."""

    def setUp(self) -> None:
        """Begin with nothing counted, at ten seconds past zero."""
        self.metrics, self.speed, self.clock = Metrics(), Speed(), Clock()
        self.request_log = RequestLog(self.metrics, self.speed, self.clock)
        self.clock.advance(10)

    def sample(self, name: str, **labels: str) -> float | None:
        """Return a metric's value, `None` if nothing was counted."""
        return self.metrics.registry.get_sample_value(f"bioproxy_{name}", labels)

    def close(self, timings: dict[str, float] | None = None, path: str = CHAT, **fields: Any) -> Record:
        """Close a request that arrived at second 8."""
        record = Record(path, 8.0, **fields)
        self.request_log.close(record, path != "/health", timings or {})
        return record

    def test_fresh_records(self) -> None:
        """Each record has an id of its own, and its time of arrival in ISO 8601, in UTC."""
        self.assertEqual(50, len({Record(CHAT, 0.0).id for _ in range(50)}))
        self.assertEqual(timedelta(0), datetime.fromisoformat(Record(CHAT, 0.0).time).utcoffset())

    def test_kept(self) -> None:
        """A record is kept with all that the interface names, times in milliseconds, rounded."""
        record = self.close(TIMINGS, template="code", status=200, cache="hot", queue_ms=1.26, ttft_ms=300.04)
        expected = {
            "id": record.id,
            "time": record.time,
            "path": CHAT,
            "template": "code",
            "prompt": "",
            "status": 200,
            "cache": "hot",
            "queue_ms": 1.3,
            "estimate_ms": None,
            "restore_ms": None,
            "ttft_ms": 300.0,
            "total_ms": 2000.0,
            "prompt_tokens": 1000,
            "cached_tokens": 900,
            "saved_s": 1.8,
            "miss": None,
            "miss_detail": None,
        }
        self.assertEqual([expected], self.request_log.latest())

    def test_newest_first(self) -> None:
        """The latest records are kept, newest first, and no more of them than a page needs."""
        for status in range(LATEST + 2):
            self.close(status=status)
        self.assertEqual(list(range(LATEST + 1, 1, -1)), [record["status"] for record in self.request_log.latest()])

    def test_last_used(self) -> None:
        """A template was last used by the request that arrived last, in whatever order they end and clocks are set."""
        for arrived, when, expected in (
            (5.0, "2026-03-02T12:00:00.000+00:00", "2026-03-02T12:00:00.000+00:00"),
            (9.0, "2026-03-01T12:00:00.000+00:00", "2026-03-01T12:00:00.000+00:00"),
            (7.0, "2026-03-01T11:00:00.000+00:00", "2026-03-01T12:00:00.000+00:00"),
        ):
            self.request_log.close(Record(CHAT, arrived, time=when, template="code"), True, {})
            self.assertEqual({"code": expected}, self.request_log.last_used)

    def test_counted(self) -> None:
        """A request is counted with endpoint, template and status, and its times are observed in seconds."""
        self.close(template="code", status=503, queue_ms=500, ttft_ms=1500)
        self.assertEqual(1, self.sample("requests_total", endpoint=CHAT, template="code", code="503"))
        for name, seconds in (("request", 2), ("queue", 0.5), ("ttft", 1.5)):
            self.assertEqual(1, self.sample(f"{name}_seconds_count", template="code"), name)
            self.assertAlmostEqual(seconds, self.sample(f"{name}_seconds_sum", template="code") or 0, msg=name)

    def test_unknown_times(self) -> None:
        """Times that are not known are not observed: a client that hung up in the queue got no first byte."""
        self.close(status=200)
        self.assertEqual(1, self.sample("request_seconds_count", template=""))
        for name in ("queue", "ttft"):
            self.assertIsNone(self.sample(f"{name}_seconds_count", template=""), name)

    def test_tokens(self) -> None:
        """Prompt tokens are counted by their source, and what was reused is worth what computing it takes."""
        self.close(TIMINGS, template="code")
        self.assertEqual(900, self.sample("prompt_tokens_total", template="code", source="cache"))
        self.assertEqual(100, self.sample("prompt_tokens_total", template="code", source="computed"))
        self.assertAlmostEqual(1.8, self.sample("prefill_seconds_saved_total", template="code") or 0)
        self.assertAlmostEqual(0.002, self.speed.seconds_per_token)

    def test_saved_at_the_speed_known(self) -> None:
        """A request that computed too little to measure the speed is worth what was measured before."""
        self.speed.measured(1000, 1000)
        record = self.close({"cache_n": 500, "prompt_n": 1, "prompt_ms": 50})
        self.assertAlmostEqual(0.5, record.saved_s or 0)
        self.assertAlmostEqual(0.5, self.sample("prefill_seconds_saved_total", template="") or 0)

    def test_saved_at_no_speed(self) -> None:
        """Before the speed is known, nobody knows what reused tokens are worth; no tokens are worth nothing."""
        self.assertIsNone(self.close({"cache_n": 500, "prompt_n": 1, "prompt_ms": 50}).saved_s)
        self.assertEqual(0.0, self.close({"cache_n": 0, "prompt_n": 1, "prompt_ms": 50}).saved_s)

    def test_no_timings(self) -> None:
        """An answer that does not tell what was reused counts no tokens."""
        for timings in ({}, {"cache_n": 1.0}, {"prompt_n": 1.0}, {"predicted_n": 1.0}):
            record = self.close(timings)
            self.assertEqual((None, None), (record.prompt_tokens, record.cached_tokens))
        self.assertIsNone(self.sample("prompt_tokens_total", template="", source="cache"))
        self.close({"cache_n": 1, "prompt_n": 2})
        self.assertEqual(2, self.sample("prompt_tokens_total", template="", source="computed"))

    def test_other_endpoints(self) -> None:
        """What does not use the slot is counted, and neither kept nor mixed into the times."""
        self.close(TIMINGS, path="/health", status=404, ttft_ms=1.0, queue_ms=1.0)
        self.assertEqual(1, self.sample("requests_total", endpoint="other", template="", code="404"))
        self.assertEqual([], self.request_log.latest())
        for name in ("request", "queue", "ttft"):
            self.assertIsNone(self.sample(f"{name}_seconds_count", template=""), name)

    def test_logged(self) -> None:
        """Each request that used the slot is one line in the log."""
        events: list[LogEvent] = []
        observer = cast(ILogObserver, events.append)
        globalLogPublisher.addObserver(observer)
        self.addCleanup(globalLogPublisher.removeObserver, observer)
        record = self.close(TIMINGS, template="code", status=200, cache="hot", queue_ms=1.26)
        self.close(path="/health")
        self.close(path="/slots/\n\x1b[31mfake")
        line, odd = [formatEvent(event) for event in events]
        self.assertIn(r" '/slots/\n\x1b[31mfake' ", odd)
        self.assertEqual(
            f"{record.id} {CHAT} 200 template=code cache=hot prompt=1000 cached=900 tokens"
            " queue=1.3 ttft=None total=2000.0 ms",
            line,
        )

    def test_miss_logged(self) -> None:
        """The line of a cold request says why it was."""
        with capturedLogs() as events:
            self.close({}, template="code", status=200, cache="cold", miss="shape-changed")
        self.assertIn(" cache=cold miss=shape-changed prompt=None ", formatEvent(events[0]))
