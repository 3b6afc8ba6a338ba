"""Signs of life in a stream of events, sent while its client waits for the answer to begin.

A request may wait for minutes, in the queue or while a long prompt is computed.  Other proxies on the way close a
silent connection much sooner, often after 60 s, and clients after their own timeout, 600 s in the official libraries.
Most clients then send the request again, which makes the queue longer for everybody.  A stream of *server-sent events*
may have comments, lines that begin with a colon and that every client has to skip; Anthropic's API has events for the
same purpose, pings (`bioproxy.http.waiting_words`).  So a sign of life in each interval keeps such a connection alive,
and a comment can also say what the client waits for.  Both are called comments below.

HTTP has no room for a comment before an answer, which begins with its status and headers, the *head*.  So the first
comment takes the head along, with the status 200, although nobody knows yet how the request will end (see `Keepalive`).

Twisted's `LoopingCall` calls a function again and again.  If the function returns a Deferred or is a coroutine, the
next call waits for its end, so two calls never overlap.  An exception ends the loop for good.

This module does not know what the client waits for.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any, TypeVar, cast

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import LoopingCall
from twisted.logger import Logger

from bioproxy.http.client_output import ClientOutput
from bioproxy.http.own_answers import send_stream_head
from bioproxy.http.waiting_words import sign_of_life
from bioproxy.runtime.errors import ProxyError

T = TypeVar("T")

AsksForStream = Callable[[], Coroutine[Deferred[Any], Any, bool]]
"""Finds out whether a request asks for its answer as a stream of events.  May fail with `ProxyError`."""

FindsWords = Callable[[], Coroutine[Deferred[Any], Any, str]]
"""Finds out what the client waits for, as one line of text.  Must fire soon, and fails for mistakes of ours only."""


class Keepalive:
    """The comments to one client, which must have asked for a stream: in any other body they would be wrong bytes.

    The head that goes out with the first comment has a price.  An error can no longer be told by the status, only by
    an event in the stream, and headers that become known later are missing: how long the request waited, whether a file
    was restored.  Therefore nothing is sent before the first interval has passed.  A client that waits for less gets
    the status and all headers of a normal answer.

    Invariant: they are sent only between `begin` and `end`, so never into a body that has begun to arrive.
    `interval` is the time between two of them in seconds; with 0 none is sent.  Halved, more clients get the head
    before the answer is known; doubled, fewer do, but a proxy on the way may close the connection before the first
    comment.
    """

    log = Logger()

    def __init__(self, output: ClientOutput, clock: IReactorTime, interval: float) -> None:
        self.sent = 0
        """How many comments were sent.  If it is not 0, the head was sent, too."""

        self._output = output
        self._interval = interval
        self._asks_for_stream: AsksForStream | None = None
        self._find_words: FindsWords | None = None
        self._path = ""
        self._head_has_come = False
        # The call of one of the two functions that has not ended yet, to be cancelled.
        self._asking: Deferred[Any] | None = None
        self._loop = LoopingCall(self._send_comment)
        # Twisted reads this attribute for the time; without it, the loop would go by the global reactor.
        self._loop.clock = clock

    def begin(self, path: str, asks_for_stream: AsksForStream, find_words: FindsWords) -> None:
        """Begin to wait for an answer.

        The request's `path` decides whether its API has pings.  `asks_for_stream` is called only when the first comment
        is due, because a large request has to be parsed for it by the worker process; most requests are answered before
        that.  `find_words` is called for each comment.
        """
        # The setting 0 means no comments.  A `LoopingCall` with an interval of 0 would call in every turn of the
        # reactor.
        if self._interval:
            self._path, self._asks_for_stream, self._find_words = path, asks_for_stream, find_words
            # `now=False`: wait for one interval first.  `start` returns a Deferred that fires when the loop is stopped
            # and fails if it ended with an exception.  Without a handler for that, Twisted would log the exception only
            # when the Deferred is garbage-collected.
            ended = self._loop.start(self._interval, now=False)
            ended.addErrback(lambda failure: self.log.failure("sending a keep-alive comment failed", failure))

    def head_has_come(self) -> None:
        """Note that the answer's own head was prepared, and its body is a stream that has not begun.

        Comments go on.  If none was sent before, the next one takes that head along.
        """
        self._head_has_come = True

    def end(self) -> None:
        """Send no more comments.  May be called at any time, also twice or without `begin`."""
        if self._loop.running:
            self._loop.stop()
        # `stop` does not interrupt a comment that waits for one of the functions, so that is cancelled.  If the client
        # is gone, the request's file is closed: read later, its number would stand for no file, or for another one.
        if self._asking is not None:
            self._asking.cancel()
        # The two functions refer to the request, which may be large.  The answer may take minutes from here on, and the
        # loop would keep the request in memory for so long.
        self._asks_for_stream = self._find_words = None

    async def _send_comment(self) -> None:
        """Send a comment, the first one with the head of the answer.  Called by the loop once in each interval."""
        if not self.sent and self._asks_for_stream is not None:
            try:
                is_stream = await self._ask(self._asks_for_stream())
            except ProxyError:
                # The body cannot be parsed, or not now: it is nested too deeply, say, or there is no room for its file.
                # The code that answers the request meets the same error and tells the client; a comment sent now would
                # turn its status into 200.
                is_stream = False
            if not is_stream:
                return self.end()
        words = await self._ask(self._find_words()) if self._find_words is not None else None
        # An `await` gives others a turn: the answer may have begun meanwhile and have sent its own head.  What was
        # asked is cancelled then and answers `None`, but the end may also have come in the same moment as an answer.
        if words is None or not self._loop.running:
            return
        if not self.sent and not self._head_has_come:
            send_stream_head(self._output)
        # A comment also finds out that a client is gone without having closed its connection, such as a laptop without
        # network: the kernel sends these bytes again and again, and reports the connection as lost after some minutes.
        # Without them nothing would be sent, and the request would keep its place in the queue.
        self.sent += 1
        self._output.write(sign_of_life(self._path, words))

    async def _ask(self, question: Coroutine[Deferred[Any], Any, T]) -> T | None:
        """Fire with the answer to one of the two functions, or with `None` if `end` was called meanwhile."""
        # A coroutine alone cannot be cancelled; the Deferred that `fromCoroutine` makes of it can.
        self._asking = Deferred.fromCoroutine(question)
        try:
            return cast("T", await self._asking)
        except CancelledError:  # by `end`
            return None
        finally:
            self._asking = None
