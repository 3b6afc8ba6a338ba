"""Where large bodies are kept: what happens when the disk takes no more."""

from __future__ import annotations

import errno
import json
import os
import tempfile
from collections.abc import Callable
from typing import Any

from twisted.internet.task import Clock
from twisted.logger import capturedLogs
from twisted.trial.unittest import SynchronousTestCase

from bioproxy.http import request_body
from bioproxy.http.deadlines import REFUSAL_SECONDS
from bioproxy.http.request_body import SHORT_BODY, RequestBody
from bioproxy.runtime import spool
from bioproxy.runtime.errors import Unavailable
from bioproxy.runtime.spool import SAY_AGAIN, SMALL, Spool
from tests.support.raw import Raw, RawTest
from tests.support.world import CODE, World, logged

CHAT = "/v1/chat/completions"
LARGE = 3 * SMALL


def full_disk(**_: Any) -> Any:
    """Open a file on a full disk: the system's own."""
    return open("/dev/full", "w+b")


def no_more_files(**_: Any) -> Any:
    """Open a file where all are open that a process may have."""
    raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))


class SpoolTest(SynchronousTestCase):
    """What has been said in the log is forgotten before each test, and the time stands still."""

    now = 1000.0

    def setUp(self) -> None:
        """Prepare that."""
        self.patch(spool, "_said", {})
        self.patch(spool, "monotonic", lambda: self.now)

    def gone(self) -> None:
        """Take the folder for temporary files away."""
        self.patch(tempfile, "tempdir", "/no/such/folder")

    def ways(self) -> dict[str, tuple[Callable[[], None], str]]:
        """Return ways to break temporary files, with the reason that a client is told."""
        return {
            "gone": (self.gone, "No such file or directory"),
            "full": (lambda: self.patch(tempfile, "TemporaryFile", full_disk), "No space left on device"),
            "too many": (lambda: self.patch(tempfile, "TemporaryFile", no_more_files), "Too many open files"),
        }


class Spools(SpoolTest):
    """`Spool`, and what is done with one."""

    def test_kept(self) -> None:
        """A body is in memory up to a size, then on disk, all of it at once: others look at it there."""
        for size in (0, 1, SMALL, SMALL + 1, LARGE):
            file = Spool()
            for at in range(0, size, 1000):
                file.write(b"x" * min(1000, size - at))
            self.assertEqual(size > SMALL, hasattr(file._file, "fileno") and file._rolled)  # type: ignore[attr-defined]
            if size > SMALL:
                self.assertEqual(size, os.fstat(file.fileno()).st_size)
            self.assertEqual(size, RequestBody(file).size)
            file.close()

    def test_broken(self) -> None:
        """What cannot be kept is told as a fault of the moment, with the reason and without paths; small bodies are."""
        for name, (break_it, reason) in self.ways().items():
            break_it()
            for pieces in ([LARGE], [SMALL, 1], [1000] * 200):
                file = Spool()
                with self.assertRaises(Unavailable) as caught:
                    for size in pieces:
                        file.write(b"x" * size)
                self.assertIn(reason, caught.exception.message, name)
                self.assertNotIn("/", caught.exception.message, name)
                self.assertEqual(spool.RETRY_AFTER, caught.exception.retry_after)
            small = Spool()
            small.write(b"x" * SMALL)
            self.assertEqual(b"x" * SMALL, RequestBody(small).as_received())
            self.assertRaises(Unavailable, RequestBody(small).fileno)

    def test_no_view(self) -> None:
        """A look at a large body takes an open file too, and says the same where there is none."""
        file = Spool()
        file.write(b"x" * LARGE)
        self.patch(request_body, "mmap", lambda *_, **__: no_more_files())
        self.assertRaises(Unavailable, RequestBody(file).producer, Clock())

    def test_log(self) -> None:
        """The log tells each reason once, and once more after ten minutes, with what the system says of it."""
        self.gone()
        with capturedLogs() as events:
            self.tell()
            self.assertEqual(1, len(logged(events)))
            self.assertIn("/no/such/folder", logged(events)[0])
            self.now += SAY_AGAIN - 1
            self.tell()
            self.assertEqual(1, len(events))
            self.now += 1
            self.tell()
            self.assertEqual(2, len(events))
            self.patch(tempfile, "TemporaryFile", full_disk)
            self.tell()
        self.assertIn("No space left on device", logged(events)[2])
        self.assertEqual(3, len(events))

    def tell(self) -> None:
        """Fail ten times."""
        for _ in range(10):
            self.assertRaises(Unavailable, Spool().write, b"x" * LARGE)


