"""Which file a client's own slot call may have llama-server write.

What the real llama-server writes for these is looked at in `tests/integration/test_real_slot_calls.py`.
"""

from __future__ import annotations

from typing import NamedTuple

from twisted.trial.unittest import SynchronousTestCase
from twisted.web.http_headers import Headers

from bioproxy.runtime.spool import SMALL
from bioproxy.slot_files.client_calls import saved_to
from tests.support.bodies import body

NAME = b'{"filename":"code.bin"}'
SAVE = b"/slots/0?action=save"
JSON = b"application/json"
URLENCODED = b"application/x-www-form-urlencoded"
FORM = b"multipart/form-data; boundary=B"


def part(name: bytes, value: bytes) -> bytes:
    """Return a multipart form with one field."""
    return b'--B\r\nContent-Disposition: form-data; name="%s"\r\n\r\n%s\r\n--B--\r\n' % (name, value)


class Ask(NamedTuple):
    """A request, and what it may write: a name, nothing (empty), or what nobody knows (`None`)."""

    target: bytes
    body: bytes
    kind: bytes | None
    written: str | None


DEEP = b'{"a":' + b"[" * 50_000 + b"]" * 50_000 + b',"filename":"code.bin"}'

WRITE: dict[str, Ask] = {
    "plain": Ask(SAVE, NAME, JSON, "code.bin"),
    "no type": Ask(SAVE, NAME, None, "code.bin"),
    "as curl sends it": Ask(SAVE, NAME, URLENCODED, "code.bin"),
    "white space": Ask(SAVE, b" \n" + NAME + b"\r\n", JSON, "code.bin"),
    "a byte-order mark": Ask(SAVE, b"\xef\xbb\xbf" + NAME, JSON, "code.bin"),
    "escapes": Ask(SAVE, rb'{"\u0066ilename":"code\u002ebin"}', JSON, "code.bin"),
    "a null behind": Ask(SAVE, NAME + b"\0", JSON, "code.bin"),
    "anything behind a null": Ask(SAVE, NAME + b'\0{"filename":"other.bin"} x', JSON, "code.bin"),
    "no UTF-8 behind a null": Ask(SAVE, NAME + b"\0\xff\xfe", JSON, "code.bin"),
    "the last of two": Ask(SAVE, b'{"filename":"other.bin","filename":"code.bin"}', JSON, "code.bin"),
    "a long number": Ask(SAVE, b'{"a":' + b"1" * 300 + b',"filename":"code.bin"}', JSON, "code.bin"),
    "deep": Ask(SAVE, DEEP, JSON, None),
    "a form": Ask(SAVE, part(b"filename", b"code.bin"), FORM, None),
    "the action escaped": Ask(b"/slots/0?%61ction=%73ave", NAME, JSON, "code.bin"),
    "the action behind others": Ask(b"/slots/0?x=1&&=&action=save&", NAME, JSON, "code.bin"),
    "a restore before": Ask(b"/slots/0?action=restore&action=save", NAME, JSON, "code.bin"),
    "an erase before": Ask(b"/slots/0?action=erase&action=save", NAME, JSON, "code.bin"),
    "a fragment": Ask(b"/slots/0?action=save#x", NAME, JSON, "code.bin"),
    "the action in the body": Ask(b"/slots/0", NAME + b"\0&action=save", URLENCODED, "code.bin"),
    "another action in the body": Ask(b"/slots/0?action=restore", NAME + b"\0&action=save", URLENCODED, "code.bin"),
    "an action inside JSON": Ask(
        b"/slots/0?action=restore", b'{"filename":"code.bin","a":"&action=save&"}', URLENCODED, "code.bin"
    ),
    "an escaped slash": Ask(b"/slots%2f0?action=save", NAME, JSON, "code.bin"),
}
"""What makes a real llama-server write `code.bin`."""

