"""`tools.scrub_request`: no names, ids, keys and texts in a recording, and the form of the requests as it was.

Also `tools.record_client`: which file has the recording.
"""

from __future__ import annotations

import json
from typing import Any

from tests.support.folders import FolderTest
from tools.record_client import PLAIN_SIZE, Recording, read
from tools.scrub_request import Scrub, compact, here, masked

TEXT = "You are an agent of Example Inc. Today is 2026-11-27. Read the files, and read them well."


class Scrubbing(FolderTest):
    """`Scrub`, for one recording."""

    def setUp(self) -> None:
        """Make one."""
        super().setUp()
        self.scrub = Scrub({"/home/ada/work": "/home/user/project", "/home/ada": "/home/user", "lovelace": "machine"})

    def test_names(self) -> None:
        """Names are replaced everywhere, the longer one first, and addresses of mail too."""
        given = {"cwd": "/home/ada/work/x on lovelace", "by": ["/home/ada/y", "ada@example.org"]}
        expected = {"cwd": "/home/user/project/x on machine", "by": ["/home/user/y", "user@example.com"]}
        self.assertEqual(expected, self.scrub.body(given))

    def test_ids(self) -> None:
        """Equal ids stay equal, others stay different, and each keeps its form; a word with a mark is none."""
        one, two = "6f1c2a34-aaaa-bbbb-cccc-1234567890ab", "ses_4f2a9c81bd03Qx7z9Lm2"
        found = self.scrub.body([one, two, one, f"a {'9af0' * 10}.", "max_completion_tokens"])
        zeros = "00000000-0000-0000-0000-000000000001"
        self.assertEqual([zeros, "ses_00000000000000000002", zeros, f"a {'0' * 39}3.", "max_completion_tokens"], found)

    def test_headers(self) -> None:
        """Keys and what is of no use are gone; names are in lower case."""
        given = [("Host", "x"), ("X-Session-Id", "a1" * 10), ("Authorization", "Bearer k"), ("X-Stainless-OS", "Linux")]
        self.assertEqual({"authorization": "secret", "x-session-id": "0" * 19 + "1"}, self.scrub.headers(given))

    def test_texts(self) -> None:
        """Long texts have other words; the short ones, numbers, booleans, names of tools and marks stay."""
        mark = {"type": "text", "text": "x-billing-header: version=1; entry=cli; and more that makes this line long;"}
        tool = {"name": "read_the_file_" * 6, "description": TEXT, "strict": True, "limit": 1.5, "none": None}
        found = self.scrub.body({"system": [mark], "tools": [tool], "messages": [{"content": "Read it."}]})
        self.assertEqual([mark], found["system"])
        self.assertEqual([{"content": "Read it."}], found["messages"])
        self.assertEqual({**tool, "description": masked(TEXT)}, found["tools"][0])

    def test_masked(self) -> None:
        """A masked text has none of its words, and its numbers, punctuation and repetitions."""
        found = masked(TEXT)
        for word in ("agent", "Example", "Read", "files"):
            self.assertNotIn(word, found)
        self.assertIn(" 2026-11-27. ", found)
        self.assertEqual(masked("Read read READ"), " ".join([masked("read")] * 3))
        self.assertEqual(masked(TEXT), found)

    def test_compact(self) -> None:
        """Requests are written as clients in JavaScript write them."""
        self.assertEqual('{"a":[1,"é"]}'.encode(), compact({"a": [1, "é"]}))

    def test_here(self) -> None:
        """A recording's folder and the home folder have names that are replaced."""
        names = here(self.folder)
        self.assertEqual("/home/user/project", names[str(self.folder)])
        self.assertIn("/home/user", names.values())


class Recordings(FolderTest):
    """`Recording`: a file that has all requests so far."""

    def record(self, *bodies: Any) -> Recording:
        """Record requests with these bodies."""
        recording = Recording(self.folder / "clients", "some", "Some 1.0", Scrub({}))
        for body in bodies:
            data = body if isinstance(body, bytes) else json.dumps(body).encode()
            recording.add("POST", "/v1/messages", [("X-App", "cli")], data)
        return recording

    def test_plain(self) -> None:
        """A short recording can be read as it is; a request that is no JSON is not in it."""
        self.record({"n": 1}, b"no JSON", {"n": 2})
        found = read(self.folder / "clients" / "some.json")
        self.assertEqual("Some 1.0", found["client"])
        request = {"method": "POST", "path": "/v1/messages", "headers": {"x-app": "cli"}}
        self.assertEqual([{**request, "body": {"n": 1}}, {**request, "body": {"n": 2}}], found["requests"])

    def test_packed(self) -> None:
        """A recording that becomes long is compressed, and there is one file in any case."""
        self.record({"n": 1}, {"text": "word " * PLAIN_SIZE})
        [file] = (self.folder / "clients").iterdir()
        self.assertEqual("some.json.gz", file.name)
        self.assertEqual(2, len(read(file)["requests"]))
        self.record({"n": 1})
        self.assertEqual(["some.json"], [each.name for each in (self.folder / "clients").iterdir()])