class Requests(SpoolTest, RawTest):
    """Requests with large bodies."""

    def setUp(self) -> None:
        """Build a world."""
        SpoolTest.setUp(self)
        RawTest.setUp(self)
        self.built: World = self.ready_world({"code": CODE})
        self.built.llama_server.answers = {"/": {"ok": True}}
        self.before = len(self.built.llama_server.raw)

    def refused(self, client: Raw, reason: str, what: str) -> None:
        """Check that a client is told to come again, and why, and that its connection ends soon and nothing stays."""
        self.built.http_clock.advance(0)
        self.assertEqual([503], client.statuses, what)
        answer = client.answers[0]
        error = json.loads(answer.body)["error"]
        self.assertEqual(("unavailable_error", "30"), (error["type"], answer.headers["retry-after"]), what)
        self.assertIn(reason, error["message"], what)
        self.assertEqual("close", answer.headers["connection"], what)
        client.say(b"x" * 1000 + b"GET /smuggled HTTP/1.1\r\nHost: x\r\n\r\n")
        self.assertFalse(client.closing, what)
        self.built.http_clock.advance(REFUSAL_SECONDS)
        self.assertEqual(([503], True), (client.statuses, client.closing), what)
        client.hang_up()
        self.assertEqual((0, 0), (self.built.limits._bytes, len(self.built.limits)), what)
        self.assertEqual([], self.flushLoggedErrors(), what)

    def test_arriving(self) -> None:
        """A large body that cannot be kept is answered 503, with a length and in chunks, however it comes."""
        head = f"POST {CHAT} HTTP/1.1\r\nHost: x\r\n"
        length = f"{head}Content-Length: {LARGE}\r\n\r\n".encode()
        chunks = f"{head}Transfer-Encoding: chunked\r\n\r\n{LARGE:x}\r\n".encode()
        for name, (break_it, reason) in self.ways().items():
            break_it()
            for begin in (length, chunks):
                self.refused(self.connect(self.built).say(begin + b"x" * LARGE), reason, name)
                client = self.connect(self.built).say(begin)
                for _ in range(LARGE // 1000):
                    if not client.received:
                        client.say(b"x" * 1000)
                        self.built.http_clock.advance(0)
                self.refused(client, reason, name)
        self.assertEqual([], self.built.llama_server.raw[self.before :])
        records = json.loads(self.built.operate("GET", "/status").body)["requests"]
        self.assertEqual({(CHAT, 503)}, {(each["path"], each["status"]) for each in records})

    def test_other_requests(self) -> None:
        """Small requests are served meanwhile, and large ones again when there is room."""
        head = b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: "
        real = tempfile.TemporaryFile
        self.patch(tempfile, "TemporaryFile", full_disk)
        small = self.connect(self.built).say(head + b"2\r\n\r\n{}")
        self.assertEqual([200], small.statuses)
        small.hang_up()
        self.refused(self.connect(self.built).say(head + b"%d\r\n\r\n" % LARGE + b"x" * LARGE), "No space", "full")
        self.patch(tempfile, "TemporaryFile", real)
        client = self.connect(self.built).say(head + b"%d\r\n\r\n" % LARGE + b"x" * LARGE)
        while not client.received:
            self.built.clock.advance(0)  # it is sent on piece by piece
            self.built.settle()
        self.assertEqual([200], client.statuses)
        self.assertEqual(b"x" * LARGE, self.built.llama_server.raw[-1][2])

    def test_read_elsewhere(self) -> None:
        """So is one that another process would have to read from a file; it gives no place in the queue away."""
        question = "@code why? " + "x" * SHORT_BODY
        for name, (break_it, reason) in self.ways().items():
            break_it()
            call = self.built.chat(question)
            error = call.json()["error"]
            self.assertEqual((503, "unavailable_error"), (call.status, error["type"]), name)
            self.assertEqual("30", call.headers["retry-after"])
            self.assertIn(reason, error["message"])
            self.assertIsNone(self.built.gate.busy)
            self.assertEqual(200, self.built.chat("@code why?").status)

    def test_read_for_learning(self) -> None:
        """One that need not be read is sent all the same, whole, where no template is known that it could name."""
        self.built.poller.templates.clear()
        self.built.parts.reader.learn_minimum = 0
        for name, (break_it, _) in self.ways().items():
            break_it()
            question = {"messages": [{"role": "user", "content": name}], "x": "x" * SHORT_BODY}
            body = json.dumps(question).encode()
            self.assertEqual(200, self.built.send("POST", CHAT, body).status, name)
            self.assertIn(body, [raw for _, _, raw in self.built.llama_server.raw])

    def test_one_line(self) -> None:
        """Many refused requests are one line in the log, apart from each request's own."""
        self.gone()
        with capturedLogs() as events:
            for _ in range(5):
                self.assertEqual(503, self.built.chat("@code why? " + "x" * SHORT_BODY).status)
        self.assertEqual(1, sum("no temporary file can be written" in text for text in logged(events)))