NO_WRITE: dict[str, Ask] = {
    "restore": Ask(b"/slots/0?action=restore", NAME, JSON, ""),
    "restore as curl sends it": Ask(b"/slots/0?action=restore", NAME, URLENCODED, ""),
    "erase": Ask(b"/slots/0?x&action=%65rase", b"", None, ""),
    "nothing": Ask(SAVE, b"", JSON, ""),
    "no JSON": Ask(SAVE, b"no json", JSON, ""),
    "another kind of JSON": Ask(SAVE, b'["filename"]', JSON, ""),
    "no name": Ask(SAVE, b'{"a":{"filename":"code.bin"}}', JSON, ""),
    "no text": Ask(SAVE, b'{"filename":["code.bin"]}', JSON, ""),
    "a number last": Ask(SAVE, b'{"filename":"code.bin","filename":5}', JSON, ""),
    "only brackets": Ask(SAVE, b"[" * 100_000, JSON, ""),
    "a null first": Ask(SAVE, b"\0" + NAME, JSON, ""),
}
"""What writes nothing, for certain."""

CAREFUL: dict[str, Ask] = {
    "text behind": Ask(SAVE, NAME + b"x", JSON, None),
    "no UTF-8": Ask(SAVE, b'{"a":"\xff","filename":"code.bin"}', JSON, None),
    "UTF-16": Ask(SAVE, NAME.decode().encode("utf-16-le"), JSON, ""),
    "a number too long": Ask(SAVE, b'{"a":' + b"1" * 5000 + b',"filename":"code.bin"}', JSON, None),
    "half a name": Ask(SAVE, b'{"filename":', JSON, None),
    "a hidden name": Ask(SAVE, rb'{"\u0066ilename":', JSON, None),
    "a comment": Ask(SAVE, b"/*x*/" + NAME, JSON, None),
    "a form of another type": Ask(SAVE, part(b"filename", b"code.bin"), b"Multipart/Form-Data; boundary=B", None),
    "an action in a form": Ask(b"/slots/0", part(b"action", b"save"), FORM, None),
    "no action": Ask(b"/slots/0", NAME, JSON, "code.bin"),
    "an empty action": Ask(b"/slots/0?action=&action=restore", NAME, JSON, "code.bin"),
    "another action": Ask(b"/slots/0?action=Restore", NAME, JSON, "code.bin"),
    "a restore behind": Ask(b"/slots/0?action=save&action=restore", NAME, JSON, "code.bin"),
    "an odd escape": Ask(b"/slots/0?action=%u0072estore", NAME, JSON, "code.bin"),
    "behind a fragment": Ask(b"/slots/0?action=restore#&action=save", NAME, JSON, "code.bin"),
    "a fragment before": Ask(b"/slots/0#?action=save", NAME, JSON, "code.bin"),
    "a number of no JSON": Ask(SAVE, b'{"a":NaN,"filename":"code.bin"}', JSON, "code.bin"),
}
"""What this llama-server refuses.  Another one might not: where in doubt, it is taken for a save."""


def written(ask: Ask) -> str | None:
    """Return what a request may write."""
    headers = Headers({} if ask.kind is None else {b"Content-Type": [ask.kind]})
    return saved_to(ask.target, headers, body(ask.body))


class SlotCalls(SynchronousTestCase):
    """`saved_to`."""

    def test_table(self) -> None:
        """Each request may write what the table says."""
        for name, ask in {**WRITE, **NO_WRITE, **CAREFUL}.items():
            self.assertEqual(ask.written, written(ask), name)

    def test_nothing_escapes(self) -> None:
        """Of what makes llama-server write `code.bin` nothing is taken for another name, or for none."""
        self.assertEqual({"code.bin", None}, {ask.written for ask in WRITE.values()})

    def test_compressed(self) -> None:
        """What a compressed body names nobody here can tell; nor is a large one looked at."""
        for kind in (b"gzip", b"identity"):
            headers = Headers({b"Content-Encoding": [kind]})
            self.assertIsNone(saved_to(SAVE, headers, body(NAME)))
            self.assertEqual("", saved_to(b"/slots/0?action=restore", headers, body(NAME)))
        self.assertIsNone(saved_to(SAVE, Headers(), body(NAME + b" " * SMALL)))

    def test_several_types(self) -> None:
        """Of several types each one counts: which one llama-server goes by is not known."""
        headers = Headers({b"Content-Type": [JSON, FORM]})
        self.assertIsNone(saved_to(SAVE, headers, body(NAME)))
