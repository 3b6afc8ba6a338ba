"""One request to a fleet, and how it ended.

A client must be able to tell a whole answer from one that broke off.  So each answer is judged twice: whether it
*looks* whole, by HTTP's framing and the stream's last line, and whether it *is* whole, by what llama-server says of the
work.

The standard library's client is used, without a retry and without a pool, because both would hide what is looked for.
It blocks; each session of `benchmarks.fleet_clients` has a thread for it.

Does not know conversations: what is asked comes in, and what came of it goes out.
"""

from __future__ import annotations

import http.client
import json
import time
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

from benchmarks.fleet_parts import KEY

TIMEOUT = 120.0
"""Seconds of silence after which a request counts as hung.  None may."""


@dataclass(frozen=True)
class Attempt:
    """How one request ended."""

    status: int
    """HTTP status; 0 where no answer began."""
    pair: str | None = None
    """The pair that answered, as HAProxy says."""
    cache: str | None = None
    """``hot``, ``restored`` or ``cold``, as bioproxy says."""
    looks_whole: bool = False
    """Whether a client takes the answer for complete: HTTP's framing and the stream's last line are there."""
    is_whole: bool = False
    """Whether it is complete: llama-server has said why it stopped, and what the work was."""
    hung: bool = False
    """Whether nothing came for `TIMEOUT` seconds."""
    retry_after: str | None = None
    """The header of that name, in seconds."""
    said: str = ""
    """What an error says."""
    text: str = ""
    """The answer, as far as it came."""
    ttft: float = 0.0
    """Seconds to the first piece of text."""
    reused: int = 0
    """Prompt tokens that the slot had."""
    computed: int = 0
    """Prompt tokens that llama-server computed."""

    @property
    def helpful(self) -> bool:
        """Whether an error says what to do: a status and a text, and when to try again if that helps."""
        return bool(self.said) and (self.status < 500 or self.retry_after is not None)


def ask(port: int, body: Any, headers: dict[str, str], path: str = "/v1/chat/completions") -> Attempt:
    """Send a request over a connection of its own, and read the answer to its end, whatever that is.

    `body` becomes JSON, and `headers` are added to those of each request.  Never fails: what went wrong is in the
    result.
    """
    # A new connection each time, so that nothing but the request itself can tell the balancer whose it is.
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=TIMEOUT)
    status, pair, cache, retry_after, text, said, ttft = 0, None, None, None, "", "", 0.0
    done = finished = False
    timings: dict[str, Any] = {}
    began = time.monotonic()
    try:
        sent = {"Authorization": f"Bearer {KEY}", "Content-Type": "application/json", **headers}
        connection.request("POST", path, json.dumps(body), sent)
        response = connection.getresponse()
        status, retry_after = response.status, response.getheader("Retry-After")
        pair, cache = response.getheader("X-Fleet-Pair"), response.getheader("X-Bioproxy-Cache")
        # An error is a short JSON text, whoever has written it: bioproxy, llama-server, or HAProxy from its own files.
        if status != HTTPStatus.OK:
            said = str(json.loads(response.read())["error"]["message"])
            return Attempt(status, pair, cache, retry_after=retry_after, said=said)
        # A stream of events, one line each.  Lines that begin with a colon are comments, which say that it is alive.
        while line := response.readline():
            if line.startswith(b"data: [DONE]"):
                done = True
            elif line.startswith(b"data: {"):
                event = json.loads(line[6:])
                # An error in the middle of a stream: status and head have gone out before.
                if "error" in event:
                    said = str(event["error"]["message"])
                    continue
                timings = event.get("timings", timings)
                # The first piece with text ends the user's waiting; a stream begins with one that has only a role.
                for choice in event["choices"]:
                    if piece := choice["delta"].get("content"):
                        ttft = ttft or time.monotonic() - began
                        text += piece
                    finished = finished or bool(choice["finish_reason"])
        # The standard library takes a stream without its last chunk for ended: only the connection knows.
        framed = response.isclosed()
    except TimeoutError:
        return Attempt(status, pair, cache, hung=True)
    except (OSError, http.client.HTTPException) as error:
        # Refused, reset, or ended in the middle: for a client all the same, and never a complete answer.
        return Attempt(status, pair, cache, said=f"the connection broke: {error!r}"[:100])
    finally:
        connection.close()
    return Attempt(
        status,
        pair,
        cache,
        looks_whole=framed and done and not said,
        is_whole=finished and bool(timings),
        said=said,
        text=text,
        ttft=ttft,
        reused=int(timings.get("cache_n", 0)),
        computed=int(timings.get("prompt_n", 0)),
    )
